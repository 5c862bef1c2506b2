"""The schedule: a rank's requests over an epoch, as protocols of a few verbs each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dataporter.schedule.progress import Progress
from dataporter.schedule.request import Scheduled

__all__ = ["Lookup", "PassRequests", "Recount", "Requests", "Schedule"]

R = TypeVar("R")


class PassRequests(Iterable[Scheduled], Protocol):
    """The requests of a pass, drawn anew by each ``iter()``."""

    def batches(self, replies: Iterator[R]) -> Iterator[R]:
        """Those of an engine's replies to these requests that hold a batch."""

    def limited(self, steps: int) -> PassRequests:
        """The same requests, but only so many batches."""


class Schedule(Protocol):
    """A rank's requests over an epoch, of an order and a plan, a custom sampler or a stream."""

    def requests(self, progress: Any, seed: int) -> PassRequests:
        """The rest of the epoch, batch by batch."""

    def ahead(self, progress: Any, seed: int) -> PassRequests | None:
        """The epoch after that of a progress; None where it cannot be drawn early."""

    def steps(self, progress: Any) -> int:
        """Number of batches in the rest of the epoch."""


class Lookup(Protocol):
    """Answers questions about any step of any epoch without reading data."""

    def check(self, epoch: int, step: int) -> None:
        """Raise where it is known beforehand that ``progress_at`` has no answer."""

    def progress_at(self, epoch: int, step: int, seed: int) -> Any:
        """The progress of an epoch when ``step`` of its batches have been delivered."""

    def samples_at(self, origin: Any, step: int, seed: int) -> NDArray[np.int64] | list[Any]:
        """Indices of a batch of an epoch that was resumed at ``origin``."""

    def padding(self, origin: Any, step: int) -> NDArray[np.bool_]:
        """Which samples of that batch are repeats, added as padding."""

    def seen(self, progress: Any, origin: Any, seed: int) -> NDArray[np.int64]:
        """The indices of an epoch's samples that were delivered, over all ranks."""

    def unseen(self, progress: Any, origin: Any, seed: int) -> NDArray[np.int64]:
        """The others, in the order in which they would come."""


class Recount(Protocol):
    """Checks a saved progress against what an epoch of this schedule can be."""

    def epoch_steps(self, epoch: int) -> int:
        """Batches of a whole epoch, on the ranks with the most."""

    def progress_at(self, epoch: int, step: int, seed: int) -> Progress:
        """The progress of an epoch when ``step`` of its batches have been delivered."""

    def within(self, progress: Progress) -> Progress:
        """The progress, limited to the length of an epoch."""

    def counted_at(self, progress: Progress, seed: int) -> tuple[int, int]:
        """Step and digest at ``progress.position``; the step is -1 where none begins there."""


class Draws(Protocol):
    """A schedule whose requests can be drawn from any progress on."""

    def scheduled(self, progress: Progress, seed: int) -> Iterator[Scheduled]: ...


@dataclass(frozen=True, slots=True)
class Requests:
    """The requests of a pass by index. Equal ones give the same requests."""

    schedule: Draws
    progress: Progress
    seed: int
    limit: int | None = None

    def __iter__(self) -> Iterator[Scheduled]:
        return islice(self.schedule.scheduled(self.progress, self.seed), self.limit)

    def batches(self, replies: Iterator[R]) -> Iterator[R]:
        """All of the replies."""
        return replies

    def limited(self, steps: int) -> Requests:
        return replace(self, limit=steps)
