"""Shards: the parts of a stream that are read, and resumed, on their own (C10)."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from dataporter import hf
from dataporter._torch import without_worker_info
from dataporter.streams import snapshot
from dataporter.streams.source import keeps_state

__all__ = [
    "ByShards",
    "ByWorkers",
    "ShardState",
    "ShardedStream",
    "Sharding",
    "reads_ahead",
    "set_stream_epoch",
    "shards_of_rank",
    "snapshots_are_exact",
]


@runtime_checkable
class ShardedStream(Protocol):
    """A stream that can be split into shards, each of which is read on its own.

    A ``torch.utils.data.IterableDataset`` with these two members resumes exactly with any number
    of workers and ranks. Hugging Face's ``IterableDataset`` has them.

    A shard is an iterable. If it or its iterator has ``state_dict`` and ``load_state_dict``, a
    resume loads that state; otherwise it rereads and discards the samples already delivered from
    this shard. If the stream or the shard has ``set_epoch``, the loader calls it with the epoch.

    Example:
        >>> from torch.utils.data import IterableDataset
        >>> class Files(IterableDataset):
        ...     files = {"a.txt": "three short lines", "b.txt": "two lines"}
        ...     @property
        ...     def num_shards(self):
        ...         return len(self.files)
        ...     def shard(self, num_shards, index):
        ...         names = list(self.files)[index::num_shards]
        ...         return [word for name in names for word in self.files[name].split()]
        ...     def __iter__(self):
        ...         return iter(self.shard(1, 0))
        >>> isinstance(Files(), ShardedStream)
        True
        >>> from dataporter import ResumableDataLoader
        >>> list(ResumableDataLoader(Files(), batch_size=2))
        [['three', 'short'], ['two', 'lines'], ['lines']]
    """

    @property
    def num_shards(self) -> int:
        """The largest number of shards that the stream can be split into."""

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """Shard ``index`` of ``num_shards``: together they hold every sample exactly once."""

    def __iter__(self) -> Any: ...


class ShardState(NamedTuple):
    """The state of one shard after a batch.

    Attributes:
        shard: number of the shard.
        batches: number of its batches so far.
        offset: number of its samples so far, which is the offset of the next one.
        ended: whether it has no more samples.
        marked: the offset of ``snapshot``; a resume rereads the samples from here to ``offset``.
        snapshot: the state of the dataset, the shard or their iterator, see ``snapshot.py``; None
            resumes from the start of the shard.
    """

    shard: int
    batches: int = 0
    offset: int = 0
    ended: bool = False
    marked: int = 0
    snapshot: str | None = None


class Sharding(Protocol):
    """Splits a stream into shards."""

    @property
    def name(self) -> Literal["shards", "workers"]:
        """The kind, as it is named in the state's identity."""

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
    _found: list[str | None] = field(default_factory=list)

    @property
    def name(self) -> Literal["shards", "workers"]:
        return "workers"

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        return shards_of_rank(rank, world_size, num_workers=num_workers)

    def open(self, shard: int, epoch: int) -> Iterable[Any]:
        if not self._found:
            self._found.append(_state_of(self.dataset))
        elif (found := self._found[0]) is not None:
            self.dataset.load_state_dict(snapshot.decode(found))
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


def set_stream_epoch(stream: Any, epoch: int) -> None:
    """Call the stream's ``set_epoch``, if it has one."""
    set_epoch = getattr(stream, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)


def snapshots_are_exact(stream: Any) -> bool:
    """Whether the states of a stream's shards resume at the exact next sample."""
    if _is_of_hugging_face(stream):
        return hf.snapshots_are_exact(stream)
    return _says(stream, "snapshots_are_exact", otherwise=True)


def reads_ahead(stream: Any) -> bool:
    """Whether a stream may compute several samples at once, under the seed of one of them."""
    if _is_of_hugging_face(stream):
        return hf.reads_ahead(stream)
    return _says(stream, "reads_ahead", otherwise=False)


def _is_of_hugging_face(stream: Any) -> bool:
    return type(stream).__module__.partition(".")[0] == "datasets"


def _says(stream: Any, name: str, *, otherwise: bool) -> bool:
    """The value of a boolean attribute of a stream that declares it."""
    said = getattr(stream, name, None)
    return said if isinstance(said, bool) else otherwise
