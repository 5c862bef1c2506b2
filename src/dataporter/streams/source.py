"""A source: an iterable with its iterator, and the states of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataporter.errors import StateMismatchError
from dataporter.schedule.snapshot import keeps_state

__all__ = ["Source"]


class Source:
    """An iterable and an iterator over it.

    Args:
        iterable: yields the samples; it, its iterator, or both may have ``state_dict`` and
            ``load_state_dict``.
        states: what :meth:`states` returned, to resume from there; None starts at the first sample.

    Attributes:
        iterator: yields the next samples.

    Raises:
        StateMismatchError: there are states, but the iterable cannot load them.
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
        """The states of the iterable and its iterator, by part; None if neither has one."""
        parts = {"dataset": self._iterable}
        # An iterable that is its own iterator has one state, which is not saved twice.
        if self.iterator is not self._iterable:
            parts["iterator"] = self.iterator
        found = {name: part.state_dict() for name, part in parts.items() if keeps_state(part)}
        return found or None


def _restore(part: Any, state: Any) -> None:
    if not keeps_state(part):
        raise StateMismatchError(
            f"the state has a snapshot of the stream, but a {type(part).__name__} has no "
            "load_state_dict to load it: resume with the class that the state was saved with"
        )
    part.load_state_dict(state)
