"""Joined: columns that were read from several datasets become those of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.hf.forms import rows_of
from dataporter.hf.ragged import Ragged, bits_of

__all__ = ["UNLIKE", "Piece", "joined"]

# What pieces become that differ in kind: their samples have to be looked at one by one.
UNLIKE: Any = object()


class Piece(NamedTuple):
    """Rows of a column, and their places in the batch."""

    form: Any
    places: NDArray[np.int64]


def joined(pieces: Sequence[Piece], size: int) -> Any:
    """The column of which these are pieces, or ``UNLIKE``.

    Args:
        pieces: as a table reads them; together they have each place once.
        size: number of places.
    """
    forms = [piece.form for piece in pieces]
    first = forms[0]
    if isinstance(first, dict):
        if not all(isinstance(form, dict) and form.keys() == first.keys() for form in forms):
            return UNLIKE
        columns = {
            name: joined([Piece(form[name], places) for form, places in pieces], size)
            for name in first
        }
        return UNLIKE if any(each is UNLIKE for each in columns.values()) else columns
    if all(isinstance(form, torch.Tensor) for form in forms):
        return _of_tensors(pieces, size)
    if all(isinstance(form, torch.Tensor | Ragged) for form in forms):
        return _of_lists(pieces, size)
    values: list[Any] = [None] * size
    for form, places in pieces:
        for place, value in zip(places.tolist(), rows_of(form, len(places))):
            values[place] = value
    kinds = set(map(type, values))
    if kinds == {type(None), torch.Tensor}:
        # With a null among them no tensor holds them, whatever their shapes are.
        dtypes = {value.dtype for value in values if value is not None}
        return values if len(dtypes) == 1 else UNLIKE
    # Rows of one kind that no tensor holds, such as texts. Of others, a tensor may hold all.
    return values if len(kinds) == 1 and kinds.isdisjoint({torch.Tensor, dict}) else UNLIKE


def _of_tensors(pieces: Sequence[Piece], size: int) -> Any:
    first = pieces[0].form
    if any(form.dtype is not first.dtype for form, _ in pieces):
        return UNLIKE
    if any(form.shape[1:] != first.shape[1:] for form, _ in pieces):
        return _of_lists(pieces, size)
    rows = torch.empty((size, *first.shape[1:]), dtype=first.dtype, device="cpu")
    into = bits_of(rows).numpy()
    for form, places in pieces:
        into[places] = bits_of(form).numpy()
    return rows


def _of_lists(pieces: Sequence[Piece], size: int) -> Any:
    """Rows that differ in their lengths: an even piece is ragged with one length."""
    rows = [(_ragged(form), places) for form, places in pieces]
    if len({None if one is None else (one.flat.dtype, one.flat.shape[1:]) for one, _ in rows}) > 1:
        return UNLIKE
    lengths, starts = np.empty(size, np.int64), np.empty(size, np.int64)
    flats, begin = [], 0
    for one, places in rows:
        if one is None:
            return UNLIKE
        flats.append(bits_of(one.joined()).numpy())
        lengths[places] = one.lengths
        starts[places] = begin + np.cumsum(one.lengths) - one.lengths
        begin += len(flats[-1])
    # Not torch.cat: a worker would make that in the slot of the batch, which it is no part of.
    flat = torch.from_numpy(np.concatenate(flats))
    first = rows[0][0]
    assert first is not None
    return Ragged(flat.view(first.flat.dtype), lengths, starts)


def _ragged(form: Any) -> Ragged | None:
    if isinstance(form, Ragged):
        return form
    if form.ndim < 2:
        return None
    lengths = np.full(form.shape[0], form.shape[1], dtype=np.int64)
    return Ragged(form.reshape(-1, *form.shape[2:]).contiguous(), lengths)
