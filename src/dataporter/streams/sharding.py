"""Sharding: how an iterable dataset is split into shards, by what it offers (C10)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from torch.utils.data import IterableDataset

from dataporter._torch import without_worker_info
from dataporter.errors import ConfigurationError, warn
from dataporter.streams.carried import Carried
from dataporter.streams.shard import (
    ShardState,
    is_from_hugging_face,
    is_sharded,
    node_of,
    reads_ahead,
    set_stream_epoch,
    snapshots_are_exact,
    unsplittable,
    whole,
    without_node,
)
from dataporter.streams.source import warn_of_arguments

__all__ = [
    "ByShards",
    "ByWorkers",
    "Opened",
    "Sharding",
    "Whole",
    "sharding_of",
    "shards_of_rank",
    "warn_of_idle_workers",
]

# Every shard being read holds an open file and its buffer; this many shards feed 64 ranks.
_MOST_BY_DEFAULT = 64


def sharding_of(
    dataset: IterableDataset[Any],
    num_shards: int | Literal[False] | None,
    rank: int,
    world_size: int,
) -> Sharding:
    """The sharding of a stream.

    Args:
        num_shards: number of shards, for a :class:`ShardedStream`; None: all that it has, up to 64,
            or one if a split would change its samples; False: each worker iterates over it.
        rank, world_size: of the loader.

    Raises:
        ConfigurationError: the stream cannot be split, has fewer shards, or has fewer than there
            are ranks; or it is another node's part of the data.
    """
    if num_shards is False or not is_sharded(dataset, _OTHERWISE):
        if num_shards is not None and num_shards is not False:
            raise ConfigurationError(
                f"num_shards={num_shards!r}: a {type(dataset).__name__} cannot be split into "
                "shards; give it num_shards and shard(num_shards, index), see "
                "dataporter.ShardedStream, or leave num_shards= out"
            )
        warn_of_arguments(dataset)
        return ByWorkers(dataset, snapshots_are_exact(dataset), reads_ahead(dataset))
    dataset = _of_all_nodes(dataset, num_shards, rank, world_size)
    exact, ahead = snapshots_are_exact(dataset), reads_ahead(dataset)
    available: int = dataset.num_shards  # type: ignore[attr-defined]  # it is sharded
    reason = unsplittable(dataset)
    if reason is not None and num_shards in (None, 1):
        if world_size > 1:
            raise ConfigurationError(_not_shared(reason, available, world_size))
        return Whole(dataset, reason, exact, ahead)
    if num_shards is None:
        num_shards = min(available, _MOST_BY_DEFAULT)
    if not 1 <= num_shards <= available:
        raise ConfigurationError(
            f"num_shards={num_shards}: the stream can be split into 1 to {available} shards"
        )
    if num_shards < world_size:
        raise ConfigurationError(
            f"the stream has {num_shards} shards for {world_size} ranks, so some ranks would have "
            f"none: it can be split into up to {available} (num_shards=); if that is too few, "
            "store the data in more files"
        )
    return ByShards(dataset, num_shards, exact, ahead)


def warn_of_idle_workers(sharding: Sharding, num_workers: int) -> None:
    """Warn that one worker reads a stream that is not split, while the others have nothing to do.

    Args:
        num_workers: of the loader.
    """
    if not isinstance(sharding, Whole) or num_workers < 2:
        return
    available = sharding.dataset.num_shards
    line = f"write num_shards={min(available, _MOST_BY_DEFAULT)} to split it anyway ({_EACH})"
    if node_of(sharding.dataset) is not None:
        line = (
            "leave split_dataset_by_node out and pass rank= and world_size= to the loader, which "
            "shares the stream among ranks and workers"
        )
    warn(
        f"one of {num_workers} workers reads this stream, and the others have nothing to do: "
        f"{sharding.reason} would give other samples if the stream were split; {line}, or write "
        "num_shards=1 to read it so without this warning",
        RuntimeWarning,
    )


_OTHERWISE = (
    "; if these members mean something else, pass num_shards=False, so that the stream is not split"
)
_EACH = "each step then counts and groups within a shard"


def _of_all_nodes(
    dataset: Any, num_shards: int | None, rank: int, world_size: int
) -> IterableDataset[Any]:
    """The stream that the ranks share, where each was given its node's part of it.

    Raises:
        ConfigurationError: it is the part of another rank, or of another world.
    """
    node = node_of(dataset)
    if node is None:
        return dataset  # type: ignore[no-any-return]  # the caller's
    if node == (rank, world_size):
        return without_node(dataset)  # type: ignore[no-any-return]  # of the same class
    part = f"split_dataset_by_node(rank={node.rank}, world_size={node.world_size})"
    if world_size > 1:
        raise ConfigurationError(
            f"the stream was split by {part}, but this loader is rank {rank} of {world_size}, and "
            "would share that part once more: leave split_dataset_by_node out, since the loader "
            "shares the stream among its ranks; or, to read the part as it is, build the loader "
            "with rank=0, world_size=1"
        )
    if num_shards not in (None, 1):
        raise ConfigurationError(
            f"num_shards={num_shards}: the stream was split by {part}, and is read as it is: leave "
            "num_shards= out; or leave split_dataset_by_node out, and pass "
            f"rank={node.rank}, world_size={node.world_size} to the loader"
        )
    return dataset  # type: ignore[no-any-return]  # the caller's


def _not_shared(reason: str, available: int, world_size: int) -> str:
    """Why several ranks cannot share a stream that is not split, and what to write."""
    number = min(available, _MOST_BY_DEFAULT)
    anyway = (
        f"write num_shards={number} to split it anyway ({_EACH}); or "
        if number >= world_size
        else ""
    )
    return (
        f"{world_size} ranks cannot share this stream: {reason} would give other samples if the "
        f"stream were split: {anyway}take such steps before the data become a stream, as in "
        f"dataset.take(1000).to_iterable_dataset(num_shards={max(number, world_size)}); or read "
        "all of it on each rank, with rank=0, world_size=1"
    )


class Opened(NamedTuple):
    """A shard that was opened.

    Attributes:
        samples: the shard.
        beginning: the state of the dataset at the beginning of the epoch; None where none is
            carried from one epoch to the next.
    """

    samples: Iterable[Any]
    beginning: str | None = None


class Sharding(Protocol):
    """Splits a stream into shards."""

    @property
    def name(self) -> Literal["shards", "workers"]:
        """``"shards"`` if the loader distributes the dataset's shards, else ``"workers"``."""

    @property
    def dataset(self) -> Any: ...

    @property
    def snapshots(self) -> bool:
        """Whether the states of the dataset resume exactly."""

    @property
    def reads_ahead(self) -> bool:
        """Whether it may compute several samples at once, under the seed of one of them."""

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        """The shards of a rank."""

    def open(self, start: ShardState, epoch: int) -> Opened:
        """A shard from its first sample on."""

    def begin_again(self, epoch: int) -> Opened | None:
        """A shard that has yielded nothing, from its first state on; None if it began there."""

    def end(self) -> str | None:
        """The state from which the next epoch begins, where a shard has ended."""

    def first_state(self) -> str | None:
        """The state from which the first epoch begins; None where none is carried."""

    def reading(self) -> AbstractContextManager[Any]:
        """A context for reading a shard."""


