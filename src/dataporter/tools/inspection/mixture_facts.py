"""Facts of mixtures: how much of each source was consumed, and what comes next, from the state."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataporter.orders.mixture.order import MixtureOrder
from dataporter.orders.mixture.phase import Blend, Phase, timeline_of
from dataporter.orders.order import Order
from dataporter.orders.torch_order import TorchOrder
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.mixture_record import MixtureRecord
from dataporter.state.schema import Identity
from dataporter.tools.inspection.mixture_report import MixtureReport, SourceReport, WeightsReport

__all__ = ["Mixed", "mixed"]


class Mixed(NamedTuple):
    """A mixture, as a state knows it.

    Attributes:
        schedule: of the first rank.
        names, offsets: of the sources, and the index at which each begins.
    """

    schedule: MixedSchedule
    names: tuple[str, ...]
    offsets: NDArray[np.int64]

    def named(self, indices: list[int]) -> tuple[tuple[str, int], ...]:
        """Indices as (source, index in it)."""
        # Of sources that begin at the same index, all but the last are empty.
        which = np.searchsorted(self.offsets, np.array(indices, np.int64), side="right") - 1
        return tuple(
            (self.names[number], index - int(self.offsets[number]))
            for number, index in zip(which.tolist(), indices)
        )

    def torch_samples(self, progress: Progress, seed: int) -> int:
        """How many samples ``order="torch"`` draws to find the next ones; 0 in any other order."""
        if not isinstance(self.schedule.order.inner, TorchOrder):
            return 0
        consumed = self.schedule.order.consumed(seed, progress.epoch, progress.position)
        lengths = zip(self.names, self.schedule.order.blend.lengths)
        return sum((consumed[name].passes + 1) * n for name, n in lengths if name in consumed)

    def report(self, progress: Progress, seed: int) -> MixtureReport:
        """How the mixture stands at a progress."""
        order, here = self.schedule.order, (progress.epoch, progress.position)
        phase = order.phase_at(*here)
        consumed = order.consumed(seed, *here)
        sample = sum(each.count for each in consumed.values())
        weights = dict(zip(phase.blend.names, timeline_of(phase).weights(*here)))
        lengths = dict(zip(phase.blend.names, phase.blend.lengths))
        limits = dict(zip(phase.blend.names, phase.blend.limits))
        sources = tuple(
            SourceReport(
                name,
                lengths.get(name),
                each.count,
                each.passes + each.offset / max(1, each.length),
                each.count / max(1, sample),
                weights.get(name),
                limits.get(name),
            )
            for name, each in consumed.items()
        )
        changes = tuple(_changes(order.phases, phase, sample))
        return MixtureReport(sample, phase.blend.stopping, sources, changes)


def mixed(record: MixtureRecord, inner: Order, identity: Identity) -> Mixed:
    """The mixture that a state describes."""
    lengths: dict[str, int] = {}
    for phase in record.phases:
        for name, length in zip(phase.blend.names, phase.blend.lengths):
            lengths[name] = max(length, lengths.get(name, 0))
    names = tuple(lengths)
    # Only for its names and lengths: indices count through the sources of all phases.
    whole = Blend(names, tuple(lengths.values()), record.given.weights, (None,) * len(names), 1)
    schedule = MixedSchedule(
        MixtureOrder.of(whole, inner, record.phases),
        identity.batch_size or 1,
        0,
        identity.world_size,
        identity.tail,  # type: ignore[arg-type]  # checked by the caller
    )
    offsets = np.array([0, *accumulate(lengths.values())][:-1], dtype=np.int64)
    return Mixed(schedule, names, offsets)


def _changes(phases: tuple[Phase, ...], now: Phase, sample: int) -> Iterator[WeightsReport]:
    """The changes of weights after a sample of the run."""
    coming = phases[phases.index(now) :]
    for phase, following in zip(coming, (*coming[1:], None)):
        weights = phase.blend.weights
        begin = max(sample, phase.begin)
        if phase is not now:
            found = timeline_of(phase).weights(phase.epoch, phase.position)
            yield WeightsReport(phase.begin, dict(zip(phase.blend.names, found)))
        for at, each in weights.knots:
            if at > begin and (following is None or at < following.begin):
                total = sum(each)
                shares = {n: w / total for n, w in zip(phase.blend.names, each)}
                yield WeightsReport(at, shares, weights.linear)
