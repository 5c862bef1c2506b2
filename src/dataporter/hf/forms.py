"""Forms: the rows of a column as a batch holds them, and as the samples hold them.

A batch is the one that torch's ``default_collate`` makes, where it can make one. Values that it
cannot collate (nulls, rows of several lengths, dates) are a list with one row per sample. So are
lists of anything but numbers, which it would transpose: ``batch[i]`` would not be sample ``i``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from dataporter.errors import ConfigurationError
from dataporter.hf.ragged import Ragged

__all__ = ["collate", "rows_of", "settled", "stacked"]


def rows_of(form: Any, count: int) -> list[Any]:
    """The values of each of ``count`` samples in a column or batch; tensors are views.

    Raises:
        ConfigurationError: the number of values is not ``count``.
    """
    if isinstance(form, Mapping):
        columns = [rows_of(inner, count) for inner in form.values()]
        values: Any = zip(*columns) if columns else [()] * count
        return [dict(zip(form, row)) for row in values]
    if isinstance(form, tuple):
        return list(zip(*(rows_of(inner, count) for inner in form)))
    if isinstance(form, torch.Tensor):
        rows = list(form.unbind(0)) if form.ndim else []
    else:
        rows = form.rows() if isinstance(form, Ragged) else list(form)
    if len(rows) != count:
        raise ConfigurationError(
            f"a batch of {count} samples has {len(rows)} values in a {type(form).__name__}: "
            "expected one value per sample; let the transform return as many as it receives"
        )
    return rows


def settled(form: Any) -> Any:
    """The columns that were read, in the forms of a batch."""
    if isinstance(form, Ragged):
        return form.rows()
    if isinstance(form, dict):
        return {name: settled(inner) for name, inner in form.items()}
    return form


def stacked(rows: list[Any]) -> Any:
    """The rows as one tensor, if all are tensors of one shape and dtype, or else unchanged."""
    if set(map(type, rows)) != {torch.Tensor} or len({(row.dtype, row.shape) for row in rows}) > 1:
        return rows
    return torch.stack(rows)


def collate(samples: Sequence[Any]) -> Any:
    """A batch of samples, in the forms described above.

    Example:
        >>> collate([{"n": torch.tensor(1), "x": None}, {"n": torch.tensor(2), "x": "a"}])
        {'n': tensor([1, 2]), 'x': [None, 'a']}
    """
    samples = list(samples)
    first = samples[0]
    if isinstance(first, Mapping):
        if all(isinstance(sample, Mapping) and sample.keys() == first.keys() for sample in samples):
            return {name: collate([sample[name] for sample in samples]) for name in first}
        return samples
    if isinstance(first, tuple):
        kind = type(first)
        if not all(type(sample) is kind and len(sample) == len(first) for sample in samples):
            return samples
        columns = [collate(column) for column in zip(*samples)]
        return kind(*columns) if hasattr(first, "_fields") else columns
    if isinstance(first, torch.Tensor):
        return stacked(samples)
    if isinstance(first, np.ndarray | np.generic | bool | int | float):
        alike = {(type(sample), getattr(sample, "shape", ())) for sample in samples}
        return default_collate(samples) if len(alike) == 1 else samples
    return samples
