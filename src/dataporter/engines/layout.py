"""Layout: where in a slot the tensors and arrays of a batch lie.

Tensors keep their strides, and those that share memory share it again, as with torch's workers.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.engines.ring import Lease, Slot

__all__ = [
    "ALL_DTYPES",
    "Arena",
    "Leaves",
    "Place",
    "aligned",
    "array_in",
    "is_plain_array",
    "is_plain_tensor",
    "tensor_in",
]

# A multiple of what any processor's vector instructions want, and a line of its cache.
_ALIGNMENT = 64
# Those whose values are their bytes. An older torch does not have them all; the rest is pickled.
_DTYPES: tuple[torch.dtype, ...] = tuple(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
    if hasattr(torch, name)
)
# Nobody makes batches of these by torch.stack and the like, but torch's workers carry them.
_RARE_DTYPES: tuple[torch.dtype, ...] = tuple(
    getattr(torch, name)
    for name in (
        *("complex32", "float4_e2m1fn_x2", "float8_e8m0fnu"),
        *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
    )
    if hasattr(torch, name)
)
ALL_DTYPES = _DTYPES + _RARE_DTYPES
_NUMBERS = {dtype: number for number, dtype in enumerate(ALL_DTYPES)}
_NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    dtype: torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in _DTYPES
    if dtype is not torch.bfloat16 and "float8" not in str(dtype)
}
# A view that has gaps in it is carried with them up to so many times its own bytes.
_WIDEST = 2


class Arena:
    """A slot's bytes, handed out from the front.

    Attributes:
        top: how many bytes are handed out.
        wanted: how many were asked for, whether they fitted or not.
    """

    def __init__(self, slot: Slot) -> None:
        self._lease = slot.lease(slot.size)
        self._address = slot.address
        self.top = 0
        self.wanted = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
        """An uninitialised tensor within the slot, or None where it does not fit."""
        size = prod(shape) * dtype.itemsize
        self.wanted += aligned(size)
        if not size or self.top + size > len(self._lease) or dtype not in _DTYPES:
            return None
        offset, self.top = self.top, aligned(self.top + size)
        return tensor_in(self._lease, dtype, shape, offset)

    def offset_of(self, address: int) -> int | None:
        """Where in the slot it lies, if it does."""
        offset = address - self._address
        return offset if 0 <= offset < self.top else None


# An offset in the slot, and the strides of a tensor that has not the usual ones.
Place = tuple[int, tuple[int, ...] | None]
# Where a tensor's first value begins and its last one ends, which of the leaves it is, the tensor
# itself, which keeps that memory, and its strides.
_Tensor = tuple[int, int, int, torch.Tensor, tuple[int, ...] | None]


class Leaves:
    """Where in the slot each tensor and array goes.

    Tensors that share memory share it again: a training that writes to one of them changes the
    others, as it would without workers. Arrays do not, in torch's workers neither.
    """

    def __init__(self, arena: Arena | None) -> None:
        self._arena = arena
        self._places: list[Place] = []
        self._dense: list[_Tensor] = []
        self._wide: list[_Tensor] = []
        self.top = 0 if arena is None else arena.top
        # Offsets, addresses and sizes.
        self.outside: list[tuple[int, int, int]] = []
        self.inside: list[tuple[int, int, int]] = []
        self.arrays: list[tuple[int, NDArray[Any]]] = []

    def place_tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """dtype, shape, and which of the leaves it is."""
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        shape, leaf, size = tuple(tensor.shape), len(self._places), tensor.nbytes
        strides: tuple[int, ...] | None = tensor.stride()
        if strides == _usual_strides(shape):
            strides = None
        self._places.append((0, strides))
        if size:
            spanned = size if strides is None else _spanned(shape, strides) * tensor.itemsize
            start = tensor.data_ptr()
            kind = self._dense if spanned <= size * _WIDEST else self._wide
            kind.append((start, start + spanned, leaf, tensor, strides))
        return _NUMBERS[tensor.dtype], shape, leaf

    def place_array(self, array: NDArray[Any]) -> tuple[Any, ...]:
        """dtype, shape, which of the leaves it is, and whether it lies in Fortran's order."""
        in_fortran_order = array.flags.f_contiguous and not array.flags.c_contiguous
        rows = array.T if in_fortran_order else array
        kind = array.dtype
        leaf, offset = len(self._places), self._room(array.nbytes)
        self._places.append((offset, None))
        self.arrays.append((offset, rows))
        return kind if _is_told_apart(kind) else kind.str, rows.shape, leaf, in_fortran_order

    def settled(self) -> list[Place]:
        """The places of all leaves, now that it is known which of them share memory."""
        self._dense.sort()
        spans: list[tuple[int, int, int]] = []
        first, end = 0, 0
        members: list[_Tensor] = []
        for tensor in self._dense:
            if members and tensor[0] >= end:
                spans.append((first, end, self._place_span(first, end, members)))
                members = []
            if not members:
                first, end = tensor[:2]
            members.append(tensor)
            end = max(end, tensor[1])
        if members:
            spans.append((first, end, self._place_span(first, end, members)))
        for wide in self._wide:
            self._place_wide(wide, spans)
        return self._places

    def _place_span(self, first: int, end: int, members: Sequence[_Tensor]) -> int:
        size = end - first
        offset = None if self._arena is None else self._arena.offset_of(first)
        if offset is None:
            # As far from a multiple as it was: its tensors may have values of any size.
            offset = self._room(size, first % _ALIGNMENT)
            self.outside.append((offset, first, size))
        else:
            self.inside.append((offset, first, size))
        for start, _, leaf, _, strides in members:
            self._places[leaf] = (offset + start - first, strides)
        return offset

    def _place_wide(self, wide: _Tensor, spans: Sequence[tuple[int, int, int]]) -> None:
        """A view of what is carried anyway, or else a tensor by itself without the gaps."""
        start, stop, leaf, tensor, strides = wide
        place = bisect(spans, start, key=itemgetter(0)) - 1
        if place >= 0 and stop <= spans[place][1]:
            first, _, offset = spans[place]
            self._places[leaf] = (offset + start - first, strides)
            return
        alone = tensor.contiguous()
        start = alone.data_ptr()
        self._dense.append((start, start + alone.nbytes, leaf, alone, None))  # to keep it
        self._place_span(start, start + alone.nbytes, self._dense[-1:])

    def _room(self, size: int, beyond: int = 0) -> int:
        offset = self.top + beyond
        self.top = aligned(offset + size)
        return offset


