"""Successive draws: distinct samples, each drawn by weight among those that are left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataporter.seeding.hashing import GOLDEN_GAMMA, mix

__all__ = ["SuccessiveDraws"]

_CHUNK = 1 << 16
_LN2 = 0.6931471805599453
_ROOT = 0.7071067811865476
# The series of the logarithm, of which the next term is below 2**-56.
_TERMS = [2 / (2 * k + 1) for k in range(11)]


class SuccessiveDraws:
    """``samples`` distinct samples of an epoch, in the sequence in which they are drawn.

    Each sample has an exponential variate of its hash, divided by its weight, and the smallest
    come first: the same as to draw by weight, one after the other, among those that are left
    (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).

    The first index of an epoch costs the whole epoch, and memory holds the last two epochs: two,
    because workers may prefetch the next epoch before this one is finished.
    """

    def __init__(self, weights: NDArray[np.float64], samples: int) -> None:
        self._weights = np.ldexp(weights, -np.frexp(weights.max())[1])
        # Weights that are too small beside the greatest one count as equal, and come last.
        self._is_absent = weights == 0
        self._samples = samples
        self._drawn: dict[int, NDArray[np.int64]] = {}

    def draw(self, positions: NDArray[np.uint64], key: int) -> NDArray[np.int64]:
        """The sample that each position draws."""
        # Another thread may replace the dict meanwhile.
        drawn = self._drawn
        if (epoch := drawn.get(key)) is None:
            epoch = self._epoch(key)
            self._drawn = dict([*list(drawn.items())[-1:], (key, epoch)])
        return np.take(epoch, positions.view(np.int64))

    def _epoch(self, key: int) -> NDArray[np.int64]:
        turns = np.empty(len(self._weights))
        for first in range(0, len(turns), _CHUNK):
            weights = self._weights[first : first + _CHUNK]
            numbers = np.arange(first, first + len(weights), dtype=np.uint64)
            hashed = mix(numbers * np.uint64(GOLDEN_GAMMA) + np.uint64(key))
            uniform = ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
            with np.errstate(divide="ignore", over="ignore"):
                turns[first : first + _CHUNK] = -_logarithm(uniform) / weights
        turns[self._is_absent] = np.nan  # sorted after infinity
        if self._samples == len(turns):
            return np.argsort(turns, kind="stable").astype(np.int64)
        last = np.partition(turns, self._samples - 1)[self._samples - 1]
        before = np.flatnonzero(turns < last)
        # Of those that are equal, as many as there is room for, in a sequence that is fixed.
        equal = np.flatnonzero(turns == last)[: self._samples - len(before)]
        chosen = np.concatenate((before, equal))
        return chosen[np.argsort(turns[chosen], kind="stable")].astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_drawn": {}}


def _logarithm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The natural logarithm, from exactly rounded operations, so that it is the same everywhere.

    NumPy's own differs in the last bit from one processor to another, which may swap two samples.
    """
    mantissas, exponents = np.frexp(values)
    is_low = mantissas < _ROOT
    mantissas = np.where(is_low, 2 * mantissas, mantissas)
    slope = (mantissas - 1) / (mantissas + 1)
    square = slope * slope
    series = np.full_like(square, _TERMS[-1])
    for term in reversed(_TERMS[:-1]):
        series *= square
        series += term
    logarithms: NDArray[np.float64] = slope * series + (exponents - is_low) * _LN2
    return logarithms
