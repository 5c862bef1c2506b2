"""The cursor: a loader's place in its stream, and the one object that changes (C1-C3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from dataporter.schedule.progress import EpochProgress

__all__ = ["MOST_READ_AHEAD", "Cursor"]

MOST_READ_AHEAD = 3

P = TypeVar("P", bound=EpochProgress)


@dataclass(slots=True)
class Cursor(Generic[P]):
    """Where the next batch comes from.

    Attributes:
        beginning: the progress of an epoch of which nothing was delivered.
        progress: what was delivered of the current epoch.
        origin: from where on this epoch goes by the present batch size and world: the place that
            the last pass began at, or was set to since.
        seed: the loader's; None until it is needed for the first time.
        generator: what the seed is drawn from then; by default torch's own.
        waiting: the next pass goes on from ``progress``; otherwise a pass has begun on this epoch,
            and the next one starts the epoch after it.
    """

    progress: P
    origin: P
    beginning: Callable[[int], P]
    seed: int | None = None
    generator: torch.Generator | None = None
    waiting: bool = True
    # Where the pass has stood, so many moves back, the last place last; then how often it has said
    # that it is over, and which it was.
    _places: tuple[P, ...] = ()
    _ends: int = 0
    _ended: object | None = None
    # The pass that moves the cursor: the last that began, unless somebody has set the place since.
    _pass: object | None = None

    @classmethod
    def at_first_epoch(
        cls,
        beginning: Callable[[int], P],
        seed: int | None,
        generator: torch.Generator | None = None,
    ) -> Cursor[P]:
        """A cursor that nothing has moved."""
        first = beginning(0)
        return cls(first, first, beginning, seed, generator)

    @property
    def moved(self) -> bool:
        """Whether it stands elsewhere than where it began."""
        return not (self.waiting and self.progress == self.beginning(0))

    def settled_seed(self) -> int:
        """The seed; drawn when it is first needed, where torch's loader would draw as well."""
        if self.seed is None:
            drawn = torch.empty((), dtype=torch.int64).random_(generator=self.generator)
            self.seed = int(drawn)
        return self.seed

    def upcoming(self) -> P:
        """Where a pass that starts now begins."""
        return self.progress if self.waiting else self.beginning(self.progress.epoch + 1)

    def begin(self, a_pass: object) -> P:
        """Where a pass that starts now begins; from here on it moves the cursor."""
        self.progress = self.origin = self.upcoming()
        self._pass, self.waiting = a_pass, True
        # The end of a pass is where the next one begins, for who has still to use what came before.
        self._places = (*(self._places[:-1] if self._ends else ()), self.progress)
        self._ends, self._ended = 0, None
        return self.progress

    def in_pass(self, read_ahead: int) -> P:
        """How far the last pass has come for a loop that has not used what it asked for last.

        The loop is in its pass until it begins another, whether it has seen the end or not.

        Args:
            read_ahead: how many times it has asked, up to ``MOST_READ_AHEAD``: for a batch, or for
                the end.
        """
        places = self._places or (self.progress,)
        return places[max(0, len(places) - 1 - max(0, read_ahead - self._ends))]

    def deliver(self, a_pass: object, delivers: Any) -> None:
        """Count what a batch delivers, unless its pass no longer moves the cursor."""
        if a_pass is self._pass:
            self.progress = self.progress.after(delivers)
            self._places = (*self._places[-MOST_READ_AHEAD:], self.progress)
            self.waiting = False

    def finish(self, a_pass: object) -> None:
        """A pass came to its end, or says so again: the next epoch is waiting."""
        if a_pass is self._pass:
            places = self._places
            self.jump(self.beginning(self.progress.epoch + 1))
            self._places, self._ends, self._ended = places, 1, a_pass
        elif a_pass is self._ended:
            self._ends += 1

    def jump(self, progress: P) -> None:
        """Go on from here at the next pass, whatever is under way now."""
        self.progress, self.origin, self.waiting, self._pass = progress, progress, True, None
        self._places, self._ends, self._ended = (), 0, None

    def set_epoch(self, epoch: int) -> None:
        """The start of this epoch, unless it is the current one."""
        if epoch != self.progress.epoch:
            self.jump(self.beginning(epoch))
