"""Memory: gathers bytes of Arrow's buffers for many rows, without a Python object per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.hf.ragged import Ragged

__all__ = ["Layout", "Memory", "Validity", "Where"]

# The dtypes that torch gathers in every release, for those that it does not.
_GATHERED = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}
# Arrow's widest numbers; its buffers usually begin at a multiple of it.
_WIDEST = 8


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
            # Not read-only, which torch would warn about; nothing writes to it.
            "data": (address, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


class Memory:
    """The same buffer of every chunk of a column, read as if it were one.

    Chunks may be anywhere, in mapped files or on the heap. But all are in one address space, so one
    array from the lowest buffer to the end of the highest contains them all, and one
    gather takes rows of any chunk. The bytes between the buffers are never read.

    Args:
        buffers: ``pyarrow.Buffer`` of each chunk; None for a chunk that has none and is not read.
        skipped: bytes at the beginning of each buffer that precede the chunk's first row.
    """

    def __init__(self, buffers: Sequence[Any], skipped: Sequence[int]) -> None:
        held = [buffer for buffer in buffers if buffer is not None and buffer.size]
        base = min((buffer.address for buffer in held), default=0)
        base -= base % _WIDEST
        end = max((buffer.address + buffer.size for buffer in held), default=0)
        self._begins = np.array(
            [
                0 if buffer is None or not buffer.size else buffer.address - base + offset
                for buffer, offset in zip(buffers, skipped)
            ],
            dtype=np.int64,
        )
        self._ends = np.array(
            [
                0 if buffer is None or not buffer.size else buffer.address - base + buffer.size
                for buffer in buffers
            ],
            dtype=np.int64,
        )
        self._bytes = (
            torch.from_numpy(np.asarray(_Span(base, end - base, held)))
            if held
            else torch.empty(0, dtype=torch.uint8)
        )
        self._by_dtype: dict[torch.dtype, torch.Tensor] = {}

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
        return self.strided(np.zeros_like(self._begins), item, shape, dtype)(where)

    def strided(
        self, firsts: NDArray[np.int64], stride: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[Where], torch.Tensor]:
        """A function that reads evenly spaced runs; most of the work is done once, here.

        Args:
            firsts: for each chunk, the bytes before its first run.
            stride: bytes from one run to the next.
            shape, dtype: of a run.
        """
        if not prod(shape) or not len(self._bytes):
            return lambda where: torch.empty((len(where.offsets), *shape), dtype=dtype)
        begins, width = self._begins + firsts, dtype.itemsize
        if stride % width or (begins % width).any():
            found = self._strided(begins, stride, (prod(shape) * width,), torch.uint8)
            return lambda where: found(where).view(dtype).view(-1, *shape)
        gathered = _GATHERED.get(dtype, dtype)
        found = self._strided(begins // width, stride // width, shape, gathered)
        return found if gathered is dtype else lambda where: found(where).view(dtype)

    def _strided(
        self, begins: NDArray[np.int64], stride: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Callable[[Where], torch.Tensor]:
        """The same for runs that begin at ``begins``, in numbers of ``dtype``."""
        numbers = self._numbers(dtype)
        within = torch.empty(shape, device="meta").stride()
        if len(begins) == 1:
            first = int(begins[0])
            count = max(len(numbers) - first - prod(shape) + stride, 0) // stride
            rows = numbers.as_strided((count, *shape), (stride, *within), first)
            return lambda where: rows.index_select(0, torch.from_numpy(where.offsets))
        # The run from each number on, so that one gather copies whole runs, wherever they begin.
        runs = numbers.as_strided((len(numbers) - prod(shape) + 1, *shape), (1, *within))

        def read(where: Where) -> torch.Tensor:
            starts = where.offsets * stride
            starts += begins[0] if where.chunks is None else begins[where.chunks]
            return runs.index_select(0, torch.from_numpy(starts))

        return read

    def ragged(self, where: Where, lengths: NDArray[np.int64], dtype: torch.dtype) -> Ragged:
        """Numbers of ``dtype``, as many from each element on as ``lengths`` says."""
        width, chunk = dtype.itemsize, 0 if where.chunks is None else where.chunks
        begins = self._begins[chunk]
        if (begins % width).any():
            numbers = where.stretched(where.offsets, lengths)
            return Ragged(self.read(numbers, width, (), dtype), lengths)
        starts, ends = where.offsets + begins // width, self._ends[chunk] // width
        return Ragged(self._numbers(dtype), lengths, starts, ends)

    def _numbers(self, dtype: torch.dtype) -> torch.Tensor:
        numbers = self._by_dtype.get(dtype)
        if numbers is None:
            whole = len(self._bytes) // dtype.itemsize * dtype.itemsize
            numbers = self._by_dtype[dtype] = self._bytes[:whole].view(dtype)
        return numbers

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
