"""Shards: the parts of a stream that are read, and resumed, on their own (C10)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dataporter import hf
from dataporter.checks import given
from dataporter.errors import ConfigurationError

__all__ = [
    "ShardState",
    "ShardedStream",
    "always_draws",
    "contents_of",
    "draws_in_threads",
    "is_from_hugging_face",
    "is_sharded",
    "node_of",
    "reads_ahead",
    "set_stream_epoch",
    "snapshots_are_exact",
    "unsplittable",
    "whole",
    "without_node",
]


@runtime_checkable
class ShardedStream(Protocol):
    """A stream that can be split into shards, each of which is read on its own.

    A ``torch.utils.data.IterableDataset`` with these two members resumes exactly with any number
    of workers and ranks. Hugging Face's ``IterableDataset`` has them.

    A shard is an iterable. If it or its iterator has ``state_dict`` and ``load_state_dict``, a
    resume loads that state; otherwise it rereads and discards the samples already delivered from
    this shard. If the stream or the shard has ``set_epoch``, the loader calls it with the epoch.

    A stream whose samples depend on how it is split (it takes the first 100, say) names the reason
    in an attribute ``unsplittable``. By default it is then read as a whole, by one worker. A stream
    that does not repeat its samples and seldom draws from a global generator has ``draws = True``.

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


def is_sharded(stream: Any, otherwise: str = "") -> bool:
    """Whether a stream can be split into shards: it is a :class:`ShardedStream`.

    Other classes may have attributes of these names that mean something else, so the number is
    looked at, and how ``shard`` can be called. By name, since libraries differ in which of the two
    arguments comes first; the wrong way round, some samples would come twice, and others never.

    Args:
        otherwise: the end of a message: what to write if the members mean something else.

    Raises:
        ConfigurationError: the members are almost those of a :class:`ShardedStream`; the message
            says what to write.
    """
    shard, number = getattr(stream, "shard", None), getattr(stream, "num_shards", None)
    if not callable(shard) or number is None:
        return False
    by_name = _refusal(shard, num_shards=1, index=0)
    by_position = _refusal(shard, 1, 0)
    kind = type(stream).__name__
    if callable(number):
        if by_name is None or by_position is None:
            raise ConfigurationError(
                f"{kind}.num_shards is a method: make it a property (@property above its def)"
                f"{otherwise}"
            )
        return False
    counts = isinstance(number, int) and not isinstance(number, bool) and number >= 1
    if by_name is None:
        if not counts:
            raise ConfigurationError(
                f"{kind}.{given('num_shards', number)}: expected a whole number of 1 or more"
                f"{otherwise}"
            )
        return True
    signature = inspect.signature(shard)
    if counts and (by_position is None or {"num_shards", "index"} <= set(signature.parameters)):
        raise ConfigurationError(
            f"{kind}.shard{signature} is called as shard(num_shards=..., "
            f"index=...), and cannot be ({by_name}): write def shard(self, num_shards, index), "
            f"where index counts from 0{otherwise}"
        )
    return False


def _refusal(function: Callable[..., Any], *values: int, **named: int) -> str | None:
    """Why a function cannot be called so; None if it can be."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function of C may have none
        return None
    try:
        signature.bind(*values, **named)
    except TypeError as error:
        return str(error)
    return None


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
        digest, digest_offset: a digest of the samples from ``snapshot_offset`` up to that offset,
            see ``digest.py``, which a resume compares; of none if the offset is not larger.
        beginning: the state of a dataset that a worker iterates over, at the beginning of the
            epoch, or once the shard has ended, of the next one; None: its first state.
    """

    shard: int
    batches: int = 0
    offset: int = 0
    ended: bool = False
    snapshot_offset: int = 0
    snapshot: str | None = None
    digest: int = 0
    digest_offset: int = 0
    beginning: str | None = None

    @property
    def without_digest(self) -> ShardState:
        """The same state, which a resume does not compare."""
        return self._replace(digest=0, digest_offset=0)


def set_stream_epoch(stream: Any, epoch: int) -> None:
    """Call the stream's ``set_epoch``, if it has one."""
    set_epoch = getattr(stream, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)


def snapshots_are_exact(stream: Any) -> bool:
    """Whether the states of a stream's shards resume at the exact next sample."""
    if is_from_hugging_face(stream):
        return hf.snapshots_are_exact(stream)
    return _declared(stream, "snapshots_are_exact", otherwise=True)


def reads_ahead(stream: Any) -> bool:
    """Whether a stream may compute several samples at once, under the seed of one of them."""
    if is_from_hugging_face(stream):
        return hf.reads_ahead(stream)
    return _declared(stream, "reads_ahead", otherwise=False)


def draws_in_threads(stream: Any) -> bool:
    """Whether a stream draws its random numbers in threads, which the loader cannot seed."""
    if is_from_hugging_face(stream):
        return hf.draws_in_threads(stream)
    return _declared(stream, "draws_in_threads", otherwise=False)


def always_draws(stream: Any) -> bool:
    """Whether all generators are seeded before each sample of a stream, whatever it draws from."""
    return draws_in_threads(stream) or _declared(stream, "draws", otherwise=False)


def unsplittable(stream: Any) -> str | None:
    """What in a stream a split into shards would change; None if nothing."""
    if is_from_hugging_face(stream):
        return hf.unsplittable(stream)
    reason = getattr(stream, "unsplittable", None)
    return reason if isinstance(reason, str) and reason else None


def whole(stream: Any) -> Any:
    """The stream as one reader reads it, with a separate position where possible."""
    if is_from_hugging_face(stream):
        return hf.alone(stream)
    of_its_own = getattr(stream, "__whole__", None)
    return stream if of_its_own is None else of_its_own()


def node_of(stream: Any) -> hf.Node | None:
    """The node whose part of the data a stream is; None if it is all of them."""
    if is_from_hugging_face(stream):
        return hf.node_of(stream)
    node = getattr(stream, "__node__", None)
    return None if node is None else node()


def without_node(stream: Any) -> Any:
    """The stream of all nodes, of which :func:`node_of` gave one."""
    if is_from_hugging_face(stream):
        return hf.without_node(stream)
    return stream.__without_node__()


def contents_of(stream: Any) -> list[str]:
    """A text for each data source of a stream from Hugging Face; none where nothing is known."""
    if is_from_hugging_face(stream):
        return hf.contents_of(stream)
    contents = getattr(stream, "__contents__", None)
    return [] if contents is None else contents()


def is_from_hugging_face(stream: Any) -> bool:
    """Whether a stream is of the library ``datasets``."""
    return any(
        (kind.__module__, kind.__name__) == ("datasets.iterable_dataset", "IterableDataset")
        for kind in type(stream).__mro__
    )


def _declared(stream: Any, name: str, *, otherwise: bool) -> bool:
    """The value of a boolean attribute of a stream that declares it."""
    value = getattr(stream, name, None)
    return value if isinstance(value, bool) else otherwise
