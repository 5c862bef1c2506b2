"""Ragged: rows of several lengths, copied once it is known how the batch holds them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Ragged", "bits_of"]

# Numbers: from this mean length, copying row by row takes less time than number by number.
_LONG = 128
# Rows are copied as bits: torch gathers no uint16 in one dimension, and NumPy has no bfloat16.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of several lengths, anywhere in one tensor.

    Attributes:
        flat: contiguous, of shape (any length, ...).
        lengths: int64, one per row.
        starts: int64, where in ``flat`` each row begins; None if they follow one another.
        ends: int64, up to where in ``flat`` the memory behind each row can be read; None: to its
            end.
    """

    flat: torch.Tensor
    lengths: NDArray[np.int64]
    starts: NDArray[np.int64] | None = None
    ends: NDArray[np.int64] | None = None

    def joined(self) -> torch.Tensor:
        """The rows, concatenated: shape (sum of lengths, ...)."""
        if self.starts is None:
            return self.flat
        flat, ends = bits_of(self.flat), self.lengths.cumsum()
        total = int(ends[-1]) if len(ends) else 0
        if total < _LONG * len(ends):
            numbers = np.arange(total)
            numbers += np.repeat(self.starts - (ends - self.lengths), self.lengths)
            return flat.index_select(0, torch.from_numpy(numbers)).view(self.flat.dtype)
        starts, stops = self.starts.tolist(), (self.starts + self.lengths).tolist()
        within = flat.numpy()
        rows = [within[start:stop] for start, stop in zip(starts, stops)]
        return torch.from_numpy(np.concatenate(rows)).view(self.flat.dtype)

    def rows(self) -> list[torch.Tensor]:
        """Each row, as a view."""
        return list(self.joined().split(self.lengths.tolist()))  # type: ignore[no-untyped-call]  # torch's

    def padded(self, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows, filled with ``value`` up to the longest, and an int8 mask of their numbers.

        Args:
            value: of shape (1,), in the dtype of ``flat``.
        """
        longest = int(self.lengths.max())
        padding = _from_length_on(self.lengths, longest)
        rows = self._to_longest(longest)
        where = padding.view(np.bool_).reshape(*padding.shape, *(1,) * (rows.ndim - 2))
        np.copyto(rows.numpy(), bits_of(value).item(), where=where)
        return rows.view(self.flat.dtype), torch.from_numpy(padding ^ 1)

    def _to_longest(self, longest: int) -> torch.Tensor:
        """The bits from each row's start on, as many numbers as the longest row has.

        Copying what lies behind the shorter rows as well makes it one gather of equal runs.
        """
        flat, lengths = bits_of(self.flat), self.lengths
        starts = lengths.cumsum() - lengths if self.starts is None else self.starts
        near_end = np.flatnonzero(
            starts + longest > (len(flat) if self.ends is None else self.ends)
        )
        readable = starts
        if len(near_end):
            readable = starts.copy()
            readable[near_end] = starts[lengths.argmax()]
        shape = (max(len(flat) - longest + 1, 0), longest, *flat.shape[1:])
        runs = flat.as_strided(shape, (flat.stride(0), *flat.stride()))
        rows = runs.index_select(0, torch.from_numpy(readable))
        for row in near_end.tolist():
            start, length = starts[row], lengths[row]
            rows[row, :length] = flat[start : start + length]
        return rows


def _from_length_on(lengths: NDArray[np.int64], longest: int) -> NDArray[np.int8]:
    """For each row zeros up to its length, and ones from there to the longest."""
    room = 1 << longest.bit_length()
    # Each row is copied from the zeros and ones around the edge: faster than any comparison.
    rows = _edge(room).as_strided((room + 1, longest), (1, 1))
    return rows.index_select(0, torch.from_numpy(room - lengths)).numpy()


@cache
def _edge(room: int) -> torch.Tensor:
    """As many zeros as ones, in this order."""
    return torch.arange(2 * room).ge(room).to(torch.int8)


def bits_of(numbers: torch.Tensor) -> torch.Tensor:
    """The same memory as whole numbers of the same size; complex numbers as they are."""
    bits = _BITS.get(numbers.dtype.itemsize)
    return numbers if bits is None else numbers.view(bits)
