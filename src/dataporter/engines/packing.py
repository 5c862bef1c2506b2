"""Packing: a nested batch becomes a message and the bytes of a slot, and comes out equal.

The message is a pickle in which each plain tensor and array is only a place in the slot. Whatever
cannot lie there (sparse, quantized, subclasses, requires_grad, object arrays) is pickled whole.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.engines.ring import Lease

__all__ = ["Arena", "Packer", "unpack"]

# A multiple of what any processor's vector instructions want, and a line of its cache.
_ALIGNMENT = 64


class Arena:
    """A slot's bytes, handed out from the front."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._address = lease.ctypes.data
        self.top = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor | None:
        """An uninitialised tensor within the slot, or None where it does not fit."""
        count = prod(shape)
        size = count * dtype.itemsize
        if not size or self.top + size > len(self._lease) or dtype not in _NUMBERS:
            return None
        offset, self.top = self.top, _aligned(self.top + size)
        tensor = torch.frombuffer(self._lease, dtype=dtype, count=count, offset=offset)
        return tensor.view(torch.Size(shape))

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """Where in the slot a contiguous tensor lies, if it does."""
        offset = tensor.data_ptr() - self._address
        return offset if 0 <= offset < self.top else None


class Packer:
    """A batch on its way into a slot.

    Args:
        content: anything that can be pickled.
        arena: where a part of its tensors may lie already.

    Attributes:
        message: the pickle.
        size: bytes that its tensors and arrays need in the slot.

    Raises:
        Exception: what pickling raises.
    """

    def __init__(self, content: Any, arena: Arena | None) -> None:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, arena)
        pickler.dump(content)
        self.message = buffer.getvalue()
        self.size = pickler.top
        self._outside = pickler.outside
        self._inside = pickler.inside

    def write(self, lease: Lease, *, moved: bool) -> None:
        """Copy into the slot what does not lie there; ``moved``: all, for it is another slot."""
        for offset, leaf in self._outside + self._inside if moved else self._outside:
            if isinstance(leaf, torch.Tensor):
                _tensor(lease, leaf.dtype, leaf.shape, offset).copy_(leaf)
            else:
                np.copyto(_array(lease, leaf.dtype, leaf.shape, offset), leaf)


def unpack(message: bytes, lease: Lease | None) -> Any:
    """What was packed, its tensors and arrays being views of ``lease``."""
    return _Unpickler(io.BytesIO(message), lease).load()


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, arena: Arena | None) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._arena = arena
        self.top = 0 if arena is None else arena.top
        self.outside: list[tuple[int, Any]] = []
        self.inside: list[tuple[int, Any]] = []

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor and _is_plain(value):
            return self._reduce_tensor(value)
        if kind is np.ndarray and value.size and not value.dtype.hasobject:
            return self._reduce_array(value)
        return NotImplemented

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        number = _NUMBERS[tensor.dtype]
        if not tensor.numel():
            return _empty_tensor, (number, tuple(tensor.shape))
        order = None
        if not tensor.is_contiguous():
            # Dense in another order of its dimensions (transposed, channels last): kept so.
            strides = tensor.stride()
            order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
            permuted = tensor.permute(order)
            order = order if permuted.is_contiguous() else None
            tensor = tensor.contiguous() if order is None else permuted
        offset = None
        if self._arena is not None and not (tensor.is_conj() or tensor.is_neg()):
            offset = self._arena.offset_of(tensor)
        if offset is None:
            offset = self._place(self.outside, tensor, tensor.numel() * tensor.itemsize)
        else:
            self.inside.append((offset, tensor))
        return _tensor_at, (number, tuple(tensor.shape), offset, order)

    def _reduce_array(self, array: NDArray[Any]) -> Any:
        in_fortran_order = array.flags.f_contiguous and not array.flags.c_contiguous
        rows = array.T if in_fortran_order else array
        offset = self._place(self.outside, rows, array.nbytes)
        kind = array.dtype if array.dtype.names or array.dtype.metadata else array.dtype.str
        return _array_at, (kind, rows.shape, offset, in_fortran_order)

    def _place(self, leaves: list[tuple[int, Any]], leaf: Any, size: int) -> int:
        offset, self.top = self.top, _aligned(self.top + size)
        leaves.append((offset, leaf))
        return offset


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, lease: Lease | None) -> None:
        super().__init__(buffer)
        # Not methods of its own: it remembers what it finds, and would keep itself and the lease.
        self._leaves = _Leaves(lease)

    def find_class(self, module: str, name: str) -> Any:
        if module == __name__:
            return getattr(self._leaves, name)
        return super().find_class(module, name)


class _Leaves:
    """What tensors and arrays become where they arrive."""

    def __init__(self, lease: Lease | None) -> None:
        self._lease = lease

    def _tensor_at(
        self, number: int, shape: tuple[int, ...], offset: int, order: list[int] | None
    ) -> torch.Tensor:
        assert self._lease is not None
        tensor = _tensor(self._lease, _DTYPES[number], shape, offset)
        if order is None:
            return tensor
        return tensor.permute([order.index(axis) for axis in range(len(order))])

    def _array_at(
        self, kind: Any, shape: tuple[int, ...], offset: int, in_fortran_order: bool
    ) -> NDArray[Any]:
        assert self._lease is not None
        array = _array(self._lease, np.dtype(kind), shape, offset)
        return array.T if in_fortran_order else array

    def _empty_tensor(self, number: int, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.empty(shape, dtype=_DTYPES[number])


# Stand in a message for what `_Leaves` calls the same.
def _tensor_at() -> None: ...
def _array_at() -> None: ...
def _empty_tensor() -> None: ...


def _tensor(lease: Lease, dtype: torch.dtype, shape: Sequence[int], offset: int) -> torch.Tensor:
    return torch.frombuffer(lease, dtype=dtype, count=prod(shape), offset=offset).view(
        torch.Size(shape)
    )


def _array(lease: Lease, dtype: np.dtype[Any], shape: Sequence[int], offset: int) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray(tuple(shape), dtype, buffer=lease, offset=offset)
    return array


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        and not tensor.is_nested
        and tensor.dtype in _NUMBERS
    )


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
_NUMBERS = {dtype: number for number, dtype in enumerate(_DTYPES)}


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
