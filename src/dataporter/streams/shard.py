"""Shards: what of a stream is read one sample after another, and who cuts it so (C10)."""

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
    """A stream that can be cut into shards, each of which is read on its own.

    A ``torch.utils.data.IterableDataset`` with these two members goes on exactly after a resume
    with any number of workers and ranks. Hugging Face's ``IterableDataset`` has them.

    A shard is an iterable. If it, or its iterator, has ``state_dict`` and ``load_state_dict``, a
    resume goes there at once; otherwise the samples of this shard that were delivered are read
    again, and thrown away. ``set_epoch(epoch)`` is called on the stream and on the shard where they
    have it.

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
        """Into how many shards it can be cut at most."""

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """Shard ``index`` of ``num_shards``, at its front: together they have every sample once."""

    def __iter__(self) -> Any: ...


class ShardState(NamedTuple):
    """How far a shard was read.

    Attributes:
        shard: its number.
        batches: how many batches came of it.
        offset: how many samples: the offset of the one that comes next.
        ended: there is none.
        marked: the offset that ``snapshot`` belongs to; samples from there to ``offset`` are read
            again, and thrown away.
        snapshot: the state of the dataset, the shard or their iterator, see ``snapshot.py``.
            None: reading begins at the front.
    """

    shard: int
    batches: int = 0
    offset: int = 0
    ended: bool = False
    marked: int = 0
    snapshot: str | None = None


class Sharding(Protocol):
    """How a stream comes in shards."""

    @property
    def name(self) -> Literal["shards", "workers"]:
        """What the state calls it."""

    @property
    def dataset(self) -> Any: ...

    @property
    def snapshots(self) -> bool:
        """Whether the states that the dataset gives are to be relied on."""

    @property
    def reads_ahead(self) -> bool:
        """Whether it may compute samples together with others, so that what they draw is theirs."""

    def shards(self, rank: int, world_size: int, num_workers: int) -> range:
        """The shards that a rank reads."""

    def open(self, shard: int, epoch: int) -> Iterable[Any]:
        """A shard, before anything was read."""

    def reading(self) -> AbstractContextManager[Any]:
        """Entered while a shard is read."""


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
    """The dataset cuts itself; every shard can be read by any worker of any rank."""

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
        # A shard that saw that it is in a worker would share itself out among the workers.
        return without_worker_info()


@dataclass(slots=True)
class ByWorkers:
    """Each worker iterates over the whole dataset, which gives each one its share if it likes.

    There is one of it for all passes, and one that was left has left it in the middle. So the state
    that it was found in is kept, and is what it begins anew with.
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
        # It has none before it is iterated over. If it has a better reason, that will be raised
        # when the first batch was read.
        return None


def set_stream_epoch(stream: Any, epoch: int) -> None:
    """Let a stream know which epoch is read, if it cares."""
    set_epoch = getattr(stream, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)


def snapshots_are_exact(stream: Any) -> bool:
    """Whether the states that a stream's shards give lead to the very next sample."""
    if _is_of_hugging_face(stream):
        return hf.snapshots_are_exact(stream)
    return _says(stream, "snapshots_are_exact", otherwise=True)


def reads_ahead(stream: Any) -> bool:
    """Whether a stream may compute samples together with others, so that they draw together."""
    if _is_of_hugging_face(stream):
        return hf.reads_ahead(stream)
    return _says(stream, "reads_ahead", otherwise=False)


def _is_of_hugging_face(stream: Any) -> bool:
    return type(stream).__module__.partition(".")[0] == "datasets"


def _says(stream: Any, name: str, *, otherwise: bool) -> bool:
    """What a stream that knows itself says of itself."""
    said = getattr(stream, name, None)
    return said if isinstance(said, bool) else otherwise
