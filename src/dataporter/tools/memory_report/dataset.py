"""The memory of a dataset: its arrays, Python objects and SharedSequences, in bytes."""

from __future__ import annotations

import mmap
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from dataporter.shared.sequence import SharedSequence

__all__ = ["DatasetMemory", "bytes_of", "dataset_memory"]

# Objects looked at one by one. Of a longer sequence, about so many elements stand for all.
_MOST_OBJECTS = 100_000
_ELEMENTS_SAMPLED = 1_000
# The program, not its data.
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


class DatasetMemory(NamedTuple):
    """Bytes that the parts of a dataset hold, each part counted once.

    Attributes:
        arrays: tensors, arrays, and other objects with ``nbytes``.
        objects: Python objects. A process that looks at one copies its memory page.
        shared: SharedSequences.
        unshared: the elements of these SharedSequences, if they were objects in lists.
    """

    arrays: int
    objects: int
    shared: int
    unshared: int


def dataset_memory(dataset: Any) -> DatasetMemory:
    """Walk the objects that a dataset refers to, and add up their bytes."""
    seen: set[int] = set()
    arrays, objects, shared, unshared = 0.0, 0.0, 0.0, 0.0
    # Each object with the number of objects it stands for.
    waiting: list[tuple[Any, float]] = [(dataset, 1.0)]
    while waiting and len(seen) < _MOST_OBJECTS:
        value, weight = waiting.pop()
        key = _identity(value)
        # issubclass on the type, since isinstance asks the object for its class, which may raise.
        if key in seen or issubclass(type(value), _CODE):
            continue
        seen.add(key)
        if issubclass(type(value), SharedSequence):
            sampled = [value[index] for index in _sampled_indices(len(value))]
            shared += value.nbytes
            unshared += dataset_memory(sampled).objects * len(value) / max(1, len(sampled))
            continue
        try:
            whole, parts = _bytes_outside_python(value), _parts(value)
        except Exception:  # an object whose attributes raise counts with its own size only
            whole, parts = None, ()
        if whole is not None:
            arrays += whole * weight
            continue
        objects += sys.getsizeof(value) * weight
        indices = _sampled_indices(len(parts))
        waiting += [(parts[index], weight * len(parts) / len(indices)) for index in indices]
    return DatasetMemory(int(arrays), int(objects), int(shared), int(unshared))


def bytes_of(leaf: Any) -> int:
    """Bytes of a tensor or array; for a sparse tensor, of its values and their indices."""
    if not isinstance(leaf, torch.Tensor) or leaf.layout in (torch.strided, torch.jagged):
        return int(leaf.nbytes)
    if leaf.layout is torch.sparse_coo:
        return int(leaf._indices().nbytes + leaf._values().nbytes)
    by_row = leaf.layout in (torch.sparse_csr, torch.sparse_bsr)
    indices = (
        (leaf.crow_indices(), leaf.col_indices())
        if by_row
        else (leaf.ccol_indices(), leaf.row_indices())
    )
    return int(leaf.values().nbytes + sum(index.nbytes for index in indices))


def _sampled_indices(length: int) -> range:
    return range(0, length, max(1, length // _ELEMENTS_SAMPLED))


def _identity(value: Any) -> int:
    if issubclass(type(value), torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage().data_ptr() or id(value)
    return id(value)


def _bytes_outside_python(value: Any) -> int | None:
    """Bytes of an array, which has no reference counts inside; 0 for a file mapped from disk."""
    if isinstance(value, np.memmap | mmap.mmap):
        return 0
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and not value.is_nested
        return value.untyped_storage().nbytes() if plain else bytes_of(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        owner = None if value.base is None else _bytes_outside_python(value.base)
        return value.nbytes if owner is None else owner
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else None


def _parts(value: Any) -> Sequence[Any]:
    """The objects that an object refers to."""
    # No other mapping: one may read its values from disk when it is asked for them.
    if isinstance(value, dict | types.MappingProxyType):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()  # type: ignore[no-any-return]  # of objects
    attributes = list(getattr(value, "__dict__", {}).values())
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return attributes + [getattr(value, name) for name in slots if hasattr(value, name)]
