"""Samples: explicit randomness for the sample that is being read (C8)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.seeding.hashing import sample_key

__all__ = [
    "Reading",
    "reading",
    "sample_rng",
]


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