@lru_cache(1024)
def _usual_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _spanned(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many values there are from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether its values are the bytes that lie in memory, so that they may lie in a slot."""
    return (
        tensor.dtype in _NUMBERS
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and tensor.device.type == "cpu"
        and not tensor.is_nested
    )


def is_plain_array(array: NDArray[Any]) -> bool:
    """Whether its values are the bytes that lie in memory."""
    return array.size > 0 and not array.dtype.hasobject


def _is_told_apart(kind: np.dtype[Any]) -> bool:
    """Whether its string says less than the dtype."""
    return kind.isbuiltin == 2 or kind.names is not None or kind.metadata is not None


def tensor_in(
    lease: Lease | None,
    dtype: torch.dtype,
    shape: Sequence[int],
    offset: int,
    strides: Sequence[int] | None = None,
) -> torch.Tensor:
    """A tensor that is a view of a slot's bytes."""
    if not prod(shape):
        usual = _usual_strides(tuple(shape)) if strides is None else strides
        return torch.empty_strided(torch.Size(shape), usual, dtype=dtype)
    if strides is not None:
        flat = tensor_in(lease, dtype, (_spanned(shape, strides),), offset)
        return flat.as_strided(torch.Size(shape), strides)
    if (like := _NUMPY_DTYPES.get(dtype)) is not None:  # three times as fast as frombuffer
        return torch.from_numpy(np.ndarray(shape, like, buffer=lease, offset=offset))
    size = prod(shape) * dtype.itemsize
    flat = torch.from_numpy(np.ndarray((size,), np.uint8, buffer=lease, offset=offset))
    return flat.view(dtype).view(torch.Size(shape))


def array_in(
    lease: Lease | None, kind: Any, shape: Sequence[int], offset: int, in_fortran_order: bool
) -> NDArray[Any]:
    """An array that is a view of a slot's bytes."""
    array: NDArray[Any] = np.ndarray(shape, np.dtype(kind), buffer=lease, offset=offset)
    return array.T if in_fortran_order else array


def aligned(size: int) -> int:
    """The size with what is left to the next multiple of the alignment."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
