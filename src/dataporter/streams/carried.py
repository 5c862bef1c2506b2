"""Carried: what a dataset brings from one epoch to the next (C2, C3)."""

from __future__ import annotations

from typing import Any

from dataporter.schedule import snapshot
from dataporter.schedule.snapshot import keeps_state

__all__ = ["Carried"]


class Carried:
    """The state of a dataset between its passes.

    A pass that follows a finished one leaves the dataset as it is, as torch's loader does: what it
    counts from epoch to epoch and what the user changes stay. The state is set only where the
    dataset is not at the beginning of its epoch: after an abandoned pass, for a loaded state, and
    in a new worker.

    Args:
        dataset: its ``state_dict`` and ``load_state_dict`` are called, if it has both.
        lasts: whether its state at the end of a pass says anything about the next one.
    """

    def __init__(self, dataset: Any, *, lasts: bool) -> None:
        self._dataset = dataset
        self._lasts = lasts
        self._first: str | None = None
        self._begun = False
        # The state at the end of the last pass; None within a pass, or if there is none.
        self._left: str | None = None
        self._between = True
        self._began_at: str | None = None
        self._resumed = False

    def first(self) -> str | None:
        """The state before this process read the dataset."""
        return self._first if self._begun else self._state()

    def begin(self, beginning: str | None, *, resumes: bool) -> str | None:
        """Set the dataset to the beginning of an epoch, unless it is there.

        Args:
            beginning: the state at the beginning of the epoch; None for the first state.
            resumes: a snapshot from within the epoch is loaded next, in place of this state.

        Returns:
            The state at the beginning of the epoch.
        """
        fresh = not self._begun
        if fresh:
            # Some datasets, asked for their state, open the iterator that the next iter() returns,
            # and a state that is loaded after that has no effect.
            self._first = self._left = beginning if resumes else self._state()
            self._begun = True
        wanted = self._first if beginning is None else beginning
        if resumes:
            pass
        elif not (self._between and self._left == wanted):
            self._load(wanted)
        elif not fresh:
            # The user may have changed something since.
            wanted = self._state()
            if self._resumed:
                # Many datasets keep where a loaded state let them start.
                self._load(wanted)
        self._between, self._began_at, self._resumed = False, wanted, resumes
        return wanted

    def begin_again(self) -> bool:
        """Set the dataset to its first state, after a pass that yielded nothing.

        A state from the end of a pass leads many datasets to that end.

        Returns:
            Whether the pass had begun at another state.
        """
        if self._began_at == self._first:
            return False
        self._load(self._first)
        self._began_at = self._first
        return True

    def end(self) -> str | None:
        """Take note that a pass has ended; returns the state from which the next one begins."""
        if not self._lasts:
            return None
        self._left, self._between = self._state(), True
        return self._left

    def _state(self) -> str | None:
        if not keeps_state(self._dataset):
            return None
        try:
            return snapshot.encode(self._dataset.state_dict())
        except Exception:
            # Some datasets have no state before they are iterated. Any other reason raises again
            # with the first snapshot.
            return None

    def _load(self, state: str | None) -> None:
        if state is not None:
            self._dataset.load_state_dict(snapshot.decode(state))
