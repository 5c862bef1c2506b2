"""Samples: explicit randomness for the sample being read (C8)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sized

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.seeding.generators import seed_generators
from dataporter.seeding.hashing import sample_key

__all__ = [
    "CurrentSamples",
    "current_key",
    "generators_handed_out",
    "reading",
    "reseed",
    "sample_rng",
]


class CurrentSamples:
    """The samples that a fetch is reading: a whole batch, or one sample of it.

    Attributes:
        seed, epoch, positions: as in the request.
        offset: the offset of the sample being read in the batch; None while the whole batch is
            read.
        taken: grows with each sample that is read after that one, for a loop that does not set
            the offset each time.
        generators: the generators handed out so far, by offset.
        seeding: seeds those global generators that are seeded for each sample, by its key; None
            if none is.
    """

    __slots__ = (
        "_outer",
        "epoch",
        "generators",
        "offset",
        "positions",
        "seed",
        "seeding",
        "taken",
    )

    def __init__(self, seed: int, epoch: int, positions: NDArray[np.int64] | range) -> None:
        self.seed = seed
        self.epoch = epoch
        self.positions = positions
        self.offset: int | None = None
        self.taken: Sized = ()
        self.generators: dict[int, np.random.Generator] = {}
        self.seeding: Callable[[int], None] | None = seed_generators

    @property
    def sample(self) -> int | None:
        """The offset of the sample being read; None while the whole batch is read."""
        return None if self.offset is None else self.offset + len(self.taken)

    def __enter__(self) -> CurrentSamples:
        self._outer, _local.current = _local.current, self
        return self

    def __exit__(self, *exception: object) -> None:
        _local.current = self._outer

    def generator(self, offset: int) -> np.random.Generator:
        """The generator at this offset of the visible samples; the same object each time."""
        sample = self.sample
        visible = len(self.positions) if sample is None else 1
        if not 0 <= offset < visible:
            raise IndexError(
                f"sample_rng({offset}): expected an offset from 0 to {visible - 1}, because "
                f"{visible} samples are being read"
            )
        offset += sample or 0
        if offset not in self.generators:
            key = sample_key(self.seed, self.epoch, int(self.positions[offset]))
            self.generators[offset] = np.random.default_rng(key)
            _local.handed_out += 1
        return self.generators[offset]


class _Local(threading.local):
    current: CurrentSamples | None = None
    handed_out = 0


_local = _Local()


def reading(seed: int, epoch: int, positions: NDArray[np.int64] | range) -> CurrentSamples:
    """Let :func:`sample_rng` serve a batch within the block; the block sets the ``offset``."""
    return CurrentSamples(seed, epoch, positions)


def generators_handed_out() -> int:
    """How many generators of samples this thread has received, to detect whether any was used."""
    return _local.handed_out


def current_key() -> int | None:
    """The key of the sample being read; of the first one, where the whole batch is. None outside of
    a loader.
    """
    current = _local.current
    if current is None:
        return None
    return sample_key(current.seed, current.epoch, int(current.positions[current.sample or 0]))


def reseed() -> None:
    """Seed the global generators once more for the sample being read, as before it."""
    key = current_key()
    if key is not None and (current := _local.current) is not None and current.seeding is not None:
        current.seeding(key)


def sample_rng(offset: int = 0) -> np.random.Generator:
    """The random generator of the sample being read, a function of (seed, epoch, position).

    For datasets and transforms that use explicit randomness instead of the global generators,
    which DataPorter also seeds. Two calls within one sample return the same generator.

    Args:
        offset: which sample of the batch, counted from 0. Only ``__getitems__`` and a collate
            function see more than one sample at a time and need it.

    Returns:
        A ``numpy.random.Generator`` (PCG64). Outside a ``ResumableDataLoader`` (when the dataset
        is indexed directly or read by a plain ``DataLoader``), a generator seeded from torch's
        default generator, so that ``torch.manual_seed`` controls it.

    Raises:
        IndexError: ``offset`` lies outside the batch being read.

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
    current = _local.current
    if current is None:
        return np.random.default_rng(int(torch.empty((), dtype=torch.int64).random_()))
    return current.generator(offset)
