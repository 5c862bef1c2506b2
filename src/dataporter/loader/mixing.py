"""Mixing: how far a loader has asked for a mixture, and changes of its weights (C14)."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from dataporter.errors import ConfigurationError
from dataporter.orders.mixture.change import changed
from dataporter.orders.mixture.phase import Blend, Phase, timeline_of
from dataporter.orders.mixture.streams import Consumed
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.progress import Progress
from dataporter.schedule.request import Scheduled
from dataporter.schedule.schedule import PassRequests, Schedule

if TYPE_CHECKING:
    from dataporter.loader.loader import ResumableDataLoader

__all__ = ["Asked", "Mixing"]

R = TypeVar("R")


@dataclass(slots=True)
class Asked:
    """How far a loader's engine has drawn requests, and the phases that the next ones are of.

    Attributes:
        phases: of the mixture; None where it has not changed.
        next: epoch and step of the first request that was not yet drawn.
    """

    phases: tuple[Phase, ...] | None = None
    next: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Followed:
    """The requests of a pass over a mixture, which a change reaches while they are drawn."""

    requests: PassRequests
    schedule: Schedule
    lookup: MixedSchedule
    progress: Progress
    seed: int
    asked: Asked = field(compare=False)

    def __iter__(self) -> Iterator[Scheduled]:
        asked, phases = self.asked, self.progress.mixture
        drawn, origin, count = iter(self.requests), self.progress, 0
        while True:
            if asked.phases is not phases:
                # Requests before the change are the same by the new phases.
                phases = asked.phases
                origin = self.lookup.progress_after(origin, count)._replace(mixture=phases)
                drawn, count = iter(self.schedule.requests(origin, self.seed)), 0
            if (scheduled := next(drawn, None)) is None:
                return
            count += 1
            request = scheduled.request
            asked.next = max(asked.next, (request.epoch, request.step + 1))
            yield scheduled

    def batches(self, replies: Iterator[R]) -> Iterator[R]:
        """All of the replies."""
        return self.requests.batches(replies)

    def limited(self, steps: int) -> PassRequests:
        raise NotImplementedError  # its schedule is limited already


class Mixing:
    """A loader, as a mixture knows it."""

    def __init__(self, loader: ResumableDataLoader[Any]) -> None:
        self._loader = weakref.ref(loader)
        self.asked = Asked()
        dataset: Any = loader.dataset
        dataset.attach(self)

    def followed(
        self, setup: Any, progress: Progress, seed: int, *, anew: bool
    ) -> tuple[Followed, Followed]:
        """The requests of a pass and of the epoch after it."""
        lookup = setup.lookup
        if anew or self.asked.next < (progress.epoch, progress.step):
            self.asked = Asked(next=(progress.epoch, progress.step))
        self.asked.phases = progress.mixture
        schedule = setup.schedule
        after = progress.start_of(progress.epoch + 1)
        passes = (
            Followed(schedule.requests(start, seed), schedule, lookup, start, seed, self.asked)
            for start in (progress, after)
        )
        return next(passes), next(passes)

    def change(self, blend: Callable[[], Blend]) -> None:
        loader = self._loader()
        if loader is None:
            return
        cursor, setup = loader._cursor, loader.setup
        schedule = setup.lookup
        assert isinstance(schedule, MixedSchedule)
        progress = cursor.progress
        if setup.ranks.group is None and setup.world_size > 1:
            raise ConfigurationError(
                f"set_weights() on rank {setup.rank} of {setup.world_size}, without a process "
                "group: the ranks cannot agree on the step from which on the new weights hold; "
                "call torch.distributed.init_process_group() first, or build the mixture with "
                "the new weights when you resume"
            )
        if cursor.set_since:
            # What was asked for before the position was set is discarded.
            self.asked = Asked(next=(progress.epoch, progress.step))
        begins = max(self.asked.next, (progress.epoch, progress.step))
        with setup.ranks.agreed("Mixture.set_weights()") as terms:
            present = replace(blend(), most=schedule.order.blend.most)
            terms.equal = {
                "epoch": progress.epoch,
                "step": progress.step,
                "weights": repr(present.weights),
            }
        epoch, step = max(setup.ranks.gathered(begins)) if setup.ranks.several else begins
        known = schedule.at(progress)
        origin = progress if epoch == progress.epoch else progress.start_of(epoch)
        plan = known.of_epoch(origin).plan.resumed(origin.step, origin.position, origin.done)
        position = plan.position_before(step)
        phases = changed(
            known.order,
            present,
            seed=cursor.settled_seed(),
            epoch=epoch,
            position=position,
        )
        self.asked.phases = phases
        cursor.mix(phases)

    def consumed(self) -> dict[str, Consumed]:
        loader, known, progress = self._standing()
        return known.order.consumed(loader.seed, progress.epoch, progress.position)

    def weights(self) -> dict[str, float]:
        _, known, progress = self._standing()
        phase = known.order.phase_at(progress.epoch, progress.position)
        shares = timeline_of(phase).weights(progress.epoch, progress.position)
        return dict(zip(phase.blend.names, shares))

    def _standing(self) -> tuple[Any, MixedSchedule, Progress]:
        loader = self._loader()
        assert loader is not None
        progress = loader._cursor.progress
        schedule = loader.setup.lookup
        assert isinstance(schedule, MixedSchedule)
        return loader, schedule.at(progress), progress
