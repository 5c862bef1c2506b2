"""The beginning of a dataset: its first samples as a dataset, without reading one."""

from __future__ import annotations

import copy
from bisect import bisect_left
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from dataporter.datasets.columns import MappedColumns
from dataporter.datasets.fingerprint import content_of
from dataporter.shared.sequence import SharedSequence

__all__ = ["beginning_of"]

_SLICED = (torch.Tensor, np.ndarray, list, tuple, range, SharedSequence)


def beginning_of(dataset: Any, length: int) -> Any:
    """What has the fingerprint that the dataset had when it ended after ``length`` samples.

    Of a custom class, the attributes that are known to be its content are cut.

    Raises:
        LookupError: nothing is known of the content.
    """
    if isinstance(dataset, _SLICED):
        return dataset[:length]
    if isinstance(dataset, dict):
        return {name: beginning_of(column, length) for name, column in dataset.items()}
    if isinstance(dataset, MappedColumns):
        return beginning_of(dataset.columns, length)
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*(tensor[:length] for tensor in dataset.tensors))
    if isinstance(dataset, Subset):
        return Subset(dataset.dataset, dataset.indices[:length])
    if isinstance(dataset, ConcatDataset):
        return _beginning_of_parts(dataset, length)
    if isinstance(dataset, StackDataset):
        parts: Any = dataset.datasets
        if isinstance(parts, dict):
            return StackDataset(**beginning_of(parts, length))
        return StackDataset(*(beginning_of(part, length) for part in parts))
    return _beginning_of_object(dataset, length)


def _beginning_of_parts(dataset: ConcatDataset[Any], length: int) -> Any:
    ends = dataset.cumulative_sizes
    last = bisect_left(ends, length)
    before = ends[last - 1] if last else 0
    parts = [*dataset.datasets[:last], beginning_of(dataset.datasets[last], length - before)]
    whole: ConcatDataset[Any] = ConcatDataset(parts)
    return whole


def _beginning_of_object(dataset: Any, length: int) -> Any:
    content = content_of(dataset)
    by_sample = {name: value for name, value in content.items() if len(value) == len(dataset)}
    if not by_sample:
        raise LookupError(f"the content of a {type(dataset).__name__} is unknown")
    cut = copy.copy(dataset)
    for name, value in by_sample.items():
        vars(cut)[name] = beginning_of(value, length)
    return cut
