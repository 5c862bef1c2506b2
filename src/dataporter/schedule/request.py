"""Requests: what a worker is asked for, and the progress that delivering them makes (C1, C9)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders import Order
from dataporter.schedule.plan import Plan, Stretch, Tail

__all__ = [
    "Delivered",
    "EngineRequest",
    "PlannedRequests",
    "Progress",
    "Request",
    "RequestSource",
    "Requests",
]

# Indices are computed for so many positions in one go: large enough to spread NumPy's cost per
# call, small enough that the temporaries stay in the processor's cache and off mmap.
BLOCK_LENGTH = 8192
_INDICES_SHOWN = 8


class Delivered(NamedTuple):
    """Positions of an epoch that count as delivered, from ``start`` to before ``stop``.

    ``digest`` sums up all indices of the epoch before ``stop`` where the order is not ours to
    compute (a sampler of the user's own), and is 0 elsewhere.
    """

    start: int
    stop: int
    digest: int = 0


class Request(NamedTuple):
    """One batch on one rank: all that its content is a function of, next to the dataset itself.

    Attributes:
        seed, epoch, step: the loader's seed, and which batch this is.
        positions: int64, shape (batch,).
        indices: the samples at these positions: int64 of the same shape, or a list of whatever a
            sampler of the user's own gave.
        delivers: the positions, over all ranks, that are done when this batch is delivered.
    """

    seed: int
    epoch: int
    step: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64] | Sequence[Any]
    delivers: tuple[Delivered, ...]

    @property
    def reader(self) -> None:
        """Any worker can serve it."""
        return None

    def packed(self) -> PackedRequest:
        """For a worker, to whom what it delivers is of no concern."""
        # A pickled array takes ten times as long as its bytes.
        raw = self.indices.tobytes() if isinstance(self.indices, np.ndarray) else self.indices
        return PackedRequest(self.seed, self.epoch, self.step, self.positions.tobytes(), raw)

    def described(self) -> str:
        """For people: the samples, and which batch they are."""
        shown = ", ".join(repr(index) for index in self.plain_indices[:_INDICES_SHOWN])
        more = ", ..." if len(self.indices) > _INDICES_SHOWN else ""
        return (
            f"{len(self.indices)} samples with indices [{shown}{more}] (epoch {self.epoch}, step "
            f"{self.step})"
        )

    @property
    def plain_indices(self) -> list[Any]:
        """Indices as the list of Python objects that datasets know from torch's samplers."""
        indices = self.indices
        return indices.tolist() if isinstance(indices, np.ndarray) else list(indices)


class PackedRequest(NamedTuple):
    """A request on its way to a worker."""

    seed: int
    epoch: int
    step: int
    positions: bytes
    indices: bytes | Sequence[Any]

    def unpacked(self) -> Request:
        """The request, in the worker."""
        indices: Any = self.indices
        if isinstance(indices, bytes):
            # A bytearray, since torch wants arrays that it may write to.
            indices = np.frombuffer(bytearray(indices), dtype=np.int64)
        positions = np.frombuffer(self.positions, dtype=np.int64)
        return Request(self.seed, self.epoch, self.step, positions, indices, ())


class EngineRequest(Protocol):
    """What an engine has to know of a request, whatever it is for."""

    @property
    def seed(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def reader(self) -> int | None:
        """Requests with the same number go to the same worker; None: any may serve it."""

    def packed(self) -> Any:
        """What is sent to a worker, where ``unpacked()`` makes the request of it again."""

    def described(self) -> str:
        """What is to be read, for people."""


class EpochProgress(Protocol):
    """How far an epoch has come, however that is counted."""

    @property
    def epoch(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def delivered(self) -> int: ...

    def after(self, request: Any) -> Any:
        """The progress once ``request`` was delivered."""


class Progress(NamedTuple):
    """How far an epoch has come.

    Attributes:
        epoch: number of the epoch.
        step: batches delivered on each rank.
        position: all positions before this one are done.
        early: done as well, past ``position``: delivered ahead of their turn (``in_order=False``).
        digest: see :class:`Delivered`; of the indices before ``position``.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0
    early: tuple[Delivered, ...] = ()
    digest: int = 0

    def after(self, request: Request) -> Progress:
        """The progress once ``request`` was delivered, or was passed over after it failed."""
        if not self.early and len(request.delivers) == 1:
            delivered = request.delivers[0]
            if delivered.start == self.position:
                return Progress(self.epoch, self.step + 1, delivered.stop, (), delivered.digest)
        position, digest = self.position, self.digest
        early: list[Delivered] = []
        for stretch in sorted((*self.early, *request.delivers)):
            if stretch.start <= position:
                if stretch.stop > position:
                    position, digest = stretch.stop, stretch.digest
            elif early and early[-1].stop == stretch.start:
                early[-1] = Delivered(early[-1].start, stretch.stop, stretch.digest)
            else:
                early.append(stretch)
        return Progress(self.epoch, self.step + 1, position, tuple(early), digest)

    @property
    def delivered(self) -> int:
        """How many positions are done."""
        return self.position + sum(stretch.stop - stretch.start for stretch in self.early)

    @property
    def done(self) -> tuple[Stretch, ...]:
        return tuple((stretch.start, stretch.stop) for stretch in self.early)


class RequestSource(Protocol):
    """Where a loader's requests come from: an order and a plan, or a sampler of the user's own."""

    def requests(self, progress: Progress, seed: int) -> Iterator[Request]:
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

    source: RequestSource
    progress: Progress
    seed: int

    def __iter__(self) -> Iterator[Request]:
        return self.source.requests(self.progress, self.seed)


@dataclass(frozen=True, slots=True)
class PlannedRequests:
    """Requests computed from an order and a plan; any of them at once."""

    order: Order
    plan: Plan
    rank: int
    dataset_length: int

    @classmethod
    def of(
        cls,
        order: Order,
        dataset_length: int,
        batch_size: int,
        rank: int,
        world_size: int,
        tail: Tail,
    ) -> PlannedRequests:
        """The requests of one rank of a world."""
        plan = Plan(order.epoch_length(dataset_length), batch_size, world_size, tail)
        return cls(order, plan, rank, dataset_length)

    def requests(self, progress: Progress, seed: int) -> Iterator[Request]:
        plan = self._plan(progress)
        for first_step, positions in plan.blocks(self.rank, progress.step, BLOCK_LENGTH):
            indices = self._indices(positions, seed, progress.epoch)
            for place, (step_positions, step_indices) in enumerate(zip(positions, indices)):
                step = first_step + place
                yield Request(
                    seed,
                    progress.epoch,
                    step,
                    step_positions,
                    step_indices,
                    tuple(Delivered(*stretch) for stretch in plan.stretches(step)),
                )

    def ahead(self, epoch: int, seed: int) -> Requests:
        return Requests(self, Progress(epoch), seed)

    def steps(self, progress: Progress) -> int:
        return max(0, self._plan(progress).end(self.rank) - progress.step)

    def epoch_steps(self) -> int:
        return self.plan.last_step

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

    def samples_at(self, progress: Progress, step: int, seed: int) -> NDArray[np.int64]:
        plan = self._plan_with(progress, step)
        return self._indices(plan.positions(step, self.rank), seed, progress.epoch)

    def padding(self, progress: Progress, step: int) -> NDArray[np.bool_]:
        return self._plan_with(progress, step).padding(step, self.rank)

    def within(self, progress: Progress) -> Progress:
        position = min(progress.position, self.plan.length)
        early = tuple(stretch for stretch in progress.early if stretch.stop <= self.plan.length)
        cut = progress._replace(position=position, early=early)
        return cut._replace(step=min(progress.step, cut.delivered))

    def place_at(self, progress: Progress, seed: int) -> tuple[int, int]:
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
        # Two passes over a block: nothing beside computing it, and an order may be anybody's.
        wrong = _fault(indices, positions, self.dataset_length)
        if wrong is not None:
            raise ConfigurationError(
                f"order {self.order.name!r} gave {wrong} for positions of shape {positions.shape} "
                f"of epoch {epoch}; expected an int64 array of that shape, within "
                f"0..{self.dataset_length - 1}"
            )
        return indices


def _fault(indices: Any, positions: NDArray[np.int64], dataset_length: int) -> str | None:
    if not isinstance(indices, np.ndarray):
        return f"a {type(indices).__name__}"
    if indices.shape != positions.shape or indices.dtype != np.int64:
        return f"an array of {indices.dtype} and shape {indices.shape}"
    if indices.size and not (indices.min() >= 0 and indices.max() < dataset_length):
        return f"indices from {indices.min()} to {indices.max()}"
    return None