def shards_of_rank(
    rank: int, world_size: int, *, num_shards: int | None = None, num_workers: int = 1
) -> range:
    """The shards that a rank reads.

    Args:
        num_shards: number of the dataset's shards, which are dealt out to the ranks.
        num_workers: without ``num_shards``: number of workers of each rank, with a shard each.
    """
    if num_shards is not None:
        return range(rank, num_shards, world_size)
    return range(rank * num_workers, (rank + 1) * num_workers)


@dataclass(frozen=True, slots=True)
class ByShards:
    """The dataset splits itself; any worker of any rank can read any shard."""

    dataset: Any
    num_shards: int
    snapshots: bool = True
    reads_ahead: bool = False

    @property
    def name(self) -> Literal["shards", "workers"]:
        return "shards"

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        return shards_of_rank(rank, world_size, num_shards=self.num_shards)

    def open(self, start: ShardState, epoch: int) -> Opened:
        set_stream_epoch(self.dataset, epoch)
        opened = self.dataset.shard(num_shards=self.num_shards, index=start.shard)
        if opened is None or (opened is self.dataset and self.num_shards > 1):
            kind, arguments = type(self.dataset).__name__, (self.num_shards, start.shard)
            call = "{}.shard(num_shards={}, index={})".format(kind, *arguments)
            raise ConfigurationError(
                f"{call} returned {'None' if opened is None else 'the dataset itself'}: return "
                "another object for each shard, such as a copy with its share of the files, and "
                "leave the dataset as it is"
            )
        set_stream_epoch(opened, epoch)
        return Opened(opened)

    def begin_again(self, epoch: int) -> Opened | None:
        return None

    def end(self) -> str | None:
        return None

    def first_state(self) -> str | None:
        return None

    def reading(self) -> AbstractContextManager[Any]:
        # A shard that sees that it is in a worker may read only that worker's share of itself.
        return without_worker_info()


