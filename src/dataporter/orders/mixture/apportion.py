"""Apportionment: how many of the first n samples come from each source, for constant weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_SAMPLES", "Apportionment", "apportioned", "exactly_whole", "whole_weights"]

# Weights are resolved to one part in 2**30, so that every product below fits into 64 bits.
_RESOLUTION = 1 << 30
# No position of a run lies beyond, so that sums of a few fit into 64 bits as well.
MOST_SAMPLES = 1 << 61


def whole_weights(weights: Iterable[float]) -> tuple[int, ...]:
    """Whole numbers in proportion to weights, which are not negative and not all zero.

    Exact for decimals of up to nine digits (0.7 is 7/10, and not the nearest binary fraction). Any
    others are rounded to parts of 2**30 by largest remainder, but for those that would become 0.
    """
    whole = exactly_whole(weights)
    if sum(whole) <= _RESOLUTION:
        return tuple(whole)
    parts = apportioned(whole, _RESOLUTION)
    # The heaviest gives what keeps the lightest from vanishing.
    missing = [source for source, weight in enumerate(whole) if weight and not parts[source]]
    for source in missing:
        parts[source] = 1
    parts[parts.index(max(parts))] -= len(missing)
    return tuple(parts)


def exactly_whole(weights: Iterable[float]) -> list[int]:
    """The least whole numbers in proportion to weights, as large as they may be."""
    # repr() of a float is the shortest decimal that means it: what the user wrote.
    exact = [Fraction(repr(w)) if isinstance(w, float) else Fraction(w) for w in weights]
    denominator = lcm(*(weight.denominator for weight in exact))
    whole = [weight.numerator * (denominator // weight.denominator) for weight in exact]
    divisor = gcd(*whole)
    return [weight // divisor for weight in whole]


def apportioned(weights: Sequence[int], total: int) -> list[int]:
    """Whole numbers in proportion to weights that sum to a total, by largest remainder."""
    whole = sum(weights)
    parts = [weight * total // whole for weight in weights]
    rests = [-(weight * total % whole) for weight in weights]
    for source in sorted(range(len(parts)), key=rests.__getitem__)[: total - sum(parts)]:
        parts[source] += 1
    return parts


@dataclass(frozen=True, slots=True, eq=False)
class Apportionment:
    """Shares out a run of samples between sources, so that each has its share at any time.

    A balanced binary tree over the sources: each node hands its samples down to two halves, of
    which the left one has received ``round(n * left / whole)`` of the node's first n. So the counts
    never decrease, sum to n, can be computed for any n at once, and differ from ``n * share`` by
    at most half of the tree's depth, and by nothing wherever all shares of n are whole numbers.

    Attributes:
        weights: whole numbers; their sum is at most 2**30.
        levels: from the root down, of each node the weights of its left half and of the whole, both
            of shape (nodes, 1).
    """

    weights: tuple[int, ...]
    levels: tuple[tuple[NDArray[np.int64], NDArray[np.int64]], ...]

    @classmethod
    def of(cls, weights: Sequence[int]) -> Apportionment:
        """The apportionment by these weights, not all zero."""
        width = 1 << (len(weights) - 1).bit_length()
        nodes = np.zeros(width, dtype=np.int64)
        nodes[: len(weights)] = weights
        levels = []
        while len(nodes) > 1:
            left, whole = nodes[0::2], nodes[0::2] + nodes[1::2]
            # A node without weight hands down nothing, whatever it is divided by.
            levels.append((left[:, None], np.maximum(whole, 1)[:, None]))
            nodes = whole
        return cls(tuple(weights), tuple(reversed(levels)))

    @property
    def total(self) -> int:
        return sum(self.weights)

    @property
    def bound(self) -> float:
        """How many samples a count may differ from its exact share of n."""
        return len(self.levels) / 2

    def counts(self, taken: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the first n samples, for each n of shape (k,): of shape (sources, k)."""
        counts = taken[None]
        for left, whole in self.levels:
            times, rest = np.divmod(counts, whole)
            lefts = times * left + (2 * rest * left + whole) // (2 * whole)
            counts = np.stack((lefts, counts - lefts), axis=1).reshape(-1, len(taken))
        return counts[: len(self.weights)]

    def counts_of(self, taken: int) -> NDArray[np.int64]:
        """Of the first n samples, of shape (sources,)."""
        return self.counts(np.array([taken], dtype=np.int64))[:, 0]

    def least(self, holds: Callable[[NDArray[np.int64]], Any]) -> int:
        """The least n for whose counts something holds, which then holds for any larger n as well.

        At most ``MOST_SAMPLES``, which stands for any n beyond it, too.
        """
        low, high = 0, MOST_SAMPLES
        while low < high:
            middle = (low + high) // 2
            if holds(self.counts_of(middle)):
                high = middle
            else:
                low = middle + 1
        return low
