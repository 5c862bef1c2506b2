"""Packing: a nested batch becomes a message and the bytes of a slot, and comes out equal.

A batch of plain dicts, lists, tuples, tensors and arrays is taken apart here. Any other is pickled,
with each plain tensor and array in it being a place in the slot. What cannot lie there (sparse,
quantized, subclasses, requires_grad, object arrays) is pickled whole.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.engines.ring import Lease, Slot

__all__ = ["Arena", "Packer", "is_plain_tensor", "packed_whole", "unpack"]

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
_NUMBERS = {dtype: number for number, dtype in enumerate(_DTYPES)}
_NUMPY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    dtype: torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in _DTYPES
    if dtype is not torch.bfloat16 and "float8" not in str(dtype)
}
# A longer list is one of strings or numbers rather, which pickle walks faster.
_LONGEST_LIST = 32
_ATOMS = frozenset({int, float, bool, str, bytes, type(None)})
# How a message begins.
_PLAIN, _PICKLED = b"p", b"o"
# What a node of a plain batch is.
_ATOM, _DICT, _LIST, _TUPLE, _TENSOR, _ARRAY = range(6)


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
        self.wanted += _aligned(size)
        if not size or self.top + size > len(self._lease) or dtype not in _NUMBERS:
            return None
        offset, self.top = self.top, _aligned(self.top + size)
        return _tensor(self._lease, dtype, shape, offset)

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
        message: what :func:`unpack` takes.
        size: bytes that its tensors and arrays need in the slot.
        wasted: bytes that were handed out, or asked for in vain, and hold nothing of the batch.

    Raises:
        Exception: what pickling raises.
    """

    def __init__(self, content: Any, arena: Arena | None) -> None:
        self._leaves = leaves = _Leaves(arena)
        try:
            nodes = _taken_apart(content, leaves, set())
            self.message = _PLAIN + pickle.dumps(nodes, pickle.HIGHEST_PROTOCOL)
        except _NotPlainError:
            self._leaves = leaves = _Leaves(arena)
            buffer = io.BytesIO()
            _Pickler(buffer, leaves).dump(content)
            self.message = _PICKLED + buffer.getvalue()
        self.size = leaves.top
        self.wasted = 0
        if arena is not None:
            inside = sum(_aligned(leaf.nbytes) for _, leaf in leaves.inside)
            self.wasted = max(0, arena.top - inside, arena.wanted - self.size)

    def write(self, slot: Slot, *, moved: bool) -> None:
        """Copy into the slot what does not lie there; ``moved``: all, for it is another slot."""
        leaves = self._leaves
        for offset, leaf in leaves.outside + leaves.inside if moved else leaves.outside:
            _write(slot, offset, leaf)
        # From here on the batch keeps nothing alive, so whoever still does is somebody else.
        self._leaves = _Leaves(None)


def packed_whole(content: Any) -> bytes:
    """A batch as a message that needs no slot: its tensors and arrays are copied into it."""
    return _PICKLED + pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def unpack(message: bytes, lease: Lease | None) -> Any:
    """What was packed, its tensors and arrays being views of ``lease``."""
    if message[:1] == _PLAIN:
        return _put_together(pickle.loads(memoryview(message)[1:]), lease)
    return _Unpickler(io.BytesIO(message[1:]), lease).load()


# ---- leaves


class _Leaves:
    """Where in the slot each tensor and array goes."""

    def __init__(self, arena: Arena | None) -> None:
        self._arena = arena
        self.top = 0 if arena is None else arena.top
        self.outside: list[tuple[int, Any]] = []
        self.inside: list[tuple[int, Any]] = []

    def place_tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        """dtype, shape, offset, and the order of its dimensions if that is not the usual one."""
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
            offset = self._place_outside(tensor, tensor.nbytes)
        else:
            self.inside.append((offset, tensor))
        return _NUMBERS[tensor.dtype], tuple(tensor.shape), offset, order

    def place_array(self, array: NDArray[Any]) -> tuple[Any, ...]:
        """dtype, shape, offset, and whether it lies in Fortran's order."""
        in_fortran_order = array.flags.f_contiguous and not array.flags.c_contiguous
        rows = array.T if in_fortran_order else array
        kind = array.dtype if array.dtype.names or array.dtype.metadata else array.dtype.str
        return kind, rows.shape, self._place_outside(rows, array.nbytes), in_fortran_order

    def _place_outside(self, leaf: Any, size: int) -> int:
        offset, self.top = self.top, _aligned(self.top + size)
        self.outside.append((offset, leaf))
        return offset


