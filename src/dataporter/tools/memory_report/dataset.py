"""What a dataset holds: its arrays, its Python objects and its SharedSequences, in bytes."""

from __future__ import annotations

import mmap
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dataporter.shared.sequence import SharedSequence

__all__ = ["bytes_of", "found_in"]

# Objects that are looked at one by one; longer sequences are judged by so many of their elements.
_MOST_OBJECTS = 100_000
_ELEMENTS_SAMPLED = 1_000
# What is the program, and no data.
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


class _Found(NamedTuple):
    """Bytes of what a dataset is made of, each piece counted once.

    Attributes:
        arrays: tensors, arrays, and whatever else says ``nbytes``.
        objects: Python objects, which are copied by the processes that look at them.
        shared: in SharedSequences.
        unshared: of the objects in these, if they were in lists.
    """

    arrays: int
    objects: int
    shared: int
    unshared: int


def found_in(dataset: Any) -> _Found:
    """Walk the objects that a dataset is made of, and add up their bytes."""
    seen: set[int] = set()
    arrays, objects, shared, unshared = 0.0, 0.0, 0.0, 0.0
    # Each with how many it stands for.
    waiting: list[tuple[Any, float]] = [(dataset, 1.0)]
    while waiting and len(seen) < _MOST_OBJECTS:
        value, weight = waiting.pop()
        key = _identity(value)
        # By the type, since to ask an object for its class may raise as well.
        if key in seen or issubclass(type(value), _CODE):
            continue
        seen.add(key)
        if issubclass(type(value), SharedSequence):
            some = [value[place] for place in _some_places(len(value))]
            shared += value.nbytes
            unshared += found_in(some).objects * len(value) / max(1, len(some))
            continue
        try:
            held, inner = _held_in_one_piece(value), _inside(value)
        except Exception:  # attributes that raise are not ours to judge, and keep what they hold
            held, inner = None, ()
        if held is not None:
            arrays += held * weight
            continue
        objects += sys.getsizeof(value) * weight
        places = _some_places(len(inner))
        waiting += [(inner[place], weight * len(inner) / len(places)) for place in places]
    return _Found(int(arrays), int(objects), int(shared), int(unshared))


def _some_places(length: int) -> range:
    return range(0, length, max(1, length // _ELEMENTS_SAMPLED))


def _identity(value: Any) -> int:
    if issubclass(type(value), torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage().data_ptr() or id(value)
    return id(value)


def _held_in_one_piece(value: Any) -> int | None:
    """Bytes of what Python's reference counts do not reach into; 0 for what lies on a disk."""
    if isinstance(value, np.memmap | mmap.mmap):
        return 0
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and not value.is_nested
        return value.untyped_storage().nbytes() if plain else bytes_of(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        owner = None if value.base is None else _held_in_one_piece(value.base)
        return value.nbytes if owner is None else owner
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else None


def bytes_of(leaf: Any) -> int:
    """Bytes of a tensor's or array's values, and of where they are in a sparse tensor."""
    if not isinstance(leaf, torch.Tensor) or leaf.layout in (torch.strided, torch.jagged):
        return int(leaf.nbytes)
    if leaf.layout is torch.sparse_coo:
        return int(leaf._indices().nbytes + leaf._values().nbytes)
    by_row = leaf.layout in (torch.sparse_csr, torch.sparse_bsr)
    places = (
        (leaf.crow_indices(), leaf.col_indices())
        if by_row
        else (leaf.ccol_indices(), leaf.row_indices())
    )
    return int(leaf.values().nbytes + sum(place.nbytes for place in places))


def _inside(value: Any) -> Sequence[Any]:
    # No other mapping: its values may lie on a disk until they are asked for.
    if isinstance(value, dict | types.MappingProxyType):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()  # type: ignore[no-any-return]  # of objects
    inner = list(getattr(value, "__dict__", {}).values())
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return inner + [getattr(value, name) for name in slots if hasattr(value, name)]
