"""A failure: what is kept of a sample that raised, in values that a state can hold."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["Failure", "Index", "failure_of"]

# An index as JSON can hold it; of a stream, the numbers of shard and sample.
Index: TypeAlias = int | str | tuple[Any, ...]

# Characters: enough for a message or a path, and few enough for many of them in a state.
_LONGEST = 160


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that failed, as ``loader.failures`` lists it.

    A sample that fails again with an error of the same type adds to ``count``; the other
    attributes stay those of its first failure.

    Attributes:
        index: the index of the sample in the dataset; of a stream, (shard, offset). An index that
            is neither a number, a string nor a tuple of these is its ``repr``.
        name: of the sample, where the dataset has one: the result of ``dataset.sample_name(index)``
            or a path in its ``samples``, ``imgs``, ``files`` or ``paths``.
        epoch, step, position: of the failure; the step counts the batches of this rank. Of a
            stream, the position is the offset in the shard.
        error: the type of the exception.
        message: its text, at most 160 characters.
        count: how often the sample failed in this way.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> class Half:
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return index / (index - 1)
        >>> def zero(exception, index):
        ...     return 0.0
        >>> loader = ResumableDataLoader(Half(), 4, on_error=zero)
        >>> next(iter(loader)).tolist()
        [-0.0, 0.0, 2.0, 1.5]
        >>> failure = loader.failures[0]
        >>> failure.index, failure.error, failure.message, failure.count
        (1, 'ZeroDivisionError', 'division by zero', 1)
    """

    index: Index
    name: str | None
    epoch: int
    step: int
    position: int
    error: str
    message: str
    count: int = 1

    def __str__(self) -> str:
        name = "" if self.name is None else f" ({self.name})"
        text = f": {self.message}" if self.message else ""
        times = "" if self.count == 1 else f", {self.count:,} times"
        return (
            f"sample index {self.index!r}{name} (epoch {self.epoch}, step {self.step}, position "
            f"{self.position}): {self.error}{text}{times}"
        )


def failure_of(
    error: Exception, index: Any, name: str | None, *, epoch: int, step: int, position: int
) -> Failure:
    """The failure of one sample.

    Args:
        error: what reading it raised.
        index, epoch, step, position: of the sample, as it was asked for.
        name: see :class:`Failure`.
    """
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    try:
        message = str(error)
    except Exception:  # an exception's own __str__ may raise
        message = ""
    if name is not None:
        # The end of a path says more than its start.
        name = _printable(name)
        name = name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"
    return Failure(
        _plain(index),
        name,
        epoch,
        step,
        position,
        _shortened(f"{module}{kind.__qualname__}"),
        _shortened(message),
    )


def _plain(index: Any) -> Index:
    """An index in values that JSON gives back as they were."""
    if type(index) is str:
        return _shortened(index)
    if isinstance(index, tuple | list):
        parts = tuple(_plain(part) for part in index[:8])
        return parts if len(index) <= len(parts) else _shortened(repr(index))
    try:
        return operator.index(index)
    except TypeError:
        return _shortened(repr(index))


def _shortened(text: str) -> str:
    text = _printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _printable(text: str) -> str:
    # A path that is no UTF-8 has characters that cannot be printed or written.
    return text.encode("utf-8", "backslashreplace").decode()
