"""The cursor: a loader's place in its stream, and the one object that changes (C1-C3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from dataporter.request import EngineRequest, EpochProgress

__all__ = ["Cursor"]


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
    # Where the pass stood before its last move, and whether that was its end.
    _before: P | None = None
    _ended: bool = False
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
        self._before, self._ended = None, False
        return self.progress

    def in_pass(self, read_ahead: int) -> P:
        """How far the last pass has come for a loop that has not used its last batch yet, or has.

        The loop is in its pass until it begins another, whether it has seen the end or not.
        """
        before = self._before
        return before if before is not None and (read_ahead or self._ended) else self.progress

    def deliver(self, a_pass: object, request: EngineRequest) -> None:
        """Count a batch, unless the pass that delivered it no longer moves the cursor."""
        if a_pass is self._pass:
            self._before = self.progress
            self.progress = self.progress.after(request)
            self.waiting = False

    def finish(self, a_pass: object) -> None:
        """A pass came to its end: the next epoch is waiting."""
        if a_pass is self._pass:
            last = self.progress
            self.jump(self.beginning(last.epoch + 1))
            self._before, self._ended = last, True

    def jump(self, progress: P) -> None:
        """Go on from here at the next pass, whatever is under way now."""
        self.progress, self.origin, self.waiting, self._pass = progress, progress, True, None
        self._before, self._ended = None, False

    def set_epoch(self, epoch: int) -> None:
        """The start of this epoch, unless it is the current one."""
        if epoch != self.progress.epoch:
            self.jump(self.beginning(epoch))
