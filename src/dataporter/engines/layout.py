"""Layout: where in a slot the tensors and arrays of a batch lie."""

from __future__ import annotations

import ctypes
from bisect import bisect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import prod
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.engines.columns import blocks
from dataporter.engines.ring import Lease, Slot

__all__ = [
    "Arena",
    "Layout",
    "Location",
    "array_view",
    "is_plain_array",
    "is_plain_tensor",
    "tensor_view",
]

# Bytes: a cache line, and a multiple of what any processor's vector instructions need.
_ALIGNMENT = 64
# dtypes whose values are plain bytes. An older torch may lack some. Any other dtype is pickled.
_DTYPES: tuple[torch.dtype, ...] = tuple(
    getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
    if hasattr(torch, name)
)
# torch.stack and the like do not produce these, but torch's workers carry them.
_RARE_DTYPES: tuple[torch.dtype, ...] = tuple(
    getattr(torch, name)
    for name in (
        *("complex32", "float4_e2m1fn_x2", "float8_e8m0fnu"),
        *("bits8", "bits16", "bits1x8", "bits2x4", "bits4x2"),
        *(f"{kind}{bits}" for kind in ("int", "uint") for bits in range(1, 8)),
    )
    if hasattr(torch, name)
)
_ALL_DTYPES = _DTYPES + _RARE_DTYPES
_NUMBERS = {dtype: number for number, dtype in enumerate(_ALL_DTYPES)}
_NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    dtype: torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in _DTYPES
    if dtype is not torch.bfloat16 and "float8" not in str(dtype)
}
# A view with gaps is carried with its gaps if it spans at most this many times its own bytes.
_WIDEST = 2


class Arena:
    """A slot's bytes, handed out from the front.

    Attributes:
        top: how many bytes were handed out.
        wanted: how many bytes were requested, whether they fitted or not.
    """

    def __init__(self, slot: Slot) -> None:
        self._lease = slot.lease(slot.size)
        self._address = slot.address
        self.top = 0
        self.wanted = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
        """An uninitialised tensor within the slot, or None if it does not fit."""
        size = prod(shape) * dtype.itemsize
        self.wanted += _aligned(size)
        if not size or self.top + size > len(self._lease) or dtype not in _DTYPES:
            return None
        offset, self.top = self.top, _aligned(self.top + size)
        return tensor_view(self._lease, _NUMBERS[dtype], shape, (offset, None))

    def offset_of(self, address: int) -> int | None:
        """The offset in the slot of this address, or None if it lies elsewhere."""
        offset = address - self._address
        return offset if 0 <= offset < self.top else None


# An offset in the slot, and a tensor's strides unless they are the usual ones of its shape.
Location = tuple[int, tuple[int, ...] | None]
# The addresses of a tensor's first value and of the end of its last one, the index of its leaf, the
# tensor itself, which keeps that memory alive, and its strides.
_Tensor = tuple[int, int, int, torch.Tensor, tuple[int, ...] | None]


