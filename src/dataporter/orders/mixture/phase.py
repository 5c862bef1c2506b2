"""A phase: the part of a run between two changes of a mixture, as a function of the position."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders.mixture.apportion import MOST_SAMPLES, Apportionment
from dataporter.orders.mixture.interleave import interleaved, period_for
from dataporter.orders.mixture.streams import Consumed
from dataporter.orders.mixture.weights import Weights
from dataporter.seeding.hashing import STREAM_MIXTURE, fold, fold_each

__all__ = ["Blend", "Phase", "Stopping", "Taken", "timeline_of"]

Stopping = int | Literal["first_exhausted", "all_exhausted"]


@dataclass(frozen=True, slots=True)
class Blend:
    """What a mixture is made of, and in which proportions.

    Attributes:
        names, lengths: of the sources.
        weights: proportions of samples.
        limits: for each source the number of passes after which it ends; None without an end.
        stopping: how long an epoch is: a number of samples; or until before the first source
            would begin another pass; or until each source had a whole pass.
        most: samples of an epoch at most.
    """

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    weights: Weights
    limits: tuple[int | None, ...]
    stopping: Stopping
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A blend from a position of a run on.

    Attributes:
        blend: what is mixed.
        consumed: of each source before the phase.
        absent: by name, the same of sources that are no longer part of the mixture.
        epoch, position: where it begins.
        epoch_length: of that epoch, which a change in its middle does not move; None: by the blend.
    """

    blend: Blend
    consumed: tuple[Consumed, ...]
    absent: tuple[tuple[str, Consumed], ...] = ()
    epoch: int = 0
    position: int = 0
    epoch_length: int | None = None

    @classmethod
    def first(cls, blend: Blend) -> Phase:
        """The phase with which a run begins."""
        return cls(blend, (Consumed(),) * len(blend.names))

    @property
    def begin(self) -> int:
        """Position of the run at which it begins: how many samples came before, over all epochs."""
        return sum(each.count for each in self.consumed) + sum(
            each.count for _, each in self.absent
        )


class Taken(NamedTuple):
    """What comes at some positions.

    Attributes:
        sources: numbers of the sources, uint16.
        counts: how many samples of its source the phase has before each, int64.
    """

    sources: NDArray[np.uint16]
    counts: NDArray[np.int64]


class _Step(NamedTuple):
    """Constant weights within a phase.

    Attributes:
        begin, end: positions of the run; without an end None.
        counts: how much of each source came before, within the phase, shape (sources,).
        period: number of samples in a period.
    """

    begin: int
    end: int | None
    apportionment: Apportionment
    counts: NDArray[np.int64]
    period: int

    @property
    def active(self) -> list[int]:
        """The numbers of the sources with weight."""
        return [n for n, weight in enumerate(self.apportionment.weights) if weight]


class _Epochs(NamedTuple):
    """Neighbouring epochs of one length: the first of them, and where it begins."""

    epoch: int
    begin: int
    length: int


