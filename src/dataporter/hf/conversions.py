"""Conversions: the rules of `KeyBasedDtypeConverter`, applied to columns before collation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from dataporter.convert import Conversion, KeyBasedDtypeConverter, Rules, converter_for
from dataporter.convert.forms import Bits
from dataporter.convert.missed import fits, meant, report_missed
from dataporter.convert.paths import Pattern, shown
from dataporter.errors import ConfigurationError, LossyConversionError, add_note
from dataporter.hf.forms import stacked
from dataporter.hf.ragged import Ragged

__all__ = ["conversion_for", "converted", "noted"]

_PATHS_SHOWN = 20


def conversion_for(
    rules: KeyBasedDtypeConverter | Rules | None,
    columns: Sequence[str] | None,
    features: Mapping[str, Any] | None = None,
    masks: Iterable[str] = (),
) -> Conversion | None:
    """The conversion that ``dtype_conversions=`` describes, with the paths of a sample.

    Warns of rules that can match nothing, or refuses them if the converter is strict.

    Args:
        columns: of a sample; None: unknown.
        features: of the columns; None: unknown.
        masks: of padded columns.

    Raises:
        ConfigurationError: a rule is invalid, names a missing column, or matches nothing.
    """
    converter = converter_for(rules)
    if converter is None:
        return None
    conversion = converter.conversion
    if columns is None:
        return conversion
    known = [*columns, *masks]
    there = None if features is None else [*_leaves_in(features, columns), *((m,) for m in masks)]
    for pattern in conversion.patterns:
        first = pattern[0] if pattern else None
        if isinstance(first, str | int) and first not in known:
            close = meant(pattern, [(name,) for name in known] if there is None else there)
            hint = "" if close is None else f", such as {close!r}"
            raise ConfigurationError(
                f"dtype_conversions names {shown(pattern)!r}, but the columns are {known}: "
                f"correct the path{hint}, or add the column to columns="
            )
    missed = [
        pattern
        for pattern in conversion.patterns
        if there is not None and not any(fits(pattern, path) for path in there)
    ]
    if missed:
        assert there is not None
        listed = ", ".join(repr(shown(path)) for path in there[:_PATHS_SHOWN]) or "no numbers"
        where = "number of the dataset's features (dtype_conversions=)"
        report_missed(missed, where, listed, there, strict=converter.strict)
    return conversion


def _leaves_in(features: Mapping[str, Any], columns: Sequence[str]) -> list[Pattern]:
    # Imported late: it needs pyarrow, which is installed with datasets.
    from dataporter.hf.leaves import leaves_in

    return leaves_in(features, columns)


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
        flat = form.joined() if isinstance(form, Ragged) else form
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
