"""Keyed permutations of 0..length-1, computed for each value separately (C9)."""

from __future__ import annotations

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from dataporter.seeding.hashing import GOLDEN_GAMMA, fold, fold_each, mix

__all__ = ["SORTED_LENGTH", "distinct", "permute", "permute_each", "permute_many"]

# Up to this length the permutation sorts hashed keys: exactly uniform, which a Feistel network over
# so few values is not, and as cheap (tens of microseconds).
SORTED_LENGTH = 4096
ROUNDS = 6

_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_HALF = np.uint64(32)
# Keys sorted at once, whatever the number of requested permutations: half a megabyte.
_SORTED_AT_ONCE = 1 << 16


def permute(values: NDArray[np.uint64], length: int, key: int) -> NDArray[np.uint64]:
    """The image of each value (0..length-1) under the permutation of ``key``."""
    if length <= SORTED_LENGTH:
        (permutation,) = _sorted_permutations(np.array([key], dtype=np.uint64), length)
        return np.take(permutation, values.view(np.int64))
    rounds = np.array([[fold(key, turn)] for turn in range(ROUNDS)], dtype=np.uint64)
    return _feistel(values, length, rounds)


def permute_each(
    values: NDArray[np.uint64], owners: NDArray[np.uint64], length: int, key: int
) -> NDArray[np.uint64]:
    """:func:`permute` with a separate key for each value: ``fold(key, owner)`` of its owner.

    Both arrays are one-dimensional. Values of few owners cost little more than those of one.
    """
    some, which = distinct(owners)
    return _permute_keyed(values, which, length, fold_each(np.array([key], dtype=np.uint64), some))


def permute_many(
    values: NDArray[np.uint64],
    which: NDArray[np.int64],
    lengths: NDArray[np.int64],
    keys: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """:func:`permute` with ``lengths[which]`` and ``keys[which]`` for each value."""
    permuted = np.empty_like(values)
    short = lengths <= SORTED_LENGTH
    for length in np.unique(lengths[short]).tolist():
        owners = np.flatnonzero(lengths == length)
        here = np.flatnonzero(lengths[which] == length)
        among = np.searchsorted(owners, which[here])
        permuted[here] = _permute_keyed(values[here], among, length, keys[owners])
    if not short.all():
        here = np.flatnonzero(~short[which])
        rounds = fold_each(keys, np.arange(ROUNDS, dtype=np.uint64)[:, None])
        owners = which[here]
        permuted[here] = _feistel(values[here], lengths[owners], rounds[:, owners])
    return permuted


def _permute_keyed(
    values: NDArray[np.uint64], which: NDArray[np.int64], length: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """:func:`permute` with ``keys[which]`` for each value."""
    if length <= SORTED_LENGTH:
        return _by_sorting(values, which, length, keys)
    rounds = fold_each(keys, np.arange(ROUNDS, dtype=np.uint64)[:, None])
    return _feistel(values, length, rounds if len(keys) == 1 else rounds[:, which])


def distinct(values: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """A few values that include all the given ones, and the index of each given value among them.

    Values that are close together, like those of consecutive positions, need no sorting: the result
    is the whole range between them, if it is no longer than the input.
    """
    lowest, highest = values.min(), values.max()
    if int(highest) - int(lowest) < values.size:
        between = np.arange(int(highest) - int(lowest) + 1, dtype=np.uint64) + lowest
        return between, (values - lowest).view(np.int64)
    return np.unique(values, return_inverse=True)


def _by_sorting(
    values: NDArray[np.uint64], which: NDArray[np.int64], length: int, keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    at_once = max(1, _SORTED_AT_ONCE // length)
    if len(keys) <= at_once:
        return _sorted_permutations(keys, length)[which, values]
    permuted = np.empty_like(values)
    for first in range(0, len(keys), at_once):
        chunk = (which >= first) & (which < first + at_once)
        rows = _sorted_permutations(keys[first : first + at_once], length)
        permuted[chunk] = rows[which[chunk] - first, values[chunk]]
    return permuted


def _sorted_permutations(keys: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """The whole permutation of each key, shape (keys, length)."""
    # mix is a bijection, so the keys are distinct and the sort breaks no ties.
    spread = np.arange(length, dtype=np.uint64) * np.uint64(GOLDEN_GAMMA)
    return np.argsort(mix(spread + keys[:, None])).view(np.uint64)


def _feistel(
    values: NDArray[np.uint64], length: int | NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Permute ``values`` within 0..length-1: encipher, and again while outside.

    ``length`` is one for all values, or one for each; ``keys`` has a row for each round: one key,
    or one per value.
    """
    left_radix, right_radix = _radices(length)
    bound = np.asarray(length).astype(np.uint64)

    permuted = _encipher(values, left_radix, right_radix, keys)
    outside = np.flatnonzero(permuted >= bound)
    while outside.size:
        theirs = (left_radix, right_radix, bound)
        left, right, below = (one if one.ndim == 0 else one[outside] for one in theirs)
        their_keys = keys if keys.shape[1] == 1 else keys[:, outside]
        walked = _encipher(permuted.flat[outside], left, right, their_keys)
        permuted.flat[outside] = walked
        outside = outside[walked >= below]
    return permuted


def _radices(length: int | NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The number of left and of right digits for each length."""
    if isinstance(length, int):
        left = isqrt(length - 1) + 1
        return np.uint64(left), np.uint64(-(-length // left))
    some, which = np.unique(length, return_inverse=True)
    lefts = np.array([isqrt(one - 1) + 1 for one in some.tolist()], dtype=np.int64)
    rights = -(-some // lefts)
    return lefts.astype(np.uint64)[which], rights.astype(np.uint64)[which]


def _encipher(
    values: NDArray[np.uint64],
    left_radix: NDArray[np.uint64],
    right_radix: NDArray[np.uint64],
    keys: NDArray[np.uint64],
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
    key: NDArray[np.uint64],
    radix: NDArray[np.uint64],
    scratch: NDArray[np.uint64],
) -> None:
    """``target = (target + hash(source, key)) mod radix``, in place."""
    shifted = np.add(source, key, out=scratch)
    shifted *= _MULTIPLIER
    shifted ^= shifted >> _HALF
    shifted *= _MULTIPLIER
    shifted >>= _HALF
    # Lemire, "Fast random integer generation in an interval" (2019): the top 32 bits times the
    # radix, shifted back, are within 0..radix-1 without a division.
    shifted *= radix
    shifted >>= _HALF
    target += shifted
    # Both summands are below the radix. If the sum is too, target - radix wraps to a huge number,
    # and the minimum keeps the sum.
    np.subtract(target, radix, out=scratch)
    np.minimum(target, scratch, out=target)
