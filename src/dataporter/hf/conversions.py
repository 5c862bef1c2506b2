"""Conversions: the rules of `KeyBasedDtypeConverter`, applied to columns before collation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dataporter.convert import Conversion, KeyBasedDtypeConverter, Rules, converter_for
from dataporter.convert.forms import Bits
from dataporter.convert.paths import shown
from dataporter.errors import ConfigurationError, LossyConversionError, add_note
from dataporter.hf.forms import Ragged, stacked

__all__ = ["conversion_for", "converted", "noted"]


def conversion_for(
    rules: KeyBasedDtypeConverter | Rules | None, columns: Sequence[str] | None
) -> Conversion | None:
    """The conversion that ``dtype_conversions=`` describes, with the paths of a sample.

    Raises:
        ConfigurationError: a rule is invalid, or names a missing column.
    """
    converter = converter_for(rules)
    if converter is None:
        return None
    for pattern in converter.conversion.patterns if columns is not None else ():
        first = pattern[0] if pattern else None
        if isinstance(first, str | int) and first not in (columns or ()):
            raise ConfigurationError(
                f"dtype_conversions names {shown(pattern)!r}, but the columns are {columns}: "
                "correct the path, or add the column to columns="
            )
    return converter.conversion


def converted(form: Any, conversion: Conversion) -> Any:
    """The values read for several samples, converted by the rules for a sample.

    Raises:
        LossyConversionError: a value would change; its ``sample`` is the sample's number.
    """
    return _converted(form, conversion, lambda value: value, lambda value: value)


_Wrap = Callable[[Any], Any]


def _converted(form: Any, conversion: Conversion, wrap: _Wrap, unwrap: _Wrap) -> Any:
    """``wrap`` puts a value into the dicts that enclose it, and ``unwrap`` takes it out again."""
    if isinstance(form, dict):
        return {
            name: _inside(inner, name, conversion, wrap, unwrap) for name, inner in form.items()
        }
    if isinstance(form, torch.Tensor | Ragged) and not _looks_at_rows(conversion, form):
        flat = form.flat if isinstance(form, Ragged) else form
        try:
            narrow = unwrap(conversion.batch(wrap(flat)).batch)
            return Ragged(narrow, form.lengths) if isinstance(form, Ragged) else narrow
        except LossyConversionError:
            if not isinstance(form, Ragged):
                raise
            # Row by row below, to find which one it is.
    rows = []
    for number, row in enumerate(_rows(form)):
        try:
            rows.append(unwrap(conversion.sample(wrap(row)).batch))
        except LossyConversionError as error:
            error.sample = number
            raise
    return stacked(rows)


def _looks_at_rows(conversion: Conversion, form: torch.Tensor | Ragged) -> bool:
    """Whether a rule may pack along a row, and the rows must be packed one by one."""
    packs = any(isinstance(form, Bits) for form in conversion.forms)
    return packs and (isinstance(form, Ragged) or form.ndim == 1)


def _rows(form: Any) -> list[Any]:
    return form.rows() if isinstance(form, Ragged) else list(form)


def _inside(form: Any, name: str, conversion: Conversion, wrap: _Wrap, unwrap: _Wrap) -> Any:
    return _converted(
        form, conversion, lambda value: wrap({name: value}), lambda value: unwrap(value)[name]
    )


def noted(error: LossyConversionError, indices: Sequence[int]) -> None:
    """Add a note that names the sample's index in the dataset."""
    if error.sample is not None and error.sample < len(indices):
        add_note(error, f"sample {error.sample} of the batch has index {indices[error.sample]}")
