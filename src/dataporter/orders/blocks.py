"""`blocks`: shuffled blocks of neighbours, mixed a few at a time, for data read from disk (C9)."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders.permutation import distinct, permute, permute_each
from dataporter.seeding.hashing import STREAM_ORDER, fold

__all__ = ["BlockShuffledOrder", "blocks_named"]

_NAME = re.compile(r"blocks\(block=(\d+), buffer=(\d+)\)")
# The draws of an epoch, each with a separate key.
_BLOCKS, _LAST_BLOCK, _WINDOWS = range(3)


@dataclass(frozen=True, slots=True)
class BlockShuffledOrder:
    """Every sample once per epoch: shuffled blocks of consecutive samples, mixed in small windows.

    For datasets that are read from disk and do not fit into memory, where a full shuffle reads
    every sample from a different part of the file. The dataset is divided into blocks of ``block``
    samples, whose order is redrawn from (seed, epoch). Every ``buffer`` consecutive blocks form a
    window, and the samples of a window are shuffled. Reading an epoch therefore needs ``buffer``
    blocks at a time. A sample can land anywhere in its window, and its block anywhere in the epoch,
    but a window mixes only ``buffer`` blocks.

    As in :class:`~dataporter.ShuffledOrder`, no list is kept: time and memory depend on the number
    of requested positions. ``tf.data`` and WebDataset shuffle streams with the same kind of buffer;
    this order can also start at any position.

    Args:
        block: consecutive samples that are read together. Make a block at least as large as the
            kernel's read-ahead (the disk's ``read_ahead_kb``) and as the chunks in which the file
            is compressed or fetched: a megabyte or more.
        buffer: blocks that are mixed. ``block * buffer`` samples should fit into memory or the page
            cache, together with the prefetched batches; if they are the whole dataset or more,
            the order is a full shuffle.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is not a whole number of 1 or more.

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
            object.__setattr__(self, name, _checked(name, getattr(self, name)))

    @property
    def name(self) -> str:
        """``blocks`` with both parameters; :func:`blocks_named` reads it."""
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
        layout = _Layout.draw(dataset_length, self.block, self.buffer, key)
        padded = layout.pad(positions.ravel().astype(np.uint64))
        padded = layout.mix_windows(padded, key)
        return layout.indices(padded, key).view(np.int64).reshape(positions.shape)


def blocks_named(name: str) -> BlockShuffledOrder | None:
    """The block order with this name, as a state holds it; None for any other name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        order = BlockShuffledOrder(*map(int, match.groups()))
    except ValueError:  # a 0, or more digits than Python converts
        return None
    return order if order.name == name else None


@dataclass(frozen=True, slots=True)
class _Layout:
    """An epoch divided into windows of blocks.

    The dataset's last block may be short. Its slot among the blocks of the epoch is drawn first,
    and the other blocks are permuted around it, so the window with missing positions is known
    without computing where the permutation puts that block. The arithmetic uses whole blocks:
    "padded" positions count the last block as if it were whole.

    Attributes:
        block, buffer: at most the dataset's length and the number of blocks, so that all numbers
            stay below twice that length and fit into 64 bits.
        count: number of blocks.
        missing: how many samples short the last block is.
        last_slot: its slot among the blocks of the epoch.
    """

    block: int
    buffer: int
    count: int
    missing: int
    last_slot: int

    @classmethod
    def draw(cls, length: int, block: int, buffer: int, key: int) -> _Layout:
        block = min(block, length)
        count = -(-length // block)
        last_slot = fold(key, _LAST_BLOCK) * count >> 64
        return cls(block, min(buffer, count), count, count * block - length, last_slot)

    @property
    def window(self) -> int:
        """Number of samples in a window of whole blocks."""
        return self.block * self.buffer

    @property
    def short_window(self) -> int:
        """The window that holds the last block."""
        return self.last_slot // self.buffer

    @property
    def last_end(self) -> int:
        """The padded position after the last block's samples."""
        return (self.last_slot + 1) * self.block - self.missing

    def window_length(self, window: int) -> int:
        """Number of samples in this window."""
        whole = min(self.window, self.count * self.block - window * self.window)
        return whole - (self.missing if window == self.short_window else 0)

    def pad(self, positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Positions → padded positions: those after the short window move by ``missing``."""
        end = self.short_window * self.window + self.window_length(self.short_window)
        return _moved(positions, positions >= np.uint64(end), self.missing)

    def mix_windows(self, padded: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
        """The image of each padded position under the permutation of its window."""
        windows = padded // np.uint64(self.window)
        starts = windows * np.uint64(self.window)
        offsets = padded - starts
        key = fold(key, _WINDOWS)
        whole = np.ones(windows.shape, dtype=np.bool_)
        for window in {self.short_window, (self.count - 1) // self.buffer}:
            inside = windows == np.uint64(window)
            if inside.any() and (length := self.window_length(window)) < self.window:
                offsets[inside] = permute_each(offsets[inside], windows[inside], length, key)
                whole &= ~inside
        if whole.all():
            offsets = permute_each(offsets, windows, self.window, key)
        elif whole.any():
            offsets[whole] = permute_each(offsets[whole], windows[whole], self.window, key)
        mixed = starts + offsets
        after = (windows == np.uint64(self.short_window)) & (mixed >= np.uint64(self.last_end))
        return _moved(mixed, after, self.missing)

    def indices(self, padded: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
        """Padded positions → indices: permutes the blocks."""
        block = np.uint64(self.block)
        slots = padded // block
        indices: NDArray[np.uint64] = padded - slots * block
        some, which = distinct(slots)
        indices += (self._blocks(some, key) * block)[which]
        return indices

    def _blocks(self, slots: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
        """The block of the dataset in each slot of the epoch."""
        others, last = self.count - 1, np.uint64(self.last_slot)
        if others == 0:
            return slots
        # Number the other slots without the last block's, which may take any number here.
        numbers = np.minimum(slots - (slots > last), np.uint64(others - 1))
        blocks = permute(numbers, others, fold(key, _BLOCKS))
        blocks[slots == last] = others
        return blocks


def _moved(
    values: NDArray[np.uint64], chosen: NDArray[np.bool_], distance: int
) -> NDArray[np.uint64]:
    """The values, with ``distance`` added to the chosen ones."""
    moved = chosen.astype(np.uint64)
    moved *= np.uint64(distance)
    moved += values
    return moved


def _checked(name: str, value: Any) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < 1:
        raise ConfigurationError(
            f"BlockShuffledOrder({name}={value!r}): expected a whole number of 1 or more, the "
            "number of " + ("samples in a block" if name == "block" else "blocks to mix")
        )
    return number
