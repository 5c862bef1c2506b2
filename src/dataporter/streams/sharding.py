"""Sharding: how an iterable dataset is split into shards, by what it offers (C10)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch.utils.data import IterableDataset

from dataporter._torch import without_worker_info
from dataporter.errors import ConfigurationError
from dataporter.schedule import snapshot
from dataporter.schedule.snapshot import keeps_state
from dataporter.streams.shard import (
    ShardedStream,
    check_members,
    reads_ahead,
    set_stream_epoch,
    snapshots_are_exact,
)

__all__ = ["ByShards", "ByWorkers", "Sharding", "sharding_of", "shards_of_rank"]

# Every shard being read holds an open file and its buffer; this many shards feed 64 ranks.
_MOST_BY_DEFAULT = 64


def sharding_of(dataset: IterableDataset[Any], num_shards: int | None, world_size: int) -> Sharding:
    """The sharding of a stream.

    Args:
        num_shards: number of shards, for a :class:`ShardedStream`; None: all that it has, up to 64.

    Raises:
        ConfigurationError: the stream cannot be split, has fewer shards, or has fewer than there
            are ranks.
    """
    if not isinstance(dataset, ShardedStream):
        if num_shards is not None:
            raise ConfigurationError(
                f"num_shards={num_shards!r}: a {type(dataset).__name__} cannot be split into "
                "shards; give it num_shards and shard(num_shards, index), see "
                "dataporter.ShardedStream, or leave num_shards= out"
            )
        return ByWorkers(dataset, snapshots_are_exact(dataset), reads_ahead(dataset))
    check_members(dataset)
    available = dataset.num_shards
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
    return ByShards(dataset, num_shards, snapshots_are_exact(dataset), reads_ahead(dataset))


class Sharding(Protocol):
    """Splits a stream into shards."""

    @property
    def name(self) -> Literal["shards", "workers"]:
        """``"shards"`` if the dataset splits itself, ``"workers"`` if the workers share it."""

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

    def open(self, shard: int, epoch: int) -> Iterable[Any]:
        """A shard from its first sample on."""

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

    def open(self, shard: int, epoch: int) -> Iterable[Any]:
        set_stream_epoch(self.dataset, epoch)
        opened: Iterable[Any] = self.dataset.shard(num_shards=self.num_shards, index=shard)
        set_stream_epoch(opened, epoch)
        return opened

    def reading(self) -> AbstractContextManager[Any]:
        # A shard that sees that it is in a worker may read only that worker's share of itself.
        return without_worker_info()


@dataclass(slots=True)
class ByWorkers:
    """Each worker iterates over the dataset, which may give every worker its share.

    All passes share one dataset, and an abandoned pass leaves it in the middle. So its first state
    is kept and loaded before each further pass.
    """

    dataset: Any
    snapshots: bool = True
    reads_ahead: bool = False
    _first_states: list[str | None] = field(default_factory=list)

    @property
    def name(self) -> Literal["shards", "workers"]:
        return "workers"

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        return shards_of_rank(rank, world_size, num_workers=num_workers)

    def open(self, shard: int, epoch: int) -> Iterable[Any]:
        if not self._first_states:
            self._first_states.append(_state_of(self.dataset))
        elif (first := self._first_states[0]) is not None:
            self.dataset.load_state_dict(snapshot.decode(first))
        set_stream_epoch(self.dataset, epoch)
        opened: Iterable[Any] = self.dataset
        return opened

    def reading(self) -> AbstractContextManager[Any]:
        return nullcontext()


def _state_of(dataset: Any) -> str | None:
    if not keeps_state(dataset):
        return None
    try:
        return snapshot.encode(dataset.state_dict())
    except Exception:
        # Some datasets have no state before they are iterated. Any other reason raises again after
        # the first batch.
        return None
