"""The alias table: each draw by weight costs the same, whatever the number of weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum

import numpy as np
from numpy.typing import NDArray

from dataporter.seeding.hashing import GOLDEN_GAMMA, fold, mix

__all__ = ["FULL", "MOST_WEIGHTS", "AliasTable"]

# A column's threshold is in units of 2**-63 of the mean weight.
_BITS = 63
FULL = 1 << _BITS
# The aliases are 32-bit numbers.
MOST_WEIGHTS = (1 << 32) - 1

# Lights per step of the building, whose temporaries then stay in the processor's cache.
_CHUNK = 1 << 18
# A weight this near to the mean counts as the mean: rounding may put it just below.
_NEAR = 1 - 2.0**-48

_COLUMN, _THRESHOLD = range(2)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


@dataclass(frozen=True, slots=True, eq=False)
class AliasTable:
    """One column per sample, each as wide as the mean weight, shared by at most two samples.

    A draw picks a column evenly and, by a second hash, the column's own sample or its alias
    (Walker, "An efficient method for generating discrete random variables with general
    distributions", 1977). The table is built by whole arrays: lights, in sequence, are filled up by
    heavies, in sequence, and a heavy that gives away too much is filled up by the next one. So the
    pairs follow from the cumulative sums alone (Hübschle-Schneider and Sanders, "Parallel weighted
    random sampling", 2022), and not from a queue, as in Vose's algorithm of 1991.

    Measured in NumPy, beside this table: ``searchsorted`` in cumulative sums takes 6 times as long
    for 10**3 weights and 15 times for 10**6.

    The arithmetic is of integers and of IEEE's exactly rounded operations, elementwise, so that
    every platform builds the same table.

    Attributes:
        thresholds: the own sample's share of each column, uint64, in units of 1/``FULL``.
        aliases: the sample that has the rest of the column; uint32.
    """

    thresholds: NDArray[np.uint64]
    aliases: NDArray[np.uint32]

    @classmethod
    def of(cls, weights: NDArray[np.float64]) -> AliasTable:
        """The table of finite weights, none negative and not all zero.

        The share of a sample below the mean weight is exact to 2**-63 of the mean, and that of a
        sample above it to about 2**-62 of the mean times the number of weights.
        """
        count = len(weights)
        # Scaled by a power of two, so that neither the sum nor a quotient can overflow.
        exponent = np.frexp(weights.max())[1]
        per_mean = count / _total(weights, -exponent)
        thresholds = np.empty(count, dtype=np.uint64)
        is_light = np.empty(count, dtype=np.bool_)
        for part in _chunks(count):
            share = np.ldexp(weights[part], -exponent) * per_mean
            is_light[part] = light = share < _NEAR
            thresholds[part] = np.where(light, np.ldexp(np.minimum(share, 1.0), _BITS), FULL)
        heavies = np.flatnonzero(~is_light).astype(np.uint32)
        lights = np.flatnonzero(is_light).astype(np.uint32)
        aliases = np.arange(count, dtype=np.uint32)
        if lights.size:
            shares = np.ldexp(weights[heavies], -exponent) * per_mean
            _pair(thresholds, aliases, lights, heavies, shares)
        return cls(thresholds, aliases)

    def draw(self, positions: NDArray[np.uint64], key: int) -> NDArray[np.int64]:
        """The sample that each position draws."""
        spread = positions * np.uint64(GOLDEN_GAMMA)
        columns = _below(len(self.aliases), mix(spread + np.uint64(fold(key, _COLUMN))))
        chosen = mix(spread + np.uint64(fold(key, _THRESHOLD))) >> np.uint64(64 - _BITS)
        is_own = chosen < np.take(self.thresholds, columns)
        return np.where(is_own, columns, np.take(self.aliases, columns))


def _below(count: int, hashed: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Each hash as an even choice of 0..count-1: ``hashed * count >> 64``, for 32-bit counts."""
    width = np.uint64(count)
    low = (hashed & _LOW) * width >> _HALF
    high: NDArray[np.uint64] = ((hashed >> _HALF) * width + low) >> _HALF
    return high.view(np.int64)


def _chunks(count: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, count, _CHUNK)]


def _total(weights: NDArray[np.float64], exponent: int) -> float:
    """The sum of the weights times 2**exponent, rounded alike everywhere.

    NumPy's own sum depends on the processor's vector length.
    """
    return fsum(_halved(np.ldexp(weights[part], exponent)) for part in _chunks(len(weights)))


def _halved(sums: NDArray[np.float64]) -> float:
    """The sum of a chunk, pair by pair."""
    while len(sums) > 1:
        if len(sums) % 2:
            sums = np.append(sums, 0.0)
        sums = sums[::2] + sums[1::2]
    return float(sums[0])


def _pair(
    thresholds: NDArray[np.uint64],
    aliases: NDArray[np.uint32],
    lights: NDArray[np.uint32],
    heavies: NDArray[np.uint32],
    shares: NDArray[np.float64],
) -> None:
    """Fill up the lights' columns, and those of heavies that gave away too much; in place.

    Sums over all columns exceed 64 bits, so they are counted in coarse units of 2**fine of the
    thresholds' units. Heavies have whole coarse units, by which a light's remainder below one unit
    decides no comparison.

    Args:
        shares: of the heavies, in mean weights.
    """
    fine = len(thresholds).bit_length()
    remainder = np.uint64((1 << fine) - 1)
    missing = sum(
        _sum_of(FULL - thresholds[lights[part]], fine, remainder) for part in _chunks(len(lights))
    )
    # What all heavies up to each one can give, so that the last one can give all that is missing.
    given = _cumulative(shares, fine, -(-missing >> fine) + 1)
    before = 0
    for part in _chunks(len(lights)):
        own = lights[part]
        deficits = FULL - thresholds[own]
        low = np.cumsum(deficits & remainder) + np.uint64(before & int(remainder))
        high = np.cumsum(deficits >> np.uint64(fine)) + np.uint64(before >> fine)
        high += low >> np.uint64(fine)
        low &= remainder
        high = high.view(np.int64)
        started = np.concatenate(([before >> fine], high[:-1]))
        # The heavies that these lights use up, and the next one: a search in a few stays in cache.
        first, stop = np.searchsorted(given, [before >> fine, high[-1]], side="right")
        some, can_give = heavies[first : stop + 1], given[first : stop + 1]
        aliases[own] = some[np.searchsorted(can_give, started, side="right")]
        used = can_give[:-1]
        at = np.searchsorted(high, used, side="left")
        excess = ((high[at] - used).view(np.uint64) << np.uint64(fine)) + low[at]
        thresholds[some[:-1]] = FULL - excess
        aliases[some[:-1]] = some[1:]
        before = (int(high[-1]) << fine) + int(low[-1])


def _sum_of(values: NDArray[np.uint64], fine: int, remainder: np.uint64) -> int:
    """The sum of a chunk, without overflow."""
    return (int((values >> np.uint64(fine)).sum()) << fine) + int((values & remainder).sum())


def _cumulative(shares: NDArray[np.float64], fine: int, total: int) -> NDArray[np.int64]:
    """The heavies' surpluses up to each one, in coarse units; the last one is the total."""
    coarse = np.ldexp(np.maximum(shares - 1, 0), _BITS - fine)
    given = coarse.astype(np.int64)
    coarse -= given
    # Fractions are carried on, so that no error adds up.
    parts = np.ldexp(coarse, 32).astype(np.uint64)
    np.cumsum(given, out=given)
    given += (np.cumsum(parts, out=parts) >> _HALF).view(np.int64)
    # The shares are rounded, so the two sums differ by about 2**-50: spread that over all.
    if last := int(given[-1]):
        given += np.rint((given / last) * (total - last)).astype(np.int64)
    given[-1] = total
    return given
