"""The mixed schedule: a planned schedule for each epoch of a mixture, whose lengths may differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dataporter.orders.mixture.order import MixtureOrder
from dataporter.orders.mixture.phase import Phase
from dataporter.schedule.plan import Plan, Tail
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.schedule.request import Scheduled
from dataporter.schedule.schedule import Requests

__all__ = ["MixedSchedule"]


@dataclass(frozen=True, slots=True)
class MixedSchedule:
    """A rank's requests over a mixture: of a :class:`PlannedSchedule` for each epoch.

    A progress carries the mixture's phases, as far as they are known; one without any stands at the
    beginning of the first.
    """

    order: MixtureOrder
    batch_size: int
    rank: int
    world_size: int
    tail: Tail

    def knowing(self, phases: tuple[Phase, ...] | None) -> MixedSchedule:
        """The schedule of a run that has had these phases."""
        if phases is None or phases == self.order.phases:
            return self
        return replace(self, order=replace(self.order, phases=phases))

    def at(self, progress: Progress) -> MixedSchedule:
        """The schedule of the run that a progress is of."""
        return self.knowing(progress.mixture)

    def of_epoch(self, progress: Progress) -> PlannedSchedule:
        """The schedule of the epoch that a progress is in."""
        return self.at(progress).planned(progress.epoch)

    def planned(self, epoch: int) -> PlannedSchedule:
        """The requests of one epoch."""
        length = self.order.length_of(epoch)
        # A state knows nothing of an epoch before the last change in it, so padding repeats what
        # comes after that.
        changes = [p.position for p in self.order.phases if p.epoch == epoch]
        repeats_from = max((each for each in changes if each < length), default=0)
        plan = Plan(length, self.batch_size, self.world_size, self.tail, repeats_from=repeats_from)
        return PlannedSchedule(self.order, plan, self.rank, self.order.length)

    def requests(self, progress: Progress, seed: int) -> Requests:
        return Requests(self, progress, seed)

    def scheduled(self, progress: Progress, seed: int) -> Iterator[Scheduled]:
        return self.of_epoch(progress).scheduled(progress, seed)

    def ahead(self, progress: Progress, seed: int) -> Requests:
        return Requests(self, progress.start_of(progress.epoch + 1), seed)

    def steps(self, progress: Progress) -> int:
        return self.of_epoch(progress).steps(progress)

    def epoch_steps(self, epoch: int) -> int:
        return self.planned(epoch).epoch_steps(epoch)

    def check(self, epoch: int, step: int) -> None:
        self.planned(epoch).check(epoch, step)

    def progress_at(self, epoch: int, step: int, seed: int) -> Progress:
        progress = self.planned(epoch).progress_at(epoch, step, seed)
        return progress._replace(mixture=self._known)

    def progress_after(self, origin: Progress, steps: int) -> Progress:
        progress = self.of_epoch(origin).progress_after(origin, steps)
        return progress._replace(mixture=origin.mixture)

    def samples_at(self, origin: Progress, step: int, seed: int) -> NDArray[np.int64]:
        return self.of_epoch(origin).samples_at(origin, step, seed)

    def padding(self, origin: Progress, step: int) -> NDArray[np.bool_]:
        return self.of_epoch(origin).padding(origin, step)

    def seen(self, progress: Progress, origin: Progress, seed: int) -> NDArray[np.int64]:
        return self.of_epoch(progress).seen(progress, origin, seed)

    def unseen(self, progress: Progress, origin: Progress, seed: int) -> NDArray[np.int64]:
        return self.of_epoch(progress).unseen(progress, origin, seed)

    def within(self, progress: Progress) -> Progress:
        return self.of_epoch(progress).within(progress)

    def counted_at(self, progress: Progress, seed: int) -> tuple[int, int]:
        return self.of_epoch(progress).counted_at(progress, seed)

    @property
    def _known(self) -> tuple[Phase, ...] | None:
        """The phases, unless the run has only begun."""
        first = Phase.first(self.order.phases[0].blend)
        return None if self.order.phases == (first,) else self.order.phases
