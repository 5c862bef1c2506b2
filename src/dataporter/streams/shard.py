"""Shards: the parts of a stream that are read, and resumed, on their own (C10)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dataporter import hf
from dataporter.checks import given
from dataporter.errors import ConfigurationError

__all__ = [
    "ShardState",
    "ShardedStream",
    "check_members",
    "reads_ahead",
    "set_stream_epoch",
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
        """Shard ``index`` of ``num_shards``: together they hold every sample exactly once.

        Both are passed by these names.
        """

    def __iter__(self) -> Any: ...


def check_members(stream: ShardedStream) -> None:
    """Check that a stream's ``num_shards`` is a number, and that ``shard`` takes both by name.

    By name, since libraries differ in which of the two comes first; the wrong way round, some
    samples would come twice, and others never.

    Raises:
        ConfigurationError: the message says what to write.
    """
    kind, number = type(stream).__name__, stream.num_shards
    if callable(number):
        raise ConfigurationError(
            f"{kind}.num_shards is a method: make it a property (@property above its def)"
        )
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigurationError(
            f"{kind}.{given('num_shards', number)}: expected a whole number of 1 or more"
        )
    try:
        signature = inspect.signature(stream.shard)
    except (TypeError, ValueError):  # a function of C may have none
        return
    try:
        signature.bind(num_shards=1, index=0)
    except TypeError as error:
        raise ConfigurationError(
            f"{kind}.shard{signature} is called as shard(num_shards=..., index=...), and cannot be "
            f"({error}): write def shard(self, num_shards, index), where index counts from 0"
        ) from error


class ShardState(NamedTuple):
    """The state of one shard after a batch.

    Attributes:
        shard: number of the shard.
        batches: number of its batches so far.
        offset: number of its samples so far, which is the offset of the next one.
        ended: whether it has no more samples.
        snapshot_offset: the offset that ``snapshot`` belongs to; a resume rereads the samples from
            there to ``offset``.
        snapshot: the state of the dataset, the shard or their iterator, see ``snapshot.py``; None
            resumes from the start of the shard.
    """

    shard: int
    batches: int = 0
    offset: int = 0
    ended: bool = False
    snapshot_offset: int = 0
    snapshot: str | None = None


def set_stream_epoch(stream: Any, epoch: int) -> None:
    """Call the stream's ``set_epoch``, if it has one."""
    set_epoch = getattr(stream, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)


def snapshots_are_exact(stream: Any) -> bool:
    """Whether the states of a stream's shards resume at the exact next sample."""
    if _is_from_hugging_face(stream):
        return hf.snapshots_are_exact(stream)
    return _declared(stream, "snapshots_are_exact", otherwise=True)


def reads_ahead(stream: Any) -> bool:
    """Whether a stream may compute several samples at once, under the seed of one of them."""
    if _is_from_hugging_face(stream):
        return hf.reads_ahead(stream)
    return _declared(stream, "reads_ahead", otherwise=False)


def _is_from_hugging_face(stream: Any) -> bool:
    return type(stream).__module__.partition(".")[0] == "datasets"


def _declared(stream: Any, name: str, *, otherwise: bool) -> bool:
    """The value of a boolean attribute of a stream that declares it."""
    value = getattr(stream, name, None)
    return value if isinstance(value, bool) else otherwise
