"""Packing: a nested batch becomes a message and the bytes of a slot, and comes out equal.

A batch of plain dicts, lists, tuples, tensors and arrays is taken apart here. Any other is pickled,
with each plain tensor and array in it being a place in the slot. Tensors keep their strides, and
those that share memory share it again, as with torch's workers. What cannot lie there (sparse,
quantized, subclasses, requires_grad, object arrays) is pickled whole.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.engines.layout import (
    ALL_DTYPES,
    Arena,
    Leaves,
    Place,
    aligned,
    array_in,
    is_plain_array,
    is_plain_tensor,
    tensor_in,
)
from dataporter.engines.ring import Lease, Slot

__all__ = ["Packer", "packed_whole", "unpack"]

# A longer list is one of strings or numbers rather, which pickle walks faster.
_LONGEST_LIST = 32
_ATOMS = frozenset({int, float, bool, str, bytes, type(None)})
# How a message begins.
_PLAIN, _PICKLED = b"p", b"o"
# What a node of a plain batch is.
_ATOM, _DICT, _LIST, _TUPLE, _TENSOR, _ARRAY = range(6)


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
        self._leaves = leaves = Leaves(arena)
        try:
            nodes = _taken_apart(content, leaves, set())
            self.message = _PLAIN + pickle.dumps((leaves.settled(), nodes), pickle.HIGHEST_PROTOCOL)
        except _NotPlainError:
            self._leaves = leaves = Leaves(arena)
            buffer = io.BytesIO()
            _Pickler(buffer, leaves).dump(content)
            places = pickle.dumps(leaves.settled(), pickle.HIGHEST_PROTOCOL)
            self.message = _PICKLED + places + buffer.getvalue()
        self.size = leaves.top
        self.wasted = 0
        if arena is not None:
            inside = sum(aligned(size) for _, _, size in leaves.inside)
            self.wasted = max(0, arena.top - inside, arena.wanted - self.size)

    def write(self, slot: Slot, *, moved: bool) -> None:
        """Copy into the slot what does not lie there; ``moved``: all, for it is another slot."""
        leaves = self._leaves
        for offset, address, size in leaves.outside + leaves.inside if moved else leaves.outside:
            ctypes.memmove(slot.address + offset, address, size)
        for offset, array in leaves.arrays:
            target = np.ndarray(array.shape, array.dtype, buffer=slot.memory, offset=offset)
            np.copyto(target, array)
        # From here on the batch keeps nothing alive, so whoever still does is somebody else.
        self._leaves = Leaves(None)


def packed_whole(content: Any) -> bytes:
    """A batch as a message that needs no slot: its tensors and arrays are copied into it."""
    return _PICKLED + pickle.dumps([]) + pickle.dumps(content, pickle.HIGHEST_PROTOCOL)


def unpack(message: bytes, lease: Lease | None) -> Any:
    """What was packed, its tensors and arrays being views of ``lease``."""
    if message[:1] == _PLAIN:
        places, nodes = pickle.loads(memoryview(message)[1:])
        return _put_together(nodes, places, lease)
    buffer = io.BytesIO(memoryview(message)[1:])
    places = pickle.load(buffer)
    return _Unpickler(buffer, places, lease).load()


# ---- plain batches


class _NotPlainError(Exception):
    """The batch has to be pickled."""


def _taken_apart(value: Any, leaves: Leaves, seen: set[int]) -> tuple[Any, ...]:
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
    if kind is np.ndarray and is_plain_array(value):
        return _ARRAY, *leaves.place_array(value)
    raise _NotPlainError


def _put_together(node: tuple[Any, ...], places: list[Place], lease: Lease | None) -> Any:
    kind = node[0]
    if kind == _TENSOR:
        return tensor_in(lease, ALL_DTYPES[node[1]], node[2], *places[node[3]])
    if kind == _ATOM:
        return node[1]
    if kind == _DICT:
        return {key: _put_together(inner, places, lease) for key, inner in zip(node[1], node[2])}
    if kind == _ARRAY:
        return array_in(lease, node[1], node[2], places[node[3]][0], node[4])
    inner = [_put_together(inner, places, lease) for inner in node[1]]
    return inner if kind == _LIST else tuple(inner)


# ---- any other batch


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, leaves: Leaves) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._leaves = leaves

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor and is_plain_tensor(value):
            return _tensor_at, self._leaves.place_tensor(value)
        if kind is np.ndarray and is_plain_array(value):
            return _array_at, self._leaves.place_array(value)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, places: list[Place], lease: Lease | None) -> None:
        super().__init__(buffer)

        def tensor_at(number: int, shape: Sequence[int], leaf: int) -> torch.Tensor:
            return tensor_in(lease, ALL_DTYPES[number], shape, *places[leaf])

        def array_at(kind: Any, shape: Any, leaf: int, in_fortran_order: bool) -> NDArray[Any]:
            return array_in(lease, kind, shape, places[leaf][0], in_fortran_order)

        # No methods of its own: it keeps what it finds, and would keep itself and the lease alive.
        self._found = {"_tensor_at": tensor_at, "_array_at": array_at}

    def find_class(self, module: str, name: str) -> Any:
        return self._found[name] if module == __name__ else super().find_class(module, name)


def _tensor_at(*_: Any) -> None:
    """Stands in a message for what the unpickler puts there."""


def _array_at(*_: Any) -> None:
    """Stands in a message for what the unpickler puts there."""
