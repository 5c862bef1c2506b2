"""The schedule: what a rank asks for over an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dataporter.schedule.progress import Progress
from dataporter.schedule.request import Scheduled

__all__ = [
    "Requests",
    "Schedule",
]


class Schedule(Protocol):
    """Where a loader's requests come from: an order and a plan, or a sampler of the user's own."""

    def requests(self, progress: Progress, seed: int) -> Iterator[Scheduled]:
        """What is left of the epoch, batch by batch."""

    def ahead(self, epoch: int, seed: int) -> Requests | None:
        """A later epoch, if it does no harm to draw its requests early."""

    def steps(self, progress: Progress) -> int:
        """How many batches that is."""

    def epoch_steps(self) -> int:
        """How many batches a whole epoch has, on the ranks that have most."""

    def progress_at(self, epoch: int, step: int, seed: int) -> Progress:
        """The progress of an epoch when ``step`` of its batches have been delivered."""

    def samples_at(self, progress: Progress, step: int, seed: int) -> NDArray[np.int64] | list[Any]:
        """Indices of a batch of an epoch that goes, or went, on from ``progress``."""

    def padding(self, progress: Progress, step: int) -> NDArray[np.bool_]:
        """Which samples of that batch are there for a second time, to even the ranks."""

    def within(self, progress: Progress) -> Progress:
        """The progress, cut down to what an epoch can have come to."""

    def place_at(self, progress: Progress, seed: int) -> tuple[int, int]:
        """Step and digest at ``progress.position``, as this source would count them."""


@dataclass(frozen=True, slots=True)
class Requests:
    """What a pass asks for, drawn anew by each ``iter()``. Equal ones give the same requests."""

    source: Schedule
    progress: Progress
    seed: int

    def __iter__(self) -> Iterator[Scheduled]:
        return self.source.requests(self.progress, self.seed)
