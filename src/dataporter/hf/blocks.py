"""Blocks: the samples of a stream of plain tables, read from Arrow memory many rows at once.

``datasets`` yields a table row by row as Python objects, each through several generators. A stream
in which no function of the user runs can be read by blocks of rows instead, as a map-style dataset
is. The state is that of the stream at the start of the block, and the number of samples since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dataporter.hf.forms import rows_of, settled
from dataporter.hf.images import Decoding
from dataporter.hf.pipeline import sources_of
from dataporter.hf.schema import content_of, dtype_of_value, is_list_feature
from dataporter.hf.table import Table

__all__ = ["BLOCK", "Blocks", "has_blocks"]

# Rows of a block: reading them costs as much as several samples, and a resume may read them again.
_ROWS = 64
# The field that tells such a state from one of the stream itself.
BLOCK = "block"
_READ = "read"
# Steps that hand on whole tables, with an exact state after each.
_ON_TABLES = {
    "ArrowExamplesIterable",
    "SelectColumnsIterable",
    "VerticallyConcatenatedMultiSourcesExamplesIterable",
    "RepeatExamplesIterable",
    "TakeExamplesIterable",
    "SkipExamplesIterable",
}


def has_blocks(hf_iterable: Any, columns: Sequence[str] | None) -> bool:
    """Whether a stream consists of tables of numbers, texts, and lists of them."""
    features = hf_iterable.features
    if features is None or columns is None:
        return False
    kinds = {type(step).__name__ for step in sources_of(hf_iterable)}
    return kinds <= _ON_TABLES and all(_is_plain(features[name]) for name in columns)


def _is_plain(feature: Any) -> bool:
    """Whether a block gives the very values that the stream would yield one by one."""
    if isinstance(feature, Mapping):
        return all(map(_is_plain, feature.values()))
    if getattr(feature, "shape", None) is not None:
        return None not in feature.shape
    if is_list_feature(feature):
        return _is_plain(content_of(feature))
    return dtype_of_value(feature) is not None or getattr(feature, "dtype", None) == "string"


class Blocks(Iterator[Any]):
    """The samples of a stream, from a state on.

    Args:
        hf_iterable: a ``datasets.IterableDataset`` that :func:`has_blocks`.
        columns: to read.
        decoding: as in the wrapper.
        state: what :meth:`state_dict` returned; None starts at the first sample.
    """

    def __init__(
        self,
        hf_iterable: Any,
        columns: Sequence[str],
        decoding: Decoding,
        state: Mapping[str, Any] | None,
    ) -> None:
        state = state or {BLOCK: None, _READ: 0}
        self._features = hf_iterable.features
        self._columns = columns
        self._decoding = decoding
        self._tables = hf_iterable.with_format("arrow")
        self._tables.set_epoch(hf_iterable.epoch)
        self._start = self._next = state[BLOCK]
        if self._start is not None:
            self._tables.load_state_dict(self._start)
        self._iterator = self._tables.iter(batch_size=_ROWS)
        self._samples: list[Any] = []
        self._read = 0
        if state[_READ]:
            self._begin()
            self._read = state[_READ]

    def __next__(self) -> Any:
        while self._read >= len(self._samples):
            self._begin()
        self._read += 1
        return _owned(self._samples[self._read - 1])

    def state_dict(self) -> dict[str, Any]:
        """The state after the last sample."""
        return {BLOCK: self._start, _READ: self._read}

    def _begin(self) -> None:
        """Read the next block.

        Raises:
            StopIteration: there is none.
        """
        self._start, self._samples, self._read = self._next, [], 0
        table = next(self._iterator)
        self._next = self._tables.state_dict()
        reader = Table(table, self._features, self._columns, self._decoding)
        forms = reader.read(np.arange(len(table)))
        self._samples = rows_of(settled(forms), len(table))


def _owned(value: Any) -> Any:
    """A value without memory of the other rows, which would be kept, and sent, along with it."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _owned(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_owned(inner) for inner in value]
    return value