class Layout:
    """Gives each leaf of a batch (a plain tensor or array) a location in the slot.

    Tensors that share memory share it again: a training loop that writes to one of them changes the
    others, as it would without workers. Arrays do not, and neither do they with torch's workers.

    Args:
        arena: part of the slot, in which some of the tensors may lie already.

    Attributes:
        size: bytes of the slot that are taken, the arena's included.
    """

    def __init__(self, arena: Arena | None) -> None:
        self._arena = arena
        self._locations: list[Location] = []
        self._dense: list[_Tensor] = []
        self._wide: list[_Tensor] = []
        self.size = 0 if arena is None else arena.top
        # Offsets in the slot, addresses and sizes of spans of memory.
        self._outside: list[tuple[int, int, int]] = []
        self._inside: list[tuple[int, int, int]] = []
        self._arrays: list[tuple[int, NDArray[Any]]] = []

    def add_tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """Add a leaf; returns the number of its dtype, its shape and its index."""
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        shape, leaf, size = tuple(tensor.shape), len(self._locations), tensor.nbytes
        strides: tuple[int, ...] | None = tensor.stride()
        if strides == _usual_strides(shape):
            strides = None
        self._locations.append((0, strides))
        if size:
            spanned = size if strides is None else _spanned(shape, strides) * tensor.itemsize
            start = tensor.data_ptr()
            kind = self._dense if spanned <= size * _WIDEST else self._wide
            kind.append((start, start + spanned, leaf, tensor, strides))
        return _NUMBERS[tensor.dtype], shape, leaf

    def add_array(self, array: NDArray[Any]) -> tuple[Any, ...]:
        """Add a leaf; returns its dtype, shape, index, and whether it is in Fortran order."""
        in_fortran_order = array.flags.f_contiguous and not array.flags.c_contiguous
        rows = array.T if in_fortran_order else array
        dtype = array.dtype
        leaf, offset = len(self._locations), self._room(array.nbytes)
        self._locations.append((offset, None))
        self._arrays.append((offset, rows))
        name = dtype if _exceeds_its_string(dtype) else dtype.str
        return name, rows.shape, leaf, in_fortran_order

    def settle(self) -> list[Location]:
        """Locate the leaves, once all are added: only then is it known which share memory."""
        spans: list[tuple[int, int, int]] = []
        for members in _clusters(self._dense):
            first, end = members[0][0], max(member[1] for member in members)
            spans.append((first, end, self._locate_span(first, end, members)))
        for cluster in _clusters([wide for wide in self._wide if not self._is_in(wide, spans)]):
            self._locate_wide(cluster)
        return self._locations

    @property
    def wasted(self) -> int:
        """Bytes that the arena handed out, or was asked for in vain, and that hold no leaf."""
        if self._arena is None:
            return 0
        inside = sum(_aligned(size) for _, _, size in self._inside)
        return max(0, self._arena.top - inside, self._arena.wanted - self.size)

    def write(self, slot: Slot, *, moved: bool) -> None:
        """Copy the leaves to their locations in ``slot``.

        Args:
            slot: where the arena is, or another slot.
            moved: ``slot`` is another one, so that what lies in the arena is copied as well.
        """
        for offset, address, size in self._outside + self._inside if moved else self._outside:
            ctypes.memmove(slot.address + offset, address, size)
        for offset, array in self._arrays:
            target = np.ndarray(array.shape, array.dtype, buffer=slot.memory, offset=offset)
            np.copyto(target, array)

    def _locate_span(self, first: int, end: int, members: Sequence[_Tensor]) -> int:
        size = end - first
        offset = None if self._arena is None else self._arena.offset_of(first)
        if offset is None:
            # Aligned as it was before, which suits each tensor in it, whatever its dtype.
            offset = self._room(size, first % _ALIGNMENT)
            self._outside.append((offset, first, size))
        else:
            self._inside.append((offset, first, size))
        for start, _, leaf, _, strides in members:
            self._locations[leaf] = (offset + start - first, strides)
        return offset

    def _is_in(self, wide: _Tensor, spans: Sequence[tuple[int, int, int]]) -> bool:
        """Locate a tensor as a view of a span that is carried anyway, if there is one."""
        start, stop, leaf, _, strides = wide
        index = bisect(spans, start, key=itemgetter(0)) - 1
        if index < 0 or stop > spans[index][1]:
            return False
        first, _, offset = spans[index]
        self._locations[leaf] = (offset + start - first, strides)
        return True

    def _locate_wide(self, cluster: Sequence[_Tensor]) -> None:
        """Locate tensors without their gaps: together where they share memory, or else alone."""
        together = blocks([wide[3] for wide in cluster], _WIDEST) if len(cluster) > 1 else []
        alone = dict(enumerate(cluster))
        for block in together:
            start = block.memory.data_ptr()
            members = [
                (start + offset, 0, alone.pop(index)[2], block.memory, strides)
                for index, offset, strides in block.placed
            ]
            self._dense += members  # which keeps them alive
            self._locate_span(start, start + block.memory.nbytes, members)
        for _, _, leaf, tensor, _ in alone.values():
            copied = tensor.contiguous()
            start = copied.data_ptr()
            self._dense.append((start, start + copied.nbytes, leaf, copied, None))
            self._locate_span(start, start + copied.nbytes, self._dense[-1:])

    def _room(self, size: int, beyond: int = 0) -> int:
        offset = self.size + beyond
        self.size = _aligned(offset + size)
        return offset


def _clusters(tensors: list[_Tensor]) -> Iterator[list[_Tensor]]:
    """The tensors whose ranges of addresses overlap, directly or through others."""
    cluster: list[_Tensor] = []
    end = 0
    for tensor in sorted(tensors, key=itemgetter(0, 1, 2)):
        if cluster and tensor[0] >= end:
            yield cluster
            cluster = []
        cluster.append(tensor)
        end = max(end, tensor[1])
    if cluster:
        yield cluster


@lru_cache(1024)
def _usual_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _spanned(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many values there are in memory from the first to the last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether the tensor's values are plain bytes in memory, so that it can lie in a slot."""
    return (
        tensor.dtype in _NUMBERS
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and tensor.device.type == "cpu"
        and not tensor.is_nested
    )


def is_plain_array(array: NDArray[Any]) -> bool:
    """Whether the array's values are plain bytes in memory, so that it can lie in a slot."""
    return array.size > 0 and not array.dtype.hasobject


def _exceeds_its_string(dtype: np.dtype[Any]) -> bool:
    """Whether the dtype holds more than ``dtype.str`` says (fields, metadata, a custom type)."""
    return dtype.isbuiltin == 2 or dtype.names is not None or dtype.metadata is not None


def tensor_view(
    lease: Lease | None, number: int, shape: Sequence[int], location: Location
) -> torch.Tensor:
    """The tensor at a location; ``number`` is its dtype's, from :meth:`Layout.add_tensor`."""
    dtype = _ALL_DTYPES[number]
    offset, strides = location
    if not prod(shape):
        usual = _usual_strides(tuple(shape)) if strides is None else strides
        return torch.empty_strided(torch.Size(shape), usual, dtype=dtype)
    if strides is not None:
        flat = tensor_view(lease, number, (_spanned(shape, strides),), (offset, None))
        return flat.as_strided(torch.Size(shape), strides)
    if (like := _NUMPY_DTYPES.get(dtype)) is not None:  # three times as fast as frombuffer
        return torch.from_numpy(np.ndarray(shape, like, buffer=lease, offset=offset))
    size = prod(shape) * dtype.itemsize
    flat = torch.from_numpy(np.ndarray((size,), np.uint8, buffer=lease, offset=offset))
    return flat.view(dtype).view(torch.Size(shape))


def array_view(
    lease: Lease | None,
    dtype: Any,
    shape: Sequence[int],
    location: Location,
    *,
    in_fortran_order: bool,
) -> NDArray[Any]:
    """The array at a location; the other arguments are from :meth:`Layout.add_array`."""
    array: NDArray[Any] = np.ndarray(shape, np.dtype(dtype), buffer=lease, offset=location[0])
    return array.T if in_fortran_order else array


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
