"""Nodes: an Arrow column as a tree of readers, each of which reads many elements at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from dataporter.errors import UnsupportedDatasetError
from dataporter.hf.forms import rows_of, stacked
from dataporter.hf.images import scaled, tensor_of
from dataporter.hf.memory import Memory, Validity, Where
from dataporter.hf.ragged import Ragged

__all__ = [
    "Bits",
    "Blocks",
    "Extents",
    "Images",
    "Lists",
    "Node",
    "Numbers",
    "Objects",
    "Structs",
]

# Lists whose lengths are all checked beforehand: 10 ms, and 40 MB of offsets.
_MOST_LOOKED_AT = 10_000_000


class Node(Protocol):
    """Reads elements of a column, or of a column nested in it."""

    def read(self, where: Where) -> Any:
        """A tensor, a ``Ragged``, a dict of these, or a list, with one row per element."""


class Plain(Node, Protocol):
    """A node of contiguous numbers."""

    @property
    def has_nulls(self) -> bool: ...

    def runs(self, where: Where, shape: tuple[int, ...]) -> torch.Tensor:
        """A run of numbers of this shape from each element on."""

    def ragged(self, where: Where, lengths: NDArray[np.int64]) -> Ragged:
        """As many numbers from each element on as ``lengths`` says."""

    def even(self, firsts: NDArray[np.int64], length: int) -> Callable[[Where], torch.Tensor]:
        """A function that reads contiguous rows of one length, in each chunk from ``firsts`` on."""


def _without_nulls(valid: NDArray[np.bool_] | None, where: Where, node: Callable[..., Any]) -> Any:
    """The elements that ``node`` reads, with None for each null."""
    if valid is None:
        return node(where)
    there = where.only(valid)
    found = iter(rows_of(node(there), len(there.offsets)))
    return [next(found) if is_there else None for is_there in valid.tolist()]


class Numbers:
    """Numbers of one dtype.

    Attributes:
        single: reads one number per element, if none is null.
    """

    def __init__(self, arrays: Sequence[Any], dtype: torch.dtype) -> None:
        self._dtype, self._width = dtype, dtype.itemsize
        self._validity = Validity(arrays)
        self._memory = Memory(
            [array.buffers()[1] for array in arrays],
            [array.offset * dtype.itemsize for array in arrays],
        )
        nothing = np.zeros(len(arrays), dtype=np.int64)
        self.single = self._memory.strided(nothing, self._width, (), dtype)

    @property
    def has_nulls(self) -> bool:
        return self._validity.has_nulls

    def read(self, where: Where) -> Any:
        if not self._validity.has_nulls:
            return self.single(where)
        return _without_nulls(self._validity.mask(where), where, self.single)

    def runs(self, where: Where, shape: tuple[int, ...]) -> torch.Tensor:
        return self._memory.read(where, self._width, shape, self._dtype)

    def ragged(self, where: Where, lengths: NDArray[np.int64]) -> Ragged:
        return self._memory.ragged(where, lengths, self._dtype)

    def even(self, firsts: NDArray[np.int64], length: int) -> Callable[[Where], torch.Tensor]:
        width = self._width
        return self._memory.strided(firsts * width, length * width, (length,), self._dtype)


class Bits:
    """Booleans, eight to a byte."""

    def __init__(self, arrays: Sequence[Any]) -> None:
        self._validity = Validity(arrays)
        self._memory = Memory([array.buffers()[1] for array in arrays], [0] * len(arrays))
        self._skipped = np.array([array.offset for array in arrays], dtype=np.int64)

    @property
    def has_nulls(self) -> bool:
        return self._validity.has_nulls

    def read(self, where: Where) -> Any:
        return _without_nulls(self._validity.mask(where), where, self._found)

    def even(self, firsts: NDArray[np.int64], length: int) -> Callable[[Where], torch.Tensor]:
        def read(where: Where) -> torch.Tensor:
            skipped = 0 if not len(firsts) else firsts[0 if where.chunks is None else where.chunks]
            return self.runs(where.at(where.offsets * length + skipped), (length,))

        return read

    def runs(self, where: Where, shape: tuple[int, ...]) -> torch.Tensor:
        lengths = np.full(len(where.offsets), prod(shape), dtype=np.int64)
        found = self._found(where.stretched(where.offsets, lengths))
        return found.view(len(where.offsets), *shape)

    def ragged(self, where: Where, lengths: NDArray[np.int64]) -> Ragged:
        return Ragged(self._found(where.stretched(where.offsets, lengths)), lengths)

    def _found(self, where: Where) -> torch.Tensor:
        return torch.from_numpy(self._memory.bits(where, self._skipped))


class Objects:
    """Python objects, each given by Arrow or by the feature's ``decode``."""

    def __init__(self, arrays: Sequence[Any], decode: Callable[[Any], Any] | None = None) -> None:
        self._arrays, self._decode = arrays, decode

    def read(self, where: Where) -> list[Any]:
        arrays, offsets = self._arrays, where.offsets.tolist()
        if where.chunks is None:
            found = [arrays[0][offset].as_py() for offset in offsets]
        else:
            chunks = where.chunks.tolist()
            found = [arrays[chunk][offset].as_py() for chunk, offset in zip(chunks, offsets)]
        if self._decode is None:
            return found
        return [None if value is None else self._decode(value) for value in found]


