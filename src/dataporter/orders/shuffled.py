"""`shuffled`: a keyed permutation of the dataset, computed for any position on its own (C9)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.rng import GOLDEN_GAMMA, STREAM_ORDER, fold, mix

__all__ = ["ShuffledOrder"]

# Up to this length the permutation is made by sorting hashed keys: exactly uniform, where a
# Feistel network over so few values is not, and as cheap (tens of microseconds).
SORTED_LENGTH = 4096
ROUNDS = 6

_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True)
class ShuffledOrder:
    """Every sample once an epoch, in an order drawn anew from (seed, epoch).

    The permutation is a Feistel network over pairs of digits in mixed radix (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002): the length n is enclosed by a x b with
    a and b next to its square root, so hardly any value falls outside and has to walk the cycle.
    Time and memory depend on the number of positions asked for, never on n.
    """

    name: ClassVar[str] = "shuffled"
    version: ClassVar[int] = 1

    def epoch_length(self, dataset_length: int) -> int:
        """Every sample once."""
        return dataset_length

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices of the samples at these positions; both int64 of the same shape."""
        key = fold(seed, epoch, STREAM_ORDER)
        if dataset_length <= SORTED_LENGTH:
            return _sorted_permutation(key, dataset_length)[positions]
        return _feistel(positions.astype(np.uint64), dataset_length, key).view(np.int64)


def _sorted_permutation(key: int, length: int) -> NDArray[np.int64]:
    # mix is a bijection, so the keys differ from each other and the sort has no ties to favour.
    places = np.arange(length, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    return np.argsort(mix(places + np.uint64(key)))


def _feistel(values: NDArray[np.uint64], length: int, key: int) -> NDArray[np.uint64]:
    """Permute ``values`` within 0..length-1: encipher, and again whatever fell outside."""
    left_radix = isqrt(length - 1) + 1
    right_radix = -(-length // left_radix)
    keys = [np.uint64(fold(key, turn)) for turn in range(ROUNDS)]
    bound = np.uint64(length)

    permuted = _encipher(values, np.uint64(left_radix), np.uint64(right_radix), keys)
    outside = np.flatnonzero(permuted >= bound)
    while outside.size:
        walked = _encipher(
            permuted.flat[outside], np.uint64(left_radix), np.uint64(right_radix), keys
        )
        permuted.flat[outside] = walked
        outside = outside[walked >= bound]
    return permuted


def _encipher(
    values: NDArray[np.uint64],
    left_radix: np.uint64,
    right_radix: np.uint64,
    keys: list[np.uint64],
) -> NDArray[np.uint64]:
    left = values // right_radix
    right = values - left * right_radix
    scratch = np.empty_like(left)
    for turn, key in enumerate(keys):
        if turn % 2 == 0:
            _add_hashed(left, right, key, left_radix, scratch)
        else:
            _add_hashed(right, left, key, right_radix, scratch)
    left *= right_radix
    left += right
    return left


def _add_hashed(
    target: NDArray[np.uint64],
    source: NDArray[np.uint64],
    key: np.uint64,
    radix: np.uint64,
    scratch: NDArray[np.uint64],
) -> None:
    """``target = (target + hash(source, key)) mod radix``, in place."""
    shifted = np.add(source, key, out=scratch)
    shifted *= _MULTIPLIER
    shifted ^= shifted >> _HALF
    shifted *= _MULTIPLIER
    shifted >>= _HALF
    # Lemire, "Fast random integer generation in an interval" (2019): the top 32 bits times the
    # radix, shifted back, lie within 0..radix-1 without a division.
    shifted *= radix
    shifted >>= _HALF
    target += shifted
    # Both summands lie below the radix; where the sum does too, target - radix wraps to something
    # huge and the minimum keeps the sum.
    np.subtract(target, radix, out=scratch)
    np.minimum(target, scratch, out=target)