class Timeline:
    """A phase worked out: its steps of constant weights, and where its epochs begin."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self._steps = _steps_of(phase)
        self._begins = [step.begin for step in self._steps]
        # The sources with weight in each step or in a later one.
        actives = (frozenset(step.active) for step in reversed(self._steps))
        self._active_from = [sorted(one) for one in accumulate(actives, operator.or_)][::-1]
        self._epochs = self._epochs_of(phase)
        self._firsts = [epochs.epoch for epochs in self._epochs]

    def epoch(self, epoch: int) -> tuple[int, int]:
        """The position of the run at which an epoch begins, and the epoch's length."""
        first, begin, length = self._epochs[max(0, bisect_right(self._firsts, epoch) - 1)]
        begin += (epoch - first) * length
        if begin + length > MOST_SAMPLES:
            raise ConfigurationError(
                f"epoch {epoch} of the mixture, of {length} samples, lies beyond the "
                f"{MOST_SAMPLES} samples that a run may have: ask for an earlier epoch"
            )
        return begin, length

    def taken(self, seed: int, epoch: int, positions: NDArray[np.int64]) -> Taken:
        """What comes at positions of an epoch, shape (k,), which lie within the phase."""
        begin, length = self.epoch(epoch)
        at = positions + begin
        first, last = (
            bisect_right(self._begins, edge) - 1 for edge in (int(at.min()), int(at.max()))
        )
        if first == last:
            return self._within(self._steps[first], seed, at, begin, begin + length)
        which = np.searchsorted(np.asarray(self._begins), at, side="right") - 1
        sources, counts = np.empty(len(at), np.uint16), np.empty(len(at), np.int64)
        for number in range(first, last + 1):
            here = np.flatnonzero(which == number)
            if here.size:
                found = self._within(self._steps[number], seed, at[here], begin, begin + length)
                sources[here], counts[here] = found
        return Taken(sources, counts)

    def consumed(self, seed: int, epoch: int, position: int) -> tuple[Consumed, ...]:
        """What was consumed of each source before a position of an epoch."""
        begin, length = self.epoch(epoch)
        at = begin + position
        step = self._steps[max(0, bisect_right(self._begins, at) - 1)]
        start = max(step.begin, begin)
        counts = step.counts + step.apportionment.counts_of(at - step.begin)
        if (at - start) % step.period and at != step.end and position != length:
            # Within a period the order decides; count what comes from its beginning on.
            start += (at - start) // step.period * step.period
            within = np.arange(start, at, dtype=np.int64)
            sources = self._within(step, seed, within, begin, begin + length).sources
            counts = step.counts + step.apportionment.counts_of(start - step.begin)
            counts = counts + np.bincount(sources, minlength=len(counts))
        pairs = zip(self.phase.consumed, counts.tolist(), self.phase.blend.lengths)
        return tuple(before.after(count, length) for before, count, length in pairs)

    def weights(self, epoch: int, position: int) -> tuple[float, ...]:
        """The proportions at a position of an epoch; they sum to 1."""
        at = self.epoch(epoch)[0] + position
        shares = self._steps[max(0, bisect_right(self._begins, at) - 1)].apportionment
        return tuple(weight / shares.total for weight in shares.weights)

    def _within(self, step: _Step, seed: int, at: NDArray[np.int64], begin: int, end: int) -> Taken:
        """What comes at positions of the run, within one step and one epoch."""
        start = max(step.begin, begin)
        stop = end if step.end is None else min(step.end, end)
        numbers = (at - start) // step.period
        lowest, highest = int(numbers.min()), int(numbers.max())
        if highest - lowest < 2 * len(at):
            periods, rows = np.arange(lowest, highest + 1, dtype=np.int64), numbers - lowest
        else:
            periods, rows = np.unique(numbers, return_inverse=True)
        starts = start + periods * step.period
        edges = np.stack((starts, np.minimum(starts + step.period, stop))) - step.begin
        edge_counts = step.apportionment.counts(edges.ravel()).reshape(-1, 2, len(periods))
        before, shares = edge_counts[:, 0], edge_counts[:, 1] - edge_counts[:, 0]
        key = np.array([fold(seed, STREAM_MIXTURE)], dtype=np.uint64)
        keys = fold_each(key, starts.astype(np.uint64))
        sources, ranks = interleaved(shares, keys)
        places = rows * sources.shape[1] + (at - starts[rows])
        chosen = sources.ravel()[places]
        counts = (before + step.counts[:, None]).ravel()[chosen * np.int64(len(periods)) + rows]
        counts += ranks.ravel()[places]
        return Taken(chosen, counts)

    def _epochs_of(self, phase: Phase) -> list[_Epochs]:
        epoch, begin, length = phase.epoch, phase.begin - phase.position, phase.epoch_length
        epochs = []
        if length is not None:
            if (end := self._steps[-1].end) is not None:
                length = min(length, end - begin)
            epochs.append(_Epochs(epoch, begin, length))
            epoch, begin = epoch + 1, begin + length
        while True:
            step = self._steps[max(0, bisect_right(self._begins, begin) - 1)]
            length = self._length_from(begin)
            epochs.append(_Epochs(epoch, begin, length))
            if step.end is None or length == 0:
                return epochs
            # Epochs that end within the step have one length.
            whole = max(1, (step.end - begin) // length)
            epoch, begin = epoch + whole, begin + whole * length

    def _length_from(self, begin: int) -> int:
        """Length of an epoch that begins at a position of the run."""
        blend, last = self.phase.blend, self._steps[-1]
        left = MOST_SAMPLES if last.end is None else max(0, last.end - begin)
        most = min(left, MOST_SAMPLES if blend.most is None else blend.most)
        if isinstance(blend.stopping, int):
            return min(most, blend.stopping)
        needs = np.array(blend.lengths, dtype=np.int64)
        length, first = 0, max(0, bisect_right(self._begins, begin) - 1)
        first_ends = blend.stopping == "first_exhausted"
        for number, step in enumerate(self._steps[first:], start=first):
            shares, active = step.apportionment, step.active
            if step.end is not None:
                reach = step.end - max(step.begin, begin)
                after = needs - shares.counts_of(reach)
                # Wait for a source whose turn comes later, but not for one that has ended.
                waited_for = active if first_ends else self._active_from[number]
                continues = (
                    min(after[waited_for]) >= 0 if first_ends else max(after[waited_for]) > 0
                )
                if continues and step is not last and length + reach < most:
                    needs, length = after, length + reach
                    continue
            if first_ends:
                found = shares.least(_one_has(needs + 1, active)) - 1
            else:
                found = shares.least(_all_have(needs, active))
            return max(min(most, length + found), min(1, most))
        raise AssertionError("the last step returns")


def _steps_of(phase: Phase) -> list[_Step]:
    blend = phase.blend
    left = [
        None if limit is None else consumed.left(length, limit)
        for consumed, length, limit in zip(phase.consumed, blend.lengths, blend.limits)
    ]
    left = [None if each is None or each > MOST_SAMPLES - phase.begin else each for each in left]
    counts = np.zeros(len(blend.names), dtype=np.int64)
    begins = blend.weights.steps()
    positions = [position for position, _ in begins]
    begin, steps = phase.begin, []
    while True:
        ended = [each is not None and each <= count for each, count in zip(left, counts.tolist())]
        # Where all sources of a step have ended, the next one begins early.
        for number in range(max(0, bisect_right(positions, begin) - 1), len(begins)):
            weights = [0 if over else w for over, w in zip(ended, begins[number][1])]
            if any(weights):
                break
        else:
            break
        knot = positions[number + 1] if number + 1 < len(begins) else None
        shares = Apportionment.of(weights)
        end = knot
        if limited := [n for n, each in enumerate(left) if each is not None and weights[n]]:
            rest = np.array([each or 0 for each in left], dtype=np.int64) - counts
            over = begin + shares.least(_one_has(rest, limited))
            end = over if knot is None else min(over, knot)
        period = period_for(shares.total, sum(weight > 0 for weight in weights))
        steps.append(_Step(begin, end, shares, counts, period))
        if end is None:
            break
        counts = counts + shares.counts_of(end - begin)
        begin = end
    if not steps:
        raise ConfigurationError(
            "all sources of the mixture with a weight have had their max_passes=: nothing is left "
            "to read; raise max_passes= or give another source a weight"
        )
    return steps


def _one_has(wanted: NDArray[np.int64], sources: list[int]) -> Callable[[NDArray[np.int64]], Any]:
    """Whether of one of these sources at least so many samples came."""
    return lambda counts: (counts >= wanted)[sources].any()


def _all_have(wanted: NDArray[np.int64], sources: list[int]) -> Callable[[NDArray[np.int64]], Any]:
    """Whether of all of these sources at least so many samples came."""
    return lambda counts: (counts >= wanted)[sources].all()


@lru_cache(maxsize=16)
def timeline_of(phase: Phase) -> Timeline:
    """The phase worked out, kept for the next call."""
    return Timeline(phase)
