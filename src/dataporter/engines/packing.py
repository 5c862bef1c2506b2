"""Packing: a nested batch becomes a message and the bytes of a slot, and arrives equal.

A batch of plain dicts, lists, tuples, tensors and arrays is taken apart here. Any other is pickled,
with each plain tensor and array in it replaced by its location in the slot. Of other tensors
(sparse, quantized, subclasses, requires_grad) the slot holds the values, and the pickle the rest;
object arrays are pickled whole.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.engines.layout import (
    Arena,
    Layout,
    Location,
    array_view,
    is_plain_array,
    is_plain_tensor,
    tensor_view,
)
from dataporter.engines.ring import Lease, Slot
from dataporter.shared.pickling import Piece, dumps, reduced, storage_of

__all__ = ["Packer", "packed_whole", "unpack"]

# A longer list usually holds strings or numbers, which pickle walks faster.
_LONGEST_LIST = 32
_ATOMS = frozenset({int, float, bool, str, bytes, type(None)})
# The first byte of a message.
_PLAIN, _PICKLED = b"p", b"o"
# The kinds of nodes of a plain batch.
_ATOM, _DICT, _LIST, _TUPLE, _TENSOR, _ARRAY = range(6)


class Packer:
    """A batch on its way into a slot.

    Args:
        content: anything that can be pickled.
        arena: where some of its tensors may lie already.

    Attributes:
        message: the argument of :func:`unpack`.
        size: bytes of the slot that its tensors and arrays take.
        wasted: bytes that the arena handed out, or was asked for in vain, and that the batch does
            not use.

    Raises:
        Exception: whatever pickling raises.
    """

    def __init__(self, content: Any, arena: Arena | None) -> None:
        self._layout = layout = Layout(arena)
        try:
            nodes = _taken_apart(content, layout, set())
            self.message = _PLAIN + pickle.dumps((layout.settle(), nodes), pickle.HIGHEST_PROTOCOL)
        except _NotPlainError:
            self._layout = layout = Layout(arena)
            buffer = io.BytesIO()
            _Pickler(buffer, layout).dump(content)
            locations = pickle.dumps(layout.settle(), pickle.HIGHEST_PROTOCOL)
            self.message = _PICKLED + locations + buffer.getvalue()
        self.size = layout.size
        self.wasted = layout.wasted

    def write(self, slot: Slot, *, moved: bool) -> None:
        """Copy what does not lie in ``slot`` yet; ``moved``: all of it, since the arena's differs.

        Afterwards the packer keeps nothing of the batch alive: if anything still holds the slot, it
        is the dataset or its collation.
        """
        self._layout.write(slot, moved=moved)
        self._layout = Layout(None)


def packed_whole(content: Any) -> bytes:
    """A batch as a message that needs no slot: its tensors and arrays are copied into it."""
    return _PICKLED + pickle.dumps([]) + dumps(content)


def unpack(message: bytes, lease: Lease | None) -> Any:
    """The batch that was packed; its tensors and arrays are views of ``lease``."""
    if message[:1] == _PLAIN:
        locations, nodes = pickle.loads(memoryview(message)[1:])
        return _put_together(nodes, locations, lease)
    buffer = io.BytesIO(memoryview(message)[1:])
    locations = pickle.load(buffer)
    return _Unpickler(buffer, locations, lease).load()


# ---- plain batches


class _NotPlainError(Exception):
    """The batch has to be pickled."""


def _taken_apart(value: Any, layout: Layout, seen: set[int]) -> tuple[Any, ...]:
    kind = type(value)
    if kind in _ATOMS or (kind is tuple and not value):
        return _ATOM, value
    # pickle makes one object again of an object that occurs twice, and copes with cycles.
    if id(value) in seen:
        raise _NotPlainError
    seen.add(id(value))
    if kind is torch.Tensor and is_plain_tensor(value):
        return _TENSOR, *layout.add_tensor(value)
    if kind is dict and all(type(key) in _ATOMS for key in value):
        nodes = [_taken_apart(inner, layout, seen) for inner in value.values()]
        return _DICT, tuple(value), nodes
    if (kind is list or kind is tuple) and len(value) <= _LONGEST_LIST:
        nodes = [_taken_apart(inner, layout, seen) for inner in value]
        return _LIST if kind is list else _TUPLE, nodes
    if kind is np.ndarray and is_plain_array(value):
        return _ARRAY, *layout.add_array(value)
    raise _NotPlainError


def _put_together(node: tuple[Any, ...], locations: list[Location], lease: Lease | None) -> Any:
    kind = node[0]
    if kind == _TENSOR:
        return tensor_view(lease, node[1], node[2], locations[node[3]])
    if kind == _ATOM:
        return node[1]
    if kind == _DICT:
        return {key: _put_together(inner, locations, lease) for key, inner in zip(node[1], node[2])}
    if kind == _ARRAY:
        return array_view(lease, node[1], node[2], locations[node[3]], in_fortran_order=node[4])
    inner = [_put_together(inner, locations, lease) for inner in node[1]]
    return inner if kind == _LIST else tuple(inner)


# ---- any other batch


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, layout: Layout) -> None:
        super().__init__(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        self._layout = layout

    def reducer_override(self, value: Any) -> Any:
        kind = type(value)
        if kind is torch.Tensor and is_plain_tensor(value):
            return _tensor_at, self._layout.add_tensor(value)
        if kind is np.ndarray and is_plain_array(value):
            return _array_at, self._layout.add_array(value)
        if kind is Piece:
            return _storage_at, (value.dtype, *self._layout.add_tensor(value.raw))
        return reduced(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, locations: list[Location], lease: Lease | None) -> None:
        super().__init__(buffer)

        def tensor_at(number: int, shape: Sequence[int], leaf: int) -> torch.Tensor:
            return tensor_view(lease, number, shape, locations[leaf])

        def array_at(dtype: Any, shape: Any, leaf: int, in_fortran_order: bool) -> NDArray[Any]:
            return array_view(
                lease, dtype, shape, locations[leaf], in_fortran_order=in_fortran_order
            )

        def storage_at(
            dtype: torch.dtype, number: int, shape: Sequence[int], leaf: int
        ) -> torch.TypedStorage:
            return storage_of(tensor_at(number, shape, leaf), dtype)

        # Not methods: the unpickler keeps what it finds, so bound ones would form a cycle that
        # keeps the lease alive.
        self._found: dict[str, Any] = {
            "_tensor_at": tensor_at,
            "_array_at": array_at,
            "_storage_at": storage_at,
        }

    def find_class(self, module: str, name: str) -> Any:
        return self._found[name] if module == __name__ else super().find_class(module, name)


def _tensor_at(*_: Any) -> None:
    """Stands in a message for the function that the unpickler substitutes."""


def _storage_at(*_: Any) -> None:
    """Stands in a message for the function that the unpickler substitutes."""


def _array_at(*_: Any) -> None:
    """Stands in a message for the function that the unpickler substitutes."""
