"""The planned schedule: requests computed from an order and a plan, any of them at once (C9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders import Order
from dataporter.schedule.plan import Plan, Tail
from dataporter.schedule.progress import Delivered, Progress
from dataporter.schedule.request import Request, Scheduled
from dataporter.schedule.schedule import Requests
from dataporter.seeding.hashing import STREAM_REPLACEMENT, fold

__all__ = [
    "BLOCK_LENGTH",
    "PlannedSchedule",
]

# Indices are computed for so many positions in one go: large enough to spread NumPy's cost per
# call, small enough that the temporaries stay in the processor's cache and off mmap.
BLOCK_LENGTH = 8192


@dataclass(frozen=True, slots=True)
class PlannedSchedule:
    """Requests computed from an order and a plan; any of them at once."""

    order: Order
    plan: Plan
    rank: int
    dataset_length: int

    @classmethod
    def for_rank(
        cls,
        order: Order,
        dataset_length: int,
        batch_size: int,
        rank: int,
        world_size: int,
        tail: Tail,
    ) -> PlannedSchedule:
        """The requests of one rank of a world."""
        plan = Plan(order.epoch_length(dataset_length), batch_size, world_size, tail)
        return cls(order, plan, rank, dataset_length)

    def for_length(self, dataset_length: int) -> PlannedSchedule:
        """The requests over a dataset of another length."""
        plan = replace(self.plan, length=self.order.epoch_length(dataset_length))
        return replace(self, plan=plan, dataset_length=dataset_length)

    def requests(self, progress: Progress, seed: int) -> Requests:
        return Requests(self, progress, seed)

    def scheduled(self, progress: Progress, seed: int) -> Iterator[Scheduled]:
        """The requests themselves, computed a block of positions at a time."""
        plan, epoch = self._plan(progress), progress.epoch
        stretches = plan.stretches_from(progress.step)
        for first_step, positions in plan.blocks(self.rank, progress.step, BLOCK_LENGTH):
            indices = self._indices(positions, seed, epoch)
            rows = zip(positions, indices, stretches)
            for step, (step_positions, step_indices, done) in enumerate(rows, start=first_step):
                request = Request(seed, epoch, step, step_positions, step_indices)
                # A list, since a generator takes longer than all the rest of this loop.
                yield Scheduled(request, tuple([Delivered(*stretch) for stretch in done]))

    def ahead(self, progress: Progress, seed: int) -> Requests:
        return Requests(self, Progress(progress.epoch + 1), seed)

    def steps(self, progress: Progress) -> int:
        return max(0, self._plan(progress).end(self.rank) - progress.step)

    def of_epoch(self, progress: Progress) -> PlannedSchedule:
        """The schedule of the epoch that a progress is in: each has the same."""
        return self

    def epoch_steps(self, epoch: int) -> int:
        return self.plan.last_step

    def is_over(
        self, progress: Progress, dataset_length: int, batch_size: int, world_size: int
    ) -> bool:
        """Whether all batches of an epoch were delivered that had these numbers."""
        length = self.order.epoch_length(dataset_length)
        plan = Plan(length, batch_size, world_size, self.plan.tail)
        plan = plan.resumed(progress.step, progress.position, progress.done)
        return progress.step >= plan.last_step

    def check(self, epoch: int, step: int) -> None:
        if step > (steps := self.epoch_steps(epoch)):
            raise ConfigurationError(
                f"step={step} of epoch {epoch}: an epoch has {steps} steps, so step must be within "
                f"0..{steps}"
            )

    def progress_at(self, epoch: int, step: int, seed: int) -> Progress:
        return Progress(epoch, step, self.plan.position_before(step))

    def progress_after(self, origin: Progress, steps: int) -> Progress:
        """The progress ``steps`` batches after a pass began at ``origin``."""
        plan = self._plan(origin)
        if steps > (left := max(0, plan.last_step - origin.step)):
            raise ConfigurationError(
                f"{steps} batches after step {origin.step} of epoch {origin.epoch}: the epoch had "
                f"{left} left there; count anew in each pass"
            )
        if steps == 0:
            return origin
        step = origin.step + steps
        position = plan.position_before(step)
        early = tuple(stretch for stretch in origin.early if stretch.start > position)
        return Progress(origin.epoch, step, position, early)

    def samples_at(self, origin: Progress, step: int, seed: int) -> NDArray[np.int64]:
        plan = self._plan_with(origin, step)
        return self._indices(plan.positions(step, self.rank), seed, origin.epoch)

    def padding(self, origin: Progress, step: int) -> NDArray[np.bool_]:
        return self._plan_with(origin, step).padding(step, self.rank)

    def seen(self, progress: Progress, origin: Progress, seed: int) -> NDArray[np.int64]:
        return self._indices(_positions(progress, self.plan.length)[0], seed, progress.epoch)

    def unseen(self, progress: Progress, origin: Progress, seed: int) -> NDArray[np.int64]:
        return self._indices(_positions(progress, self.plan.length)[1], seed, progress.epoch)

    def replacement(self, seed: int, epoch: int, position: int, attempt: int) -> int:
        """The index of a sample of the epoch, drawn by a keyed hash for a position."""
        # By way of the order, which may leave samples out or prefer some.
        drawn = fold(seed, epoch, position, attempt, STREAM_REPLACEMENT) % self.plan.length
        return int(self._indices(np.array([drawn], dtype=np.int64), seed, epoch)[0])

    def within(self, progress: Progress) -> Progress:
        position = min(progress.position, self.plan.length)
        early = tuple(stretch for stretch in progress.early if stretch.stop <= self.plan.length)
        limited = progress._replace(position=position, early=early)
        return limited._replace(step=min(progress.step, limited.delivered))

    def counted_at(self, progress: Progress, seed: int) -> tuple[int, int]:
        # An order says by its name and version what its indices are, so the digest is 0. Batches
        # that came early count as steps, and say nothing of the position.
        fits = progress.early or self.plan.position_before(progress.step) == progress.position
        return (progress.step if fits else -1), 0

    def _plan(self, progress: Progress) -> Plan:
        return self.plan.resumed(progress.step, progress.position, progress.done)

    def _plan_with(self, progress: Progress, step: int) -> Plan:
        """The plan of what is left, once it is sure that this rank has such a step in it."""
        plan = self._plan(progress)
        if step < plan.first_step:
            raise ConfigurationError(
                f"step={step} of epoch {progress.epoch}: the first {plan.first_step} steps of this "
                "epoch were delivered with another batch size or world size, which a state does "
                "not keep; build the loader as it was then to ask for them"
            )
        if step >= (end := plan.end(self.rank)):
            raise ConfigurationError(
                f"step={step} of epoch {progress.epoch}: this epoch has {end} steps on this rank, "
                f"so step must be within 0..{end - 1}"
            )
        return plan

    def _indices(self, positions: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        indices = self.order.indices(
            positions, seed=seed, epoch=epoch, dataset_length=self.dataset_length
        )
        # Users may write orders, and two passes over a block cost little beside computing it.
        wrong = _fault(indices, positions, self.dataset_length)
        if wrong is not None:
            raise ConfigurationError(
                f"order {self.order.name!r} gave {wrong} for positions of shape {positions.shape} "
                f"of epoch {epoch}; expected an int64 array of that shape, within "
                f"0..{self.dataset_length - 1}"
            )
        return indices


def _positions(progress: Progress, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The positions of an epoch that were delivered, and those that were not."""
    is_done = np.zeros(length, dtype=np.bool_)
    for start, stop in ((0, progress.position), *progress.done):
        is_done[start:stop] = True
    return np.flatnonzero(is_done), np.flatnonzero(~is_done)


def _fault(indices: Any, positions: NDArray[np.int64], dataset_length: int) -> str | None:
    if not isinstance(indices, np.ndarray):
        return f"a {type(indices).__name__}"
    if indices.shape != positions.shape or indices.dtype != np.int64:
        return f"an array of {indices.dtype} and shape {indices.shape}"
    if indices.size and not (indices.min() >= 0 and indices.max() < dataset_length):
        return f"indices from {indices.min()} to {indices.max()}"
    return None
