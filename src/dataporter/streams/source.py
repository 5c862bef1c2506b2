"""A source: an iterable with its iterator, and the states of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

from dataporter.errors import StateMismatchError, warn
from dataporter.schedule import snapshot
from dataporter.schedule.snapshot import keeps_state, needed_arguments

__all__ = ["Source", "warn_of_arguments"]


class Source:
    """An iterable and an iterator over it.

    Args:
        iterable: yields the samples; it, its iterator, or both may have ``state_dict`` and
            ``load_state_dict``.
        states: what :meth:`states` returned, to resume from there; None starts at the first sample.
        seed: seeds the global generators; called before ``iter()``, so that what that draws does
            not depend on whether a state was loaded.

    Attributes:
        iterator: yields the next samples.
        keeps_state: whether :meth:`states` has any.

    Raises:
        StateMismatchError: there are states, but the iterable cannot load them.
    """

    def __init__(
        self,
        iterable: Any,
        states: Mapping[str, Any] | None = None,
        seed: Callable[[], None] = lambda: None,
    ) -> None:
        states = states or {}
        if "dataset" in states:
            _restore(iterable, states["dataset"])
        seed()
        self.iterator: Iterator[Any] = iter(iterable)
        if "dataset" in states and not _is_at(iterable, states["dataset"]):
            # Its iter() starts at the front, as that of many datasets which are their own iterator.
            _restore(iterable, states["dataset"])
        if "iterator" in states:
            _restore(self.iterator, states["iterator"])
        parts = {"dataset": iterable}
        # An iterable that is its own iterator has one state, which is not saved twice.
        if self.iterator is not iterable:
            parts["iterator"] = self.iterator
            warn_of_arguments(self.iterator)
        self._parts = {name: part for name, part in parts.items() if keeps_state(part)}
        self.keeps_state = bool(self._parts)

    @property
    def samples_since_state(self) -> int | None:
        """Number of samples after the state; None where that is always the present one."""
        return getattr(self.iterator, "samples_since_state", None)

    def states(self) -> dict[str, Any] | None:
        """The states of the iterable and its iterator, by part; None if neither has one."""
        return {name: part.state_dict() for name, part in self._parts.items()} or None


def warn_of_arguments(part: Any) -> None:
    """Warn of a state that only the part's own library can save or load."""
    if (method := needed_arguments(part)) is not None:
        kind = type(part).__name__
        warn(
            f"{kind}.{method} needs arguments that only its own library knows, so the loader takes "
            f"no states of a {kind}: a resume rereads the delivered samples and discards them. To "
            "avoid that, give it state_dict() and load_state_dict(state) in a subclass that passes "
            "those arguments",
            RuntimeWarning,
        )


def _restore(part: Any, state: Any) -> None:
    if not keeps_state(part):
        raise StateMismatchError(
            f"the state has a snapshot of the stream, but a {type(part).__name__} has no "
            "load_state_dict to load it: resume with the class that the state was saved with"
        )
    # A copy, since a dataset may keep it and change it.
    part.load_state_dict(deepcopy(state))


def _is_at(part: Any, state: Any) -> bool:
    try:
        return snapshot.encode(part.state_dict()) == snapshot.encode(state)
    except Exception:  # some have no state until the first sample is read
        return False
