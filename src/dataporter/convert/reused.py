"""Reused memory: a large result lies where an earlier one lay that nobody holds any more.

The system gives a program new memory page by page, which takes several times as long as writing a
batch to it. glibc returns each block of more than 32 MB to the system as soon as it is freed, so
every batch of such a size would pay for new pages.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.convert.casting import LARGE

__all__ = ["Reused"]

# Blocks: three leaves of a batch, and those of the batch before, which a loop still holds.
_MOST = 6
# Bytes, as torch aligns its memory.
_ALIGNMENT = 64


class Reused:
    """An :data:`~dataporter.convert.casting.Empty` that gives out memory of its earlier results.

    Memory is free once the last tensor or array in it is gone. Of memory that is free, only what
    has the sizes of the latest results is kept. Threads can share it.
    """

    def __init__(self) -> None:
        self._blocks: deque[_Block] = deque()

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = prod(shape) * dtype.itemsize
        if size < LARGE:
            return torch.empty(tuple(shape), dtype=dtype)
        return torch.from_numpy(self._leased(size)).view(dtype).view(tuple(shape))

    def __reduce__(self) -> tuple[Any, ...]:
        return Reused, ()

    def _leased(self, size: int) -> NDArray[np.uint8]:
        # Each block is in the hands of one thread, so that no two can take the same.
        blocks = []
        while self._blocks:
            try:
                blocks.append(self._blocks.popleft())
            except IndexError:  # another thread has taken it
                break
        free = [block for block in blocks if not block.is_held]
        found = next((block for block in free if block.fits(size)), None)
        if found is None:
            found = _Block.made(size)
            blocks = [*(block for block in blocks if block not in free), found]
        lease = found.lease(size)
        self._blocks.extend(blocks[-_MOST:])
        return lease


@dataclass(slots=True, eq=False)
class _Block:
    """A block of memory, and a weak reference to the view that all tensors in it keep alive."""

    memory: NDArray[np.uint8]
    _lease: weakref.ref[NDArray[np.uint8]] | None = None

    @classmethod
    def made(cls, size: int) -> _Block:
        memory = np.empty(size + _ALIGNMENT, dtype=np.uint8)
        begin = -memory.ctypes.data % _ALIGNMENT
        return cls(memory[begin : begin + size])

    @property
    def is_held(self) -> bool:
        return self._lease is not None and self._lease() is not None

    def fits(self, size: int) -> bool:
        return size <= len(self.memory) <= 2 * size

    def lease(self, size: int) -> NDArray[np.uint8]:
        lease = self.memory[:size]
        self._lease = weakref.ref(lease)
        return lease
