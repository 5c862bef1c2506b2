"""A source: something that is iterated over, and the state that it and its iterator give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataporter.errors import StateMismatchError

__all__ = ["Source", "keeps_state"]


class Source:
    """An iterable, and an iterator of it.

    Args:
        iterable: gives the samples; it, its iterator, or both may have ``state_dict`` and
            ``load_state_dict``.
        states: what :meth:`states` gave, to go on from there; without, at the front.

    Attributes:
        iterator: the iterator.

    Raises:
        StateMismatchError: there are states, and nobody to take them.
    """

    def __init__(self, iterable: Any, states: Mapping[str, Any] | None = None) -> None:
        states = states or {}
        self._iterable = iterable
        if "dataset" in states:
            _restore(iterable, states["dataset"])
        self.iterator: Iterator[Any] = iter(iterable)
        if "iterator" in states:
            _restore(self.iterator, states["iterator"])

    def states(self) -> dict[str, Any] | None:
        """The states of what comes next, by whose they are; None where nobody has any."""
        parts = {"dataset": self._iterable}
        # What is its own iterator has one state, and not the same one twice.
        if self.iterator is not self._iterable:
            parts["iterator"] = self.iterator
        found = {name: part.state_dict() for name, part in parts.items() if keeps_state(part)}
        return found or None


def _restore(part: Any, state: Any) -> None:
    if not keeps_state(part):
        raise StateMismatchError(
            f"the state has a snapshot of the stream, and a {type(part).__name__} has no "
            "load_state_dict to take it: resume with the class that the state was saved with"
        )
    part.load_state_dict(state)


def keeps_state(part: Any) -> bool:
    """Whether this, an iterable or an iterator, says where it is and can be put there."""
    return callable(getattr(part, "state_dict", None)) and callable(
        getattr(part, "load_state_dict", None)
    )
