"""Padding: rows of several lengths become one tensor, with a mask of the original values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from dataporter.errors import ConfigurationError
from dataporter.hf.ragged import Ragged

__all__ = ["Padding", "masks_of", "padding_for"]

_TOKENS, _TOKENS_MASK = "input_ids", "attention_mask"


@dataclass(frozen=True, slots=True)
class Padding:
    """Which columns of a batch are padded.

    Attributes:
        values: column → the padding value.
        masks: column → the name of the mask made of its lengths.
    """

    values: Mapping[str, float]
    masks: Mapping[str, str]

    def padded(self, batch: Any) -> Any:
        """The batch with its columns padded, each to its longest row, and their masks added."""
        if not isinstance(batch, dict) or not self.values:
            return batch
        padded = dict(batch)
        for name, value in self.values.items():
            if name not in batch:
                continue
            rows, mask = _padded(batch[name], value, name)
            padded[name] = rows
            if (mask_name := self.masks.get(name)) is not None and mask_name not in batch:
                padded[mask_name] = mask
        return padded


def padding_for(
    pad: Mapping[str, Any] | None, columns: Sequence[str], lists: Sequence[str]
) -> Padding:
    """The padding that ``pad=`` describes.

    If ``input_ids`` is padded, the only mask is ``attention_mask``, since models take no others. A
    column of that name is padded with 0; otherwise an int8 mask is made, as tokenizers make it. In
    all other cases each padded column gets a mask named after it, unless a column has that name.

    Args:
        pad: column → value.
        columns: the columns of a sample.
        lists: the columns that can be padded.

    Raises:
        ConfigurationError: a column is missing or does not hold lists of numbers, or a value is not
            a number.
    """
    values = dict(pad or {})
    for name, value in values.items():
        if name not in columns:
            raise ConfigurationError(
                f"pad names {name!r}, but the dataset's columns are {list(columns)}: name columns "
                "that hold lists of numbers, not paths into them"
            )
        if name not in lists:
            raise ConfigurationError(
                f"pad names {name!r}, which does not hold lists of numbers without nulls: choose "
                f"from the columns that can be padded, {list(lists)}"
            )
        if not isinstance(value, bool | int | float):
            raise ConfigurationError(f"pad value {value!r} for {name!r}: expected a number")
    if _TOKENS in values and _TOKENS_MASK in lists:
        values.setdefault(_TOKENS_MASK, 0)
    return Padding(values, masks_of(values, columns))


def masks_of(pad: Iterable[str], columns: Sequence[str]) -> dict[str, str]:
    """Column → the name of the mask made of its lengths."""
    padded = set(pad)
    masks = {name: f"{name}_mask" for name in padded}
    if _TOKENS in padded:
        masks = {_TOKENS: _TOKENS_MASK}
    return {name: mask for name, mask in sorted(masks.items()) if mask not in columns}


def _padded(form: Any, value: float, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(form, torch.Tensor) and form.ndim > 1:
        return form, torch.ones(form.shape[:2], dtype=torch.int8)
    ragged = form if isinstance(form, Ragged) else _ragged(form, name)
    dtype = ragged.flat.dtype
    fitting = _fitting(value, str(value), dtype)
    if fitting is None:
        raise ConfigurationError(
            f"pad value {value!r} for {name!r} does not fit the column's dtype, "
            f"{str(dtype).removeprefix('torch.')}: pad with another value, or widen the "
            "column with dtype_conversions"
        )
    return ragged.padded(fitting)


@cache
def _fitting(value: float, text: str, dtype: torch.dtype) -> torch.Tensor | None:
    """The value as a tensor of shape (1,), or None if the dtype does not hold it.

    Its text tells -0.0 from 0.0, which are equal as keys of the cache.
    """
    found = torch.tensor([value], dtype=torch.float64).to(dtype)
    return found if found.item() == value else None


def _ragged(rows: Sequence[Any], name: str) -> Ragged:
    for number, row in enumerate(rows):
        if not isinstance(row, torch.Tensor) or row.ndim == 0:
            kind = "null" if row is None else f"a {type(row).__name__}"
            raise ConfigurationError(
                f"pad names {name!r}, but it is {kind} in sample {number} of the batch: filter "
                "such rows, or fill them"
            )
    if len({row.shape[1:] for row in rows}) > 1:
        raise ConfigurationError(
            f"pad names {name!r}, whose rows may differ in their first dimension only, but have "
            f"shapes {[list(row.shape) for row in rows[:4]]}: leave it out of pad"
        )
    return Ragged(torch.cat(list(rows)), np.array([len(row) for row in rows], dtype=np.int64))
