"""Keyed randomness: the hash behind every seed, and the seeding of the global generators (C8)."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator
from numpy.typing import NDArray

from dataporter.seeding import numpy_state

__all__ = [
    "fold",
    "fold_each",
    "global_state",
    "isolated_generators",
    "mix",
    "reading",
    "sample_key",
    "sample_keys",
    "sample_rng",
    "seed_generators",
]

# Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014): the golden
# gamma, and Stafford's variant 13 of the MurmurHash3 finaliser as used by SplitMix64.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK_64 = (1 << 64) - 1

# Each use of the loader's seed hashes its own word in, so that no two uses share a stream.
STREAM_ORDER = 1
STREAM_SAMPLE = 2
STREAM_SAMPLER = 3
STREAM_WORKERS = 4
STREAM_SHARD = 5


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, a bijection of 64-bit words, over a fresh array."""
    mixed: NDArray[np.uint64] = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(_MULTIPLIER_1)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_MULTIPLIER_2)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def fold(*words: int) -> int:
    """Hash whole numbers into one 64-bit word; the order of the words counts."""
    state = 0
    for word in words:
        state = _mix_word((state * _MULTIPLIER_2 + word + GOLDEN_GAMMA) & _MASK_64)
    return state


def fold_each(
    keys: NDArray[np.uint64], words: NDArray[np.uint64] | np.uint64
) -> NDArray[np.uint64]:
    """``fold(key, word)`` of each pair."""
    gamma = np.uint64(GOLDEN_GAMMA)
    return mix(mix(keys + gamma) * np.uint64(_MULTIPLIER_2) + words + gamma)


def _mix_word(word: int) -> int:
    """:func:`mix` of one word."""
    word = ((word ^ (word >> 30)) * _MULTIPLIER_1) & _MASK_64
    word = ((word ^ (word >> 27)) * _MULTIPLIER_2) & _MASK_64
    return word ^ (word >> 31)


def sample_keys(seed: int, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each sample: a hash of (seed, epoch, position), all different within an epoch."""
    base = np.uint64(fold(seed, epoch, STREAM_SAMPLE))
    places: NDArray[np.uint64] = positions.astype(np.uint64) * np.uint64(GOLDEN_GAMMA)
    return mix(places + base)


def sample_key(seed: int, epoch: int, position: int) -> int:
    """One of :func:`sample_keys`; for a single sample Python's numbers are ten times as fast."""
    base = fold(seed, epoch, STREAM_SAMPLE)
    return _mix_word((position * GOLDEN_GAMMA + base) & _MASK_64)


def seed_generators(key: int) -> None:
    """Seed Python's ``random``, NumPy's legacy generator and torch's default CPU generator.

    NumPy and torch run the same Mersenne Twister and torch reads 32 bits of a seed, so each is
    given its own half of the key: equal halves would make the two streams copies of one another.
    """
    random.seed(key)
    try:
        np.random.seed(key >> 32)
    except TypeError:  # somebody chose another bit generator with numpy.random.set_bit_generator
        generator = get_bit_generator()
        generator.state = type(generator)(key >> 32).state
    torch.default_generator.manual_seed(key & 0xFFFFFFFF)


def global_state() -> tuple[Any, bytes, bytes]:
    """The states of the three, to be compared: whether anybody has drawn."""
    return (
        random.getstate(),
        numpy_state.words(),
        torch.default_generator.get_state().numpy().tobytes(),
    )


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Put the states of the three global generators back when the block ends."""
    python_state = random.getstate()
    legacy_state = numpy_state.save()
    torch_state = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy_state.put_back(legacy_state)
        torch.default_generator.set_state(torch_state)


class Reading:
    """What a fetch reads at the moment: a whole batch, or one sample of it.

    Attributes:
        seed, epoch, positions: as in the request.
        place: the sample being read, counted within the batch; None where the whole batch is.
    """

    __slots__ = ("epoch", "generators", "place", "positions", "seed")

    def __init__(self, seed: int, epoch: int, positions: NDArray[np.int64] | range) -> None:
        self.seed = seed
        self.epoch = epoch
        self.positions = positions
        self.place: int | None = None
        self.generators: dict[int, np.random.Generator] = {}

    def generator(self, place: int) -> np.random.Generator:
        """The generator of the place-th sample that can be seen; the same object each time."""
        visible = len(self.positions) if self.place is None else 1
        if not 0 <= place < visible:
            raise IndexError(
                f"sample_rng({place}): {visible} samples are being read, so place must be within "
                f"0..{visible - 1}"
            )
        place += self.place or 0
        if place not in self.generators:
            key = sample_key(self.seed, self.epoch, int(self.positions[place]))
            self.generators[place] = np.random.default_rng(key)
        return self.generators[place]


class _Local(threading.local):
    reading: Reading | None = None


_local = _Local()


@contextmanager
def reading(seed: int, epoch: int, positions: NDArray[np.int64] | range) -> Iterator[Reading]:
    """Let :func:`sample_rng` serve a batch within the block; the block sets the ``place``."""
    outer, current = _local.reading, Reading(seed, epoch, positions)
    _local.reading = current
    try:
        yield current
    finally:
        _local.reading = outer


def sample_rng(place: int = 0) -> np.random.Generator:
    """The random generator of the sample being read, a function of (seed, epoch, position) alone.

    For datasets and transforms that want explicit randomness instead of the global generators,
    which DataPorter seeds as well. Two calls within one sample return the same generator.

    Args:
        place: which sample of the batch, counted from 0. Only ``__getitems__`` and a collate
            function see more than one sample at a time and need it.

    Returns:
        A ``numpy.random.Generator`` (PCG64). Outside a ``ResumableDataLoader`` (the dataset is
        indexed by hand, or read by a plain ``DataLoader``) one that is seeded from torch's default
        generator, so that ``torch.manual_seed`` governs it.

    Raises:
        IndexError: ``place`` lies outside the batch being read.

    Example:
        >>> class Noisy:
        ...     def __len__(self):
        ...         return 4
        ...     def __getitem__(self, index):
        ...         return index + sample_rng().normal()
        >>> from dataporter import ResumableDataLoader
        >>> first, again = (next(iter(ResumableDataLoader(Noisy(), 4, seed=1))) for _ in "ab")
        >>> bool((first == again).all())
        True
    """
    current = _local.reading
    if current is None:
        return np.random.default_rng(int(torch.empty((), dtype=torch.int64).random_()))
    return current.generator(place)
