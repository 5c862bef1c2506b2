"""Names: how a dataset calls its samples, found out without reading one."""

from __future__ import annotations

import os
from bisect import bisect_right
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, StackDataset, Subset

from dataporter.shared.sequence import SharedSequence

__all__ = ["name_of", "stream_name"]

# Where torchvision's datasets, and others like them, list their files.
_LISTS = ("samples", "imgs", "files", "paths")


def name_of(dataset: Any, index: Any) -> str | None:
    """The name of a sample, or None where the dataset has none.

    A dataset names its samples with a method ``sample_name(index)``, or lists them in an attribute
    ``samples``, ``imgs``, ``files`` or ``paths`` that has an entry for each: a path, or a tuple
    that begins with one. torch's ``Subset``, ``ConcatDataset`` and ``StackDataset`` have the names
    of the datasets in them.

    Args:
        dataset: map-style.
        index: of the sample.
    """
    try:
        return _name(dataset, index)
    except Exception:  # the sample's own failure is what counts
        return None


def stream_name(dataset: Any, index: tuple[int, int]) -> str | None:
    """The name of a stream's sample, if it has a ``sample_name((shard, offset))``."""
    try:
        return _own(dataset, index)
    except Exception:  # as above
        return None


def _own(dataset: Any, index: Any) -> str | None:
    name = dataset.sample_name(index)
    return None if name is None else str(name)


def _name(dataset: Any, index: Any) -> str | None:
    if callable(getattr(dataset, "sample_name", None)):
        return _own(dataset, index)
    if isinstance(dataset, Subset):
        return _name(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        index = index + len(dataset) if index < 0 else index
        part = bisect_right(dataset.cumulative_sizes, index)
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return _name(dataset.datasets[part], index - before)
    if isinstance(dataset, StackDataset):
        parts = dataset.datasets
        values = parts.values() if isinstance(parts, dict) else parts
        names = (name_of(part, index) for part in values)
        return next((name for name in names if name is not None), None)
    for attribute in _LISTS:
        listed = getattr(dataset, attribute, None)
        if not isinstance(listed, list | tuple | np.ndarray | SharedSequence):
            continue
        if len(listed) != len(dataset):
            continue
        entry = listed[index]
        path = entry[0] if isinstance(entry, list | tuple) and entry else entry
        if isinstance(path, str | os.PathLike):
            return str(os.fspath(path))
    return None
