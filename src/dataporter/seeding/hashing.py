"""Hashing: the keyed hash behind every seed (C8)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "GOLDEN_GAMMA",
    "STREAM_MIXTURE",
    "STREAM_OPENING",
    "STREAM_ORDER",
    "STREAM_REPLACEMENT",
    "STREAM_SAMPLE",
    "STREAM_SAMPLER",
    "STREAM_SHARD",
    "STREAM_WORKERS",
    "fold",
    "fold_each",
    "fold_on",
    "mix",
    "sample_key",
    "sample_keys",
]

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): the golden
# gamma, and Stafford's variant 13 of the MurmurHash3 finaliser as used by SplitMix64.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1

# Each use of the loader's seed hashes in a different word, so no two uses share a stream.
STREAM_ORDER = 1
STREAM_SAMPLE = 2
STREAM_SAMPLER = 3
STREAM_WORKERS = 4
STREAM_SHARD = 5
STREAM_REPLACEMENT = 6
STREAM_OPENING = 7
STREAM_MIXTURE = 8


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection of 64-bit words; returns a new array."""
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(_MULTIPLIER_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MULTIPLIER_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def fold(*words: int) -> int:
    """Hash whole numbers into one 64-bit word; the order of the words matters."""
    state = 0
    for word in words:
        state = _mix_word((state * _MULTIPLIER_2 + word + GOLDEN_GAMMA) & _MASK_64)
    return state


def fold_each(
    keys: NDArray[np.uint64], words: NDArray[np.uint64] | np.uint64
) -> NDArray[np.uint64]:
    """``fold(key, word)`` for each pair."""
    gamma = np.uint64(GOLDEN_GAMMA)
    return mix(mix(keys + gamma) * np.uint64(_MULTIPLIER_2) + words + gamma)


def fold_on(
    folded: NDArray[np.uint64], words: NDArray[np.uint64] | np.uint64
) -> NDArray[np.uint64]:
    """``fold(*words_before, word)``, where ``folded`` is ``fold(*words_before)``."""
    return mix(folded * np.uint64(_MULTIPLIER_2) + words + np.uint64(GOLDEN_GAMMA))


def _mix_word(word: int) -> int:
    """:func:`mix` of one word."""
    word = ((word ^ (word >> 30)) * _MULTIPLIER_1) & _MASK_64
    word = ((word ^ (word >> 27)) * _MULTIPLIER_2) & _MASK_64
    return word ^ (word >> 31)


def sample_keys(seed: int, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each sample: a hash of (seed, epoch, position), unique within an epoch."""
    base = np.uint64(fold(seed, epoch, STREAM_SAMPLE))
    spread: NDArray[np.uint64] = positions.astype(np.uint64) * np.uint64(GOLDEN_GAMMA)
    return mix(spread + base)


def sample_key(seed: int, epoch: int, position: int) -> int:
    """One of :func:`sample_keys`; for a single sample Python integers are ten times as fast."""
    base = fold(seed, epoch, STREAM_SAMPLE)
    return _mix_word((position * GOLDEN_GAMMA + base) & _MASK_64)