def is_plain_tensor(tensor: torch.Tensor) -> bool:
    """Whether its values are the bytes that lie in memory, so that they may lie in a slot."""
    return (
        tensor.dtype in _NUMBERS
        and tensor.layout is torch.strided
        and not tensor.requires_grad
        and tensor.device.type == "cpu"
        and not tensor.is_nested
    )


def _is_plain_array(array: NDArray[Any]) -> bool:
    return array.size > 0 and not array.dtype.hasobject


def _write(slot: Slot, offset: int, leaf: Any) -> None:
    if isinstance(leaf, np.ndarray):
        np.copyto(np.ndarray(leaf.shape, leaf.dtype, buffer=slot.memory, offset=offset), leaf)
    elif leaf.is_conj() or leaf.is_neg():
        target = np.frombuffer(slot.memory, dtype=np.uint8)
        _tensor(target, leaf.dtype, leaf.shape, offset).copy_(leaf)
    else:
        ctypes.memmove(slot.address + offset, leaf.data_ptr(), leaf.nbytes)


def _tensor(
    lease: Lease | None,
    dtype: torch.dtype,
    shape: Sequence[int],
    offset: int,
    order: Sequence[int] | None = None,
) -> torch.Tensor:
    if not prod(shape):
        tensor = torch.empty(torch.Size(shape), dtype=dtype)
    elif (like := _NUMPY_DTYPES.get(dtype)) is not None:  # three times as fast as frombuffer
        tensor = torch.from_numpy(np.ndarray(shape, like, buffer=lease, offset=offset))
    else:
        flat = torch.frombuffer(lease, dtype=dtype, count=prod(shape), offset=offset)
        tensor = flat.view(torch.Size(shape))
    return tensor if order is None else tensor.permute(np.argsort(order).tolist())


def _array(
    lease: Lease | None, kind: Any, shape: Sequence[int], offset: int, in_fortran_order: bool
) -> NDArray[Any]:
    array: NDArray[Any] = np.ndarray(shape, np.dtype(kind), buffer=lease, offset=offset)
    return array.T if in_fortran_order else array


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


# ---- plain batches


class _NotPlainError(Exception):
    """The batch has to be pickled."""


def _taken_apart(value: Any, leaves: _Leaves, seen: set[int]) -> tuple[Any, ...]:
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and not value):
        return _ATOM, value
    # What occurs twice is for pickle, which makes it one object again; so are cycles.
    if id(value) in seen:
        raise _NotPlainError
    seen.add(id(value))
    if kind is torch.Tensor and is_plain_tensor(value):
        return _TENSOR, *leaves.place_tensor(value)
    if kind is dict and all(type(key) in _ATOMS for key in value):
        nodes = [_taken_apart(inner, leaves, seen) for inner in value.values()]
        return _DICT, tuple(value), nodes
    if (kind is list or kind is tuple) and len(value) <= _LONGEST_LIST:
        nodes = [_taken_apart(inner, leaves, seen) for inner in value]
        return _LIST if kind is list else _TUPLE, nodes
    if kind is np.ndarray and _is_plain_array(value):
        return _ARRAY, *leaves.place_array(value)
    raise _NotPlainError


def _put_together(node: tuple[Any, ...], lease: Lease | None) -> Any:
    kind = node[0]
    if kind == _TENSOR:
        return _tensor(lease, _DTYPES[node[1]], *node[2:])
    if kind == _ATOM:
        return node[1]
    if kind == _DICT:
        return {key: _put_together(inner, lease) for key, inner in zip(node[1], node[2])}
    if kind == _ARRAY:
        return _array(lease, *node[1:])
    inner = [_put_together(inner, lease) for inner in node[1]]
    return inner if kind == _LIST else tuple(inner)


# ---- any other batch


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, leaves: _Leaves) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._leaves = leaves

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor and is_plain_tensor(value):
            return _tensor_at, self._leaves.place_tensor(value)
        if kind is np.ndarray and _is_plain_array(value):
            return _array_at, self._leaves.place_array(value)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, lease: Lease | None) -> None:
        super().__init__(buffer)

        def tensor_at(number: int, *place: Any) -> torch.Tensor:
            return _tensor(lease, _DTYPES[number], *place)

        def array_at(*place: Any) -> NDArray[Any]:
            return _array(lease, *place)

        # No methods of its own: it keeps what it finds, and would keep itself and the lease alive.
        self._found = {"_tensor_at": tensor_at, "_array_at": array_at}

    def find_class(self, module: str, name: str) -> Any:
        return self._found[name] if module == __name__ else super().find_class(module, name)


def _tensor_at(*_: Any) -> None:
    """Stands in a message for what the unpickler puts there."""


def _array_at(*_: Any) -> None:
    """Stands in a message for what the unpickler puts there."""
