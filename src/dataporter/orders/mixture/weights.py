"""Weights: each source's proportion of the samples, constant or as a function of the position."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import lcm

from dataporter.orders.mixture.apportion import apportioned, exactly_whole, whole_weights

__all__ = ["RAMP_STEPS", "Weights"]

# A linear ramp is followed in so many steps of constant weights.
RAMP_STEPS = 256


@dataclass(frozen=True, slots=True)
class Weights:
    """The proportions of a mixture's sources over a run.

    Attributes:
        knots: positions of the run, counted in samples over all epochs, with the weights of the
            sources there. The first is at 0, and they do not decrease.
        linear: the weights move from knot to knot on a straight line; otherwise they stay until the
            next knot. Behind the last they are constant either way.
    """

    knots: tuple[tuple[int, tuple[float, ...]], ...]
    linear: bool = False

    def steps(self) -> list[tuple[int, tuple[int, ...]]]:
        """The same as steps of constant weights: where each begins, and weights as whole numbers.

        After each step of a ramp, each source has had what the line gives it, to within a sample.
        """
        steps: list[tuple[int, tuple[int, ...]]] = []
        for (begin, weights), (end, following) in zip(self.knots, self.knots[1:]):
            if begin == end:
                continue
            if not self.linear or weights == following:
                steps.append((begin, whole_weights(weights)))
                continue
            steps += _ramp(begin, end, weights, following)
        last, weights = self.knots[-1]
        return [*steps, (last, whole_weights(weights))]

    def at(self, position: int) -> tuple[float, ...]:
        """The weights at a position of the run, on a ramp those of its step; they sum to 1."""
        weights = next(w for begin, w in reversed(self.steps()) if begin <= position)
        return tuple(weight / sum(weights) for weight in weights)


def _ramp(
    begin: int, end: int, before: tuple[float, ...], after: tuple[float, ...]
) -> list[tuple[int, tuple[int, ...]]]:
    """A straight line from one position to another, as steps."""
    starts, ends = exactly_whole(before), exactly_whole(after)
    # Both as parts of one whole.
    whole = lcm(sum(starts), sum(ends))
    starts = [weight * (whole // sum(starts)) for weight in starts]
    ends = [weight * (whole // sum(ends)) for weight in ends]
    length = end - begin
    pieces = min(RAMP_STEPS, length)
    edges = [piece * length // pieces for piece in range(pieces + 1)]
    steps = []
    given = [0] * len(starts)
    for start, stop in pairwise(edges):
        # What each source should have had by the end of the step, in parts of 2 * length * whole.
        wanted = [2 * a * stop * length + (b - a) * stop * stop for a, b in zip(starts, ends)]
        left = [max(want - 2 * length * whole * had, 0) for want, had in zip(wanted, given)]
        weights = apportioned(left, stop - start)
        given = [had + weight for had, weight in zip(given, weights)]
        steps.append((begin + start, whole_weights(weights)))
    return steps
