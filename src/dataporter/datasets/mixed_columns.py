"""Mixed columns: a batch of a mixture whose sources are arrays, gathered source by source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.datasets.columns import Columns, columns_of
from dataporter.datasets.mixture_rows import MixtureRows

__all__ = ["MixedColumns", "mixed_columns_of"]

# NumPy has no bfloat16, and no floats of 8 bits, so rows are copied as bits.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """One column of all sources.

    Attributes:
        arrays: of each source, as bits where NumPy lacks the dtype.
        shape, dtype: of a row.
    """

    arrays: tuple[NDArray[Any], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def gathered(
        self, parts: Sequence[tuple[int, NDArray[np.int64]]], back: NDArray[np.int64]
    ) -> torch.Tensor:
        """The rows of a batch.

        Args:
            parts: of each source in the batch its number and the indices in it.
            back: for each place in the batch the place in the parts, one after the other.
        """
        # Allocated by torch: in a worker this is the slot that carries the batch.
        rows = torch.empty((len(back), *self.shape), dtype=self.dtype, device="cpu")
        into = _bits_of(rows)
        if len(parts) == 1:
            ((source, indices),) = parts
            _take(self.arrays[source], indices, into)
            return rows
        # Twice as fast as writing each source's rows to their places: those runs are too short.
        together, begin = np.empty(into.shape, into.dtype), 0
        for source, indices in parts:
            end = begin + len(indices)
            _take(self.arrays[source], indices, together[begin:end])
            begin = end
        together.take(back, axis=0, out=into, mode="clip")
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class MixedColumns:
    """Columns that all sources of a mixture have, alike in names, dtypes and shapes."""

    rows: MixtureRows
    container: type[list[Any]] | type[dict[str, Any]] | None
    columns: dict[str, _Column]
    subsets: tuple[NDArray[np.int64] | None, ...]

    def gather(self, indices: NDArray[np.int64]) -> Any:
        """The batch of these rows: what ``default_collate`` makes of the samples."""
        which = self.rows.which(indices)
        places, sizes = which.argsort(kind="stable"), np.bincount(which)
        back = np.empty(len(places), dtype=np.int64)
        back[places] = np.arange(len(places))
        parts, begin = [], 0
        for source, size in enumerate(sizes.tolist()):
            if size:
                within = indices[places[begin : begin + size]] - self.rows.offsets[source]
                subset = self.subsets[source]
                parts.append((source, within if subset is None else subset[within]))
                begin += size
        gathered = {name: each.gathered(parts, back) for name, each in self.columns.items()}
        if self.rows.source_key is not None:
            names = [source.name for source in self.rows.sources]
            return {**gathered, self.rows.source_key: [names[n] for n in which.tolist()]}
        if self.container is dict:
            return gathered
        found = list(gathered.values())
        return found if self.container is list else found[0]


def mixed_columns_of(rows: MixtureRows) -> MixedColumns | None:
    """The columns of a mixture; None if a source has none, or others than another source.

    The sources' transforms and converters are not looked at.
    """
    found = [columns_of(source.rows) for source in rows.sources]
    columns = [each for each in found if each is not None]
    first = columns[0] if columns else None
    if first is None or len(columns) < len(found):
        return None
    names = _names(first)
    if any(each.container is not first.container for each in columns):
        return None
    if any(set(_names(each)) != set(names) for each in columns):
        return None
    if rows.source_key is not None and (first.container is not dict or rows.source_key in names):
        return None
    joined = {}
    for name in names:
        arrays = [each.arrays[_names(each).index(name)] for each in columns]
        kinds = {(_dtype(array), tuple(array.shape[1:])) for array in arrays}
        if len(kinds) > 1:
            return None
        ((dtype, shape),) = kinds
        joined[name] = _Column(tuple(map(_bits_of, arrays)), shape, dtype)
    return MixedColumns(rows, first.container, joined, tuple(each.subset for each in columns))


def _names(columns: Columns) -> tuple[str, ...]:
    return columns.names or tuple(str(number) for number in range(len(columns.arrays)))


def _dtype(array: torch.Tensor | NDArray[Any]) -> torch.dtype:
    if isinstance(array, torch.Tensor):
        return array.dtype
    return torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype


def _bits_of(array: torch.Tensor | NDArray[Any]) -> NDArray[Any]:
    """The same memory as an array."""
    if not isinstance(array, torch.Tensor):
        return array
    try:
        return array.numpy()
    except TypeError:
        return array.view(_BITS[array.dtype.itemsize]).numpy()


def _take(array: NDArray[Any], indices: NDArray[np.int64], into: NDArray[Any]) -> None:
    if array.flags.c_contiguous and array.flags.aligned:
        # Without "clip" NumPy writes to a copy first, in case of an index error half-way.
        array.take(indices, axis=0, out=into, mode="clip")
    else:
        into[:] = array[indices]  # take() would copy all of such an array
