"""Spread: some values of an array or a list, the same ones wherever and however they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.seeding.hashing import fold

__all__ = ["bytes_of", "integers_of", "spread"]

# An array of up to so many bytes is read whole. Of a larger one, which may be a memory-mapped file
# on a slow disk, so many runs of neighbours, of so many bytes each: a page or two for each run.
_WHOLE = 1 << 17
_RUNS, _RUN_BYTES, _RUN_LONGEST = 16, 2048, 512
_INTEGERS = 4096

# A dtype of so many bytes that NumPy knows, for those of torch that it does not (bfloat16).
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def spread(length: int, run: int, runs: int) -> NDArray[np.int64]:
    """Ascending places 0..length-1: all, or ``runs`` runs of ``run`` neighbours.

    The first and the last run are the ends. Each other one lies anywhere in its part of the length,
    the same for each call: at equal distances, it could be the same column of each row.
    """
    if length <= run * runs:
        return np.arange(length, dtype=np.int64)
    part = length // runs
    starts = [number * part + fold(number, length) % (part - run + 1) for number in range(runs)]
    starts[0], starts[-1] = 0, length - run if runs > 1 else 0
    return (np.array(starts, dtype=np.int64)[:, None] + np.arange(run, dtype=np.int64)).ravel()


def bytes_of(array: torch.Tensor | NDArray[Any], share: int) -> tuple[str, tuple[int, ...], Any]:
    """The dtype, the shape, and some values of a tensor or an array.

    A tensor and an array of the same values give the same.

    Args:
        share: one of how many arrays it is that are looked at together.

    Returns:
        The values as little-endian bytes; of an array of objects, a list of some of them; None
        where they cannot be read in place (a sparse tensor, say).

    Raises:
        RuntimeError, TypeError, ValueError: the values cannot be read in place, either.
    """
    if isinstance(array, torch.Tensor):
        name, shape = str(array.dtype).removeprefix("torch."), tuple(array.shape)
        strided = array.layout is torch.strided and not array.is_quantized and not array.is_meta
        if not strided:
            return name, shape, None
        # A subclass may index in its own way.
        array = array.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()
        if array.device.type != "cpu":
            array = _chosen_tensor(array, share)
            return name, shape, _little(_as_numpy(array))
        return name, shape, _little(_chosen(_as_numpy(array), share))
    array = np.asarray(array)  # a subclass may index in its own way
    dtype = array.dtype.newbyteorder("<")
    name = dtype.name if dtype.kind in "biufc" else str(dtype.descr if dtype.names else dtype.str)
    chosen = _chosen(array, share)
    if dtype.hasobject:
        return name, array.shape, None if dtype.names else chosen.ravel().tolist()
    return name, array.shape, _little(chosen)


def integers_of(values: Any, share: int) -> bytes | None:
    """Some of a sequence of whole numbers, as bytes; None for a sequence of others.

    A list, a range, an array and a tensor of the same numbers give the same.
    """
    chosen = spread(len(values), 64, max(1, _INTEGERS // 64 // share))
    if isinstance(values, np.ndarray | torch.Tensor):
        some: Any = np.asarray(values[chosen])
    elif isinstance(values, Sequence):
        # A plain list of them all is read faster than one by one.
        some = (
            values if len(chosen) == len(values) else [values[place] for place in chosen.tolist()]
        )
        some = np.asarray(some)
    else:
        return None
    if some.ndim != 1 or (some.size and not np.issubdtype(some.dtype, np.integer)):
        return None
    return _little(some.astype(np.int64))


def _runs(shape: tuple[int, ...], itemsize: int, share: int) -> NDArray[np.int64] | None:
    """The places of the values to look at in the array as one row; None for all."""
    count = math.prod(shape)
    if count * itemsize <= _WHOLE // share:
        return None
    run = max(1, min(_RUN_BYTES // max(1, itemsize), _RUN_LONGEST))
    return spread(count, run, max(2, _RUNS // share))


def _chosen(array: NDArray[Any], share: int) -> NDArray[Any]:
    places = _runs(array.shape, array.itemsize, share)
    if places is None:
        return array
    # To flatten an array of another layout would copy it.
    by_axis: Any = np.unravel_index(places, array.shape)
    chosen: NDArray[Any] = array.reshape(-1)[places] if array.flags.c_contiguous else array[by_axis]
    return chosen


def _chosen_tensor(tensor: torch.Tensor, share: int) -> torch.Tensor:
    places = _runs(tuple(tensor.shape), tensor.element_size(), share)
    if places is None:
        return tensor.cpu()
    where = np.unravel_index(places, tuple(tensor.shape))
    return tensor[tuple(torch.from_numpy(axis).to(tensor.device) for axis in where)].cpu()


def _as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory as an array."""
    try:
        return tensor.numpy()
    except TypeError:  # a dtype that NumPy does not have
        return tensor.view(_BITS[tensor.element_size()]).numpy()


def _little(array: NDArray[Any]) -> bytes:
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