class Images:
    """Reads a column of images.

    Args:
        stored: the files' bytes or paths.
        decode: makes a Pillow image of one.
        mode: the mode of Pillow to convert to, or None to keep each image's own.
        dtype: a float to scale to, or None to keep Pillow's dtype.
    """

    def __init__(
        self,
        stored: Objects,
        decode: Callable[[Any], Any],
        mode: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self._stored, self._decode, self._mode, self._dtype = stored, decode, mode, dtype

    def read(self, where: Where) -> Any:
        if not len(where.offsets):
            return torch.empty((0, 0, 0, 0), dtype=self._dtype or torch.uint8)
        form = stacked(
            [
                None if value is None else tensor_of(self._decode(value), self._mode)
                for value in self._stored.read(where)
            ]
        )
        if self._dtype is None:
            return form
        if isinstance(form, torch.Tensor):
            return scaled(form, self._dtype)
        return [None if image is None else scaled(image, self._dtype) for image in form]


class Structs:
    """Dicts of named elements."""

    def __init__(self, arrays: Sequence[Any], inner: dict[str, Node]) -> None:
        self._validity, self._inner = Validity(arrays), inner

    def read(self, where: Where) -> Any:
        return _without_nulls(
            self._validity.mask(where),
            where,
            lambda there: {name: node.read(there) for name, node in self._inner.items()},
        )


class Extents:
    """The starts and lengths of a column's lists, in elements of their content.

    Attributes:
        validity: which lists are null.
        fixed: the length that the type gives, or None.
        length: of every list, if all have one length and are contiguous in each chunk; else None.
        firsts: with a length, the start of the first list of each chunk.
    """

    def __init__(self, arrays: Sequence[Any], kind: Any) -> None:
        self.validity = Validity(arrays)
        counts = np.array([len(array) for array in arrays], dtype=np.int64)
        self.fixed = kind.list_size if pa.types.is_fixed_size_list(kind) else None
        self.length: int | None = self.fixed
        if self.fixed is not None:
            self.firsts = np.array([array.offset * kind.list_size for array in arrays], np.int64)
            return
        dtype = torch.int64 if pa.types.is_large_list(kind) else torch.int32
        width = dtype.itemsize
        offsets = Memory(
            [array.buffers()[1] for array in arrays], [array.offset * width for array in arrays]
        )
        self._offsets = offsets.strided(np.zeros_like(counts), width, (2,), dtype)
        self.firsts = counts
        if len(counts) and not self.validity.has_nulls and counts.sum() <= _MOST_LOOKED_AT:
            self._find_even(counts)

    def spans(self, where: Where) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The start and the length of each list."""
        if self.length is None:
            offsets = self._offsets(where).numpy().astype(np.int64)
            return offsets[:, 0], offsets[:, 1] - offsets[:, 0]
        starts = where.offsets * self.length
        if len(starts):
            starts += self.firsts[0 if where.chunks is None else where.chunks]
        return starts, np.full(len(starts), self.length, dtype=np.int64)

    def _find_even(self, counts: NDArray[np.int64]) -> None:
        """Check once whether all lists have one length, so that batches need no check."""
        # Nested lists may have chunks without any.
        filled = np.flatnonzero(counts)
        if not len(filled):
            return
        several = filled if len(counts) > 1 else None
        first, length = self.spans(Where(several, np.zeros_like(filled)))
        last, _ = self.spans(Where(several, counts[filled] - 1))
        # Most columns that are not even fail at the ends of their chunks already.
        if not (last - first == length[0] * (counts[filled] - 1)).all():
            return
        for chunk in filled.tolist():
            count = int(counts[chunk])
            chunks = None if several is None else np.full(count, chunk)
            _, lengths = self.spans(Where(chunks, np.arange(count)))
            if not (lengths == length[0]).all():
                return
        firsts = np.zeros_like(counts)
        firsts[filled] = first
        self.length, self.firsts = int(length[0]), firsts


class Blocks:
    """Arrays of one shape: nested lists, whose lengths the feature gives."""

    def __init__(
        self, levels: Sequence[Extents], shape: tuple[int, ...], content: Plain, path: str
    ) -> None:
        self._levels, self._shape, self._content, self._path = levels, shape, content, path

    def read(self, where: Where) -> Any:
        validity = self._levels[0].validity
        return _without_nulls(validity.mask(where), where, self._found)

    def _found(self, where: Where) -> torch.Tensor:
        starts, lengths = where.offsets, np.ones(len(where.offsets), dtype=np.int64)
        size, count = prod(self._shape), 1
        for level, extent in zip(self._levels if size else (), self._shape):
            ends = starts + lengths - 1
            starts, _ = level.spans(where.at(starts))
            last_starts, last = level.spans(where.at(ends))
            lengths = last_starts + last - starts
            count *= extent
            if (wrong := lengths != count).any():
                raise UnsupportedDatasetError(
                    f"path {self._path!r}: an array has {lengths[wrong][0]} elements, but its "
                    f"feature has shape {self._shape} and {count} elements there: correct the "
                    "feature or the data"
                )
        return self._content.runs(where.at(starts), self._shape)


class Lists:
    """Lists of the elements that ``content`` reads.

    Args:
        extents: their starts and lengths.
        content: reads their elements.
        plain: the same node, if it reads numbers without nulls; else None.
        has_shape: whether all elements have one shape.
    """

    def __init__(
        self, extents: Extents, content: Node, plain: Plain | None, *, has_shape: bool
    ) -> None:
        self._extents, self._content, self._plain = extents, content, plain
        self._has_shape = has_shape
        self._even = None
        if plain is not None and extents.length is not None:
            self._even = plain.even(extents.firsts, extents.length)
        self._has_nulls = extents.validity.has_nulls

    def read(self, where: Where) -> Any:
        if self._even is not None and not self._has_nulls and len(where.offsets):
            return self._even(where)
        return _without_nulls(self._extents.validity.mask(where), where, self._found)

    def _found(self, where: Where) -> Any:
        if not len(where.offsets):
            return self._without_any(where)
        if self._even is not None:
            return self._even(where)
        starts, lengths = self._extents.spans(where)
        length = int(lengths[0])
        is_even = bool((lengths == length).all())
        if self._plain is not None:
            if is_even:
                return self._plain.runs(where.at(starts), (length,))
            return self._plain.ragged(where.at(starts), lengths)
        content = self._content.read(where.stretched(starts, lengths))
        if not isinstance(content, torch.Tensor):
            return stacked(self._regrouped(content, lengths))
        if is_even:
            return content.view(len(lengths), length, *content.shape[1:])
        ragged = Ragged(content, lengths)
        if self._has_shape or lengths.all():
            return ragged
        nothing = self._nothing()
        return [row if len(row) else nothing for row in ragged.rows()]

    def _without_any(self, where: Where) -> Any:
        """No lists: an empty tensor with the shape and dtype of an empty list's content."""
        content = self._content.read(where)
        if not isinstance(content, torch.Tensor):
            return []
        return content.view(0, self._extents.fixed or 0, *content.shape[1:])

    def _nothing(self) -> Any:
        """An empty list, as it is when read alone."""
        content = self._content.read(Where(None, np.empty(0, dtype=np.int64)))
        return content if isinstance(content, torch.Tensor) else []

    def _regrouped(self, content: Any, lengths: NDArray[np.int64]) -> list[Any]:
        ends = lengths.cumsum().tolist()
        rows, nothing = rows_of(content, ends[-1]), self._nothing()
        return [
            stacked(rows[start:end]) if start < end else nothing
            for start, end in zip([0, *ends], ends)
        ]
