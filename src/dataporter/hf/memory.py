"""Memory: gathers bytes of Arrow's buffers for many rows, without a Python object per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Layout", "Memory", "Validity", "Where"]

# Bytes: from this size, copying a column's rows takes longer than choosing memory for them.
_LARGE = 1 << 16
_NUMPY = {
    dtype: torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in (
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float16, torch.float32, torch.float64),
    )
}


class Where(NamedTuple):
    """Elements of a column.

    Attributes:
        chunks: the chunk of each, int64; None if the column has only one.
        offsets: the offset of each in its chunk, int64.
    """

    chunks: NDArray[np.int64] | None
    offsets: NDArray[np.int64]

    def at(self, offsets: NDArray[np.int64]) -> Where:
        """Other offsets in the same chunks."""
        return Where(self.chunks, offsets)

    def only(self, chosen: NDArray[Any]) -> Where:
        """Some of the elements."""
        chunks = self.chunks
        return Where(None if chunks is None else chunks[chosen], self.offsets[chosen])

    def stretched(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Where:
        """For each element a run of consecutive elements."""
        ends = lengths.cumsum()
        offsets = np.arange(ends[-1] if len(ends) else 0)
        offsets += np.repeat(starts - (ends - lengths), lengths)
        chunks = self.chunks
        return Where(None if chunks is None else np.repeat(chunks, lengths), offsets)


class Layout:
    """How many rows of a column are in each of its chunks; empty chunks are left out."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._ends = np.cumsum(np.array(lengths, dtype=np.int64))
        self._starts = self._ends - lengths

    def where(self, rows: NDArray[np.int64]) -> Where:
        """The elements of these rows, which must exist."""
        if len(self._ends) <= 1:
            return Where(None, rows)
        chunks = self._ends.searchsorted(rows, side="right")
        return Where(chunks, rows - self._starts[chunks])


class _Span:
    """Bytes that Arrow holds, by NumPy's array interface; keeps them alive."""

    def __init__(self, address: int, size: int, owners: Sequence[Any]) -> None:
        self.owners = owners
        self.__array_interface__ = {
            "data": (address, True),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


class Memory:
    """The same buffer of every chunk of a column, read as if it were one.

    Chunks may be anywhere, in mapped files or on the heap. But all are in one address space, so one
    read-only array from the lowest buffer to the end of the highest contains them all, and one
    gather takes rows of any chunk. The bytes between the buffers are never read.

    Args:
        buffers: ``pyarrow.Buffer`` of each chunk; None for a chunk that has none and is not read.
        skipped: bytes at the beginning of each buffer that precede the chunk's first row.
    """

    def __init__(self, buffers: Sequence[Any], skipped: Sequence[int]) -> None:
        held = [buffer for buffer in buffers if buffer is not None and buffer.size]
        base = min((buffer.address for buffer in held), default=0)
        end = max((buffer.address + buffer.size for buffer in held), default=0)
        self._begins = np.array(
            [
                0 if buffer is None or not buffer.size else buffer.address - base + offset
                for buffer, offset in zip(buffers, skipped)
            ],
            dtype=np.int64,
        )
        self._bytes: NDArray[np.uint8] = (
            np.asarray(_Span(base, end - base, held)) if held else np.empty(0, dtype=np.uint8)
        )
        self._by_unit: dict[int, NDArray[Any]] = {}

    def read(
        self, where: Where, item: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        """A run of numbers from each element on, as a tensor of shape (elements, *shape).

        Args:
            where: the elements.
            item: bytes from one element to the next.
            shape: of a run.
            dtype: of its numbers.
        """
        starts, size = where.offsets * item, prod(shape) * dtype.itemsize
        if where.chunks is not None:
            starts += self._begins[where.chunks]
        elif len(self._begins):
            starts += self._begins[0]
        # In units as large as possible, since NumPy takes them one by one.
        unit = int(np.gcd.reduce(starts, initial=size))
        units = np.arange(size // max(unit, 1))
        return self._taken(starts[:, None] // max(unit, 1) + units, unit, shape, dtype)

    def strided(
        self, firsts: NDArray[np.int64], stride: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[Where], torch.Tensor]:
        """A function that reads evenly spaced runs; most of the work is done once, here.

        Args:
            firsts: for each chunk, the bytes before its first run.
            stride: bytes from one run to the next.
            shape, dtype: of a run.
        """
        size = prod(shape) * dtype.itemsize
        begins = self._begins + firsts
        unit = gcd(size, stride, *begins.tolist())
        if not size or not len(begins):
            return lambda where: torch.empty((len(where.offsets), *shape), dtype=dtype)
        begins, stride, units = begins // unit, stride // unit, np.arange(size // unit)
        first = begins[0]

        def read(where: Where) -> torch.Tensor:
            starts = where.offsets * stride
            starts += first if where.chunks is None else begins[where.chunks]
            return self._taken(
                starts if len(units) == 1 else starts[:, None] + units, unit, shape, dtype
            )

        return read

    def _taken(
        self, indices: NDArray[np.int64], unit: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        count, small = len(indices), _NUMPY[dtype]
        if not indices.size:
            return torch.empty((count, *shape), dtype=dtype)
        seen = self._by_unit.get(unit)
        if seen is None:
            # A dtype without alignment: for any other, NumPy would copy all bytes to align them.
            whole = len(self._bytes) // unit * unit
            seen = self._by_unit[unit] = self._bytes[:whole].view(f"V{unit}")
        # Without "clip" NumPy writes to a copy first. The indices are valid: the caller checks
        # rows, and all others come from Arrow.
        if indices.size * unit < _LARGE:
            found = seen.take(indices, mode="clip").reshape(-1).view(small)
            return torch.from_numpy(found.reshape(count, *shape))
        # Allocated by torch: in a worker this is the slot that carries the batch.
        rows = torch.empty((count, *shape), dtype=dtype)
        into = rows.numpy().reshape(-1).view(seen.dtype).reshape(indices.shape)
        seen.take(indices, out=into, mode="clip")
        return rows

    def bits(self, where: Where, skipped: NDArray[np.int64]) -> NDArray[np.bool_]:
        """One bit per element; ``skipped`` bits precede the first of each chunk."""
        if not len(where.offsets):
            return np.empty(0, dtype=np.bool_)
        bits = where.offsets + (skipped[0] if where.chunks is None else skipped[where.chunks])
        found = self.read(where.at(bits >> 3), 1, (), torch.uint8).numpy()
        return ((found >> (bits & 7).astype(np.uint8)) & 1).view(np.bool_)


class Validity:
    """Which elements of a column are null."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        nulls = [array.null_count for array in arrays]
        self.has_nulls = any(nulls)
        if self.has_nulls:
            bitmaps = [array.buffers()[0] if count else None for array, count in zip(arrays, nulls)]
            self._memory = Memory(bitmaps, [0] * len(arrays))
            self._skipped = np.array([array.offset for array in arrays], dtype=np.int64)
            self._has = np.array(nulls, dtype=np.int64) > 0

    def mask(self, where: Where) -> NDArray[np.bool_] | None:
        """True for elements that are not null; None if none is null."""
        if not self.has_nulls:
            return None
        if where.chunks is None:
            mask = self._memory.bits(where, self._skipped)
        else:
            mask = np.ones(len(where.offsets), dtype=np.bool_)
            looked = self._has[where.chunks]
            mask[looked] = self._memory.bits(where.only(looked), self._skipped)
        return None if mask.all() else mask
