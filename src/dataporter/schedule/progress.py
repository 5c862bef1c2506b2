"""Progress: how far an epoch has come (C1)."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from dataporter.orders.mixture.phase import Phase
from dataporter.schedule.plan import Stretch
from dataporter.schedule.sampler_record import Place, SamplerRecord

__all__ = [
    "Delivered",
    "EpochProgress",
    "Progress",
]


class Delivered(NamedTuple):
    """Positions of an epoch that count as delivered, from ``start`` to before ``stop``.

    ``digest`` sums up all indices of the epoch before ``stop`` where a custom sampler gives them,
    and is 0 where an order does. ``sampler`` is what a state keeps of such a sampler then.
    """

    start: int
    stop: int
    digest: int = 0
    sampler: SamplerRecord | None = None


def _start(stretch: Delivered) -> int:
    return stretch.start


class EpochProgress(Protocol):
    """How far an epoch has come, however that is counted."""

    @property
    def epoch(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def position(self) -> int: ...

    @property
    def delivered(self) -> int: ...

    @property
    def continues(self) -> bool:
        """Whether the epoch begins where the one before has ended, so that nothing is left out."""

    def after(self, delivers: Any) -> Any:
        """The progress once a batch that delivers this has been delivered."""

    def closed(self, delivers: Any) -> Any:
        """The progress once a pass has ended that delivers this beside its batches."""

    def start_of(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> Any:
        """The start of an epoch that was set."""

    def following(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> Any:
        """The start of an epoch whose pass follows this one."""


class Progress(NamedTuple):
    """How far an epoch has come.

    Attributes:
        epoch: number of the epoch.
        step: batches delivered on each rank.
        position: all positions before this one are done.
        early: done as well, past ``position``: delivered ahead of their turn (``in_order=False``).
        digest, sampler: see :class:`Delivered`; of the indices before ``position``.
        mixture: the phases of a mixture, as far as they are known; None where it has not changed.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0
    early: tuple[Delivered, ...] = ()
    digest: int = 0
    sampler: SamplerRecord | None = None
    mixture: tuple[Phase, ...] | None = None

    def closed(self, delivers: Any) -> Progress:
        return self

    def start_of(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> Progress:
        """The start of an epoch that was set, or whose pass follows this one.

        Args:
            chosen: the epoch was set, and does not just follow.
            ended: this pass ran to its end.
        """
        if self.sampler is None:
            return Progress(epoch, mixture=self.mixture)
        record = self.sampler.following(self.place(), chosen=chosen, ended=ended)
        return Progress(epoch, sampler=record)

    @property
    def continues(self) -> bool:
        return False

    def following(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> Progress:
        """As :meth:`start_of`."""
        return self.start_of(epoch, chosen=chosen, ended=ended)

    def place(self) -> Place:
        """The progress of a custom sampler, without what is known of earlier passes."""
        record = self.sampler or SamplerRecord()
        return Place(
            self.epoch,
            record.epochs,
            self.step,
            self.position,
            self.digest,
            record.start,
            record.snapshot,
        )

    def after(self, delivers: tuple[Delivered, ...]) -> Progress:
        """The progress once these positions are done: delivered, or passed over as failed."""
        if not self.early and len(delivers) == 1:
            delivered = delivers[0]
            if delivered.start == self.position:
                return Progress(
                    self.epoch,
                    self.step + 1,
                    delivered.stop,
                    (),
                    delivered.digest,
                    delivered.sampler,
                    self.mixture,
                )
        position, digest, sampler = self.position, self.digest, self.sampler
        early: list[Delivered] = []
        for stretch in sorted((*self.early, *delivers), key=_start):
            if stretch.start <= position:
                if stretch.stop > position:
                    _, position, digest, sampler = stretch
            elif early and early[-1].stop == stretch.start:
                early[-1] = stretch._replace(start=early[-1].start)
            else:
                early.append(stretch)
        return Progress(
            self.epoch, self.step + 1, position, tuple(early), digest, sampler, self.mixture
        )

    @property
    def delivered(self) -> int:
        """How many positions are done."""
        return self.position + sum(stretch.stop - stretch.start for stretch in self.early)

    @property
    def done(self) -> tuple[Stretch, ...]:
        return tuple((stretch.start, stretch.stop) for stretch in self.early)