@dataclass(slots=True)
class ByWorkers:
    """Each worker iterates over the dataset, which may give every worker its share.

    All passes of a process share one dataset.
    """

    dataset: Any
    snapshots: bool = True
    reads_ahead: bool = False
    _carried: Carried = field(init=False)

    def __post_init__(self) -> None:
        # Hugging Face's streams keep the place that was loaded, and yield nothing from an end.
        self._carried = Carried(self.dataset, lasts=not is_from_hugging_face(self.dataset))

    @property
    def name(self) -> Literal["shards", "workers"]:
        return "workers"

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        return shards_of_rank(rank, world_size, num_workers=num_workers)

    def open(self, start: ShardState, epoch: int) -> Opened:
        resumes = start.snapshot is not None
        beginning = self._carried.begin(start.beginning, resumes=resumes)
        set_stream_epoch(self.dataset, epoch)
        return Opened(self.dataset, beginning)

    def begin_again(self, epoch: int) -> Opened | None:
        if not self._carried.begin_again():
            return None
        set_stream_epoch(self.dataset, epoch)
        return Opened(self.dataset)

    def end(self) -> str | None:
        return self._carried.end()

    def first_state(self) -> str | None:
        return self._carried.first()

    def reading(self) -> AbstractContextManager[Any]:
        return nullcontext()


@dataclass(frozen=True, slots=True)
class Whole:
    """The only shard is the dataset itself, since a split would change its samples.

    Attributes:
        reason: what in the dataset a split would change.
    """

    dataset: Any
    reason: str
    snapshots: bool = True
    reads_ahead: bool = False
    _itself: list[ByWorkers] = field(default_factory=list)

    @property
    def name(self) -> Literal["shards", "workers"]:
        return "shards"

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        return shards_of_rank(rank, world_size, num_shards=1)

    def open(self, start: ShardState, epoch: int) -> Opened:
        set_stream_epoch(self.dataset, epoch)
        opened = whole(self.dataset)
        if opened is self.dataset:
            if not self._itself:
                self._itself.append(ByWorkers(self.dataset))
            return Opened(self._itself[0].open(start, epoch).samples)
        set_stream_epoch(opened, epoch)
        return Opened(opened)

    def begin_again(self, epoch: int) -> Opened | None:
        return None

    def end(self) -> str | None:
        return None

    def first_state(self) -> str | None:
        return None

    def reading(self) -> AbstractContextManager[Any]:
        # It would divide itself among the workers, of which only this one reads it.
        return without_worker_info()
