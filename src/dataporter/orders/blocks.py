"""`blocks`: shuffled blocks of neighbours, mixed a few at a time, for data read from disk (C9)."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders.permutation import distinct, permute, permute_each
from dataporter.seeding.hashing import STREAM_ORDER, fold

__all__ = ["BlockShuffledOrder"]

# What is drawn for an epoch, each by a key of its own.
_BLOCKS, _LAST_BLOCK, _WINDOWS = range(3)


@dataclass(frozen=True, slots=True)
class BlockShuffledOrder:
    """Every sample once an epoch: blocks of consecutive samples, shuffled, mixed in small windows.

    For datasets that are read from a disk and do not fit into memory, where a full shuffle fetches
    every sample from another place. The dataset is cut into blocks of ``block`` samples, and these
    come in an order drawn anew from (seed, epoch). Every ``buffer`` of them in turn make a window,
    whose samples are shuffled among each other. So whoever reads the epoch needs ``buffer`` blocks
    at a time; a sample can come at any place of its window, and its block at any place of the
    epoch, but those it shares a window with are its own block and ``buffer - 1`` others.

    As in :class:`~dataporter.ShuffledOrder` nothing is listed or remembered: time and memory depend
    on the number of positions asked for. The same buffered shuffle, drawn from a stream, is that of
    ``tf.data`` and WebDataset; this one can be entered anywhere.

    Args:
        block: consecutive samples that are read together. A block should be no smaller than what
            the kernel reads ahead of a page (the disk's ``read_ahead_kb``), or than what the file
            is compressed or fetched by: a megabyte or more.
        buffer: blocks that are mixed. ``block * buffer`` samples should fit into memory, or
            the page cache, with what the workers read ahead; from the dataset's length on the
            order is a full shuffle.

    Raises:
        ConfigurationError: (a ``ValueError``) one of them is no whole number of 1 or more.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> order = BlockShuffledOrder(block=3, buffer=2)
        >>> loader = ResumableDataLoader(range(12), batch_size=6, order=order, seed=1)
        >>> [batch.tolist() for batch in loader]
        [[11, 4, 3, 5, 9, 10], [0, 7, 8, 2, 6, 1]]
    """

    block: int = 1024
    buffer: int = 16

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("block", "buffer"):
            object.__setattr__(self, name, _counted(name, getattr(self, name)))

    @property
    def name(self) -> str:
        """``blocks`` with both parameters."""
        return f"blocks(block={self.block}, buffer={self.buffer})"

    def epoch_length(self, dataset_length: int) -> int:
        """Every sample once."""
        return dataset_length

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices of the samples at these positions; both int64 of the same shape."""
        if positions.size == 0:
            return positions
        key = fold(seed, epoch, STREAM_ORDER)
        cut = _Cut.of(dataset_length, self.block, self.buffer, key)
        places = cut.mixed(cut.padded(positions.ravel().astype(np.uint64)), key)
        return cut.indices(places, key).view(np.int64).reshape(positions.shape)


@dataclass(frozen=True, slots=True)
class _Cut:
    """An epoch cut into windows of blocks.

    The dataset's last block may be short. Its slot among the blocks of the epoch is drawn first,
    and the others are permuted around it: so it is known in which window positions are missing,
    without asking the permutation where it put that block. The arithmetic is that of whole blocks;
    "places" are positions as if the last block were one, too.

    Attributes:
        block, buffer: at most the dataset's length and the number of blocks, so that all numbers
            stay below twice that length and fit into 64 bits.
        count: number of blocks.
        missing: what the last block lacks to be whole.
        last_slot: where in the epoch it comes.
    """

    block: int
    buffer: int
    count: int
    missing: int
    last_slot: int

    @classmethod
    def of(cls, length: int, block: int, buffer: int, key: int) -> _Cut:
        block = min(block, length)
        count = -(-length // block)
        last_slot = fold(key, _LAST_BLOCK) * count >> 64
        return cls(block, min(buffer, count), count, count * block - length, last_slot)

    @property
    def window(self) -> int:
        """Samples in a window of whole blocks."""
        return self.block * self.buffer

    @property
    def short_window(self) -> int:
        """The window that has the last block."""
        return self.last_slot // self.buffer

    @property
    def last_end(self) -> int:
        """The place after the last block's samples."""
        return (self.last_slot + 1) * self.block - self.missing

    def window_length(self, window: int) -> int:
        """Samples in this window."""
        whole = min(self.window, self.count * self.block - window * self.window)
        return whole - (self.missing if window == self.short_window else 0)

    def padded(self, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Positions → places: past the short window all are later by what it lacks."""
        end = self.short_window * self.window + self.window_length(self.short_window)
        return _moved(positions, positions >= np.uint64(end), self.missing)

    def mixed(self, places: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
        """Each place's image under the permutation of its window."""
        windows = places // np.uint64(self.window)
        starts = windows * np.uint64(self.window)
        offsets = places - starts
        key = fold(key, _WINDOWS)
        whole = np.ones(windows.shape, dtype=np.bool_)
        for window in {self.short_window, (self.count - 1) // self.buffer}:
            ours = windows == np.uint64(window)
            if ours.any() and (length := self.window_length(window)) < self.window:
                offsets[ours] = permute_each(offsets[ours], windows[ours], length, key)
                whole &= ~ours
        if whole.all():
            offsets = permute_each(offsets, windows, self.window, key)
        elif whole.any():
            offsets[whole] = permute_each(offsets[whole], windows[whole], self.window, key)
        mixed = starts + offsets
        after = (windows == np.uint64(self.short_window)) & (mixed >= np.uint64(self.last_end))
        return _moved(mixed, after, self.missing)

    def indices(self, places: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
        """Places → indices: the blocks permuted."""
        block = np.uint64(self.block)
        slots = places // block
        indices: NDArray[np.uint64] = places - slots * block
        some, which = distinct(slots)
        indices += (self._blocks(some, key) * block)[which]
        return indices

    def _blocks(self, slots: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
        """Which block of the dataset comes in each slot."""
        others, last = self.count - 1, np.uint64(self.last_slot)
        if others == 0:
            return slots
        # The slots besides the last block's, counted by themselves; that one takes any of them.
        numbers = np.minimum(slots - (slots > last), np.uint64(others - 1))
        blocks = permute(numbers, others, fold(key, _BLOCKS))
        blocks[slots == last] = others
        return blocks


def _moved(
    values: NDArray[np.uint64], chosen: NDArray[np.bool_], distance: int
) -> NDArray[np.uint64]:
    """The values, the chosen ones larger by ``distance``."""
    moved = chosen.astype(np.uint64)
    moved *= np.uint64(distance)
    moved += values
    return moved


def _counted(name: str, value: Any) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < 1:
        raise ConfigurationError(
            f"BlockShuffledOrder({name}={value!r}): expected a whole number of 1 or more, how many "
            + ("samples a block has" if name == "block" else "blocks are mixed")
        )
    return number
