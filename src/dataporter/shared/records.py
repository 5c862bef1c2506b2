"""Records: stores objects as columns of bytes, which grow as objects arrive, and reads them back.

Records of one shape become one column per field. A column is as narrow as its values allow, and
holds pickles if its values have several types. Records of several shapes become one column of
pickled records. If a late value or record does not fit, the values stored so far become pickles.
"""

from __future__ import annotations

import pickle
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import Any

import numpy as np

from dataporter.errors import ConfigurationError
from dataporter.shared.block import TOKEN_SIZE, Writer
from dataporter.shared.pickling import dumps

__all__ = ["Records", "read_records"]

# Objects that are processed together, and about how many bytes of them at most.
_CHUNK = 1024
_CHUNK_BYTES = 1 << 20

# Bytes that are allocated, and freed, together while columns grow and are written.
_PIECE = 1 << 20

# Wider records, such as embeddings, are read faster as one pickle.
_MOST_FIELDS = 64

_ALIGNMENT = 8
_FOOTER = struct.Struct("=QQ")


@dataclass(frozen=True, slots=True)
class Column:
    """Where a column is in the block.

    Attributes:
        kind: the ``struct`` format of its numbers; or "text" or "pickle".
        start: of its numbers; for text and pickles, of the ends of its values in ``blob``.
        blob: the range of its values' bytes.
        ends: the ``struct`` format of the ends.
    """

    kind: str
    start: int
    blob: tuple[int, int] = (0, 0)
    ends: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the block holds: single values (``container`` is None), or records of these fields."""

    container: type | None
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    length: int


class Records:
    """All the objects of an iterable, as columns."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._container: type | None = None
        self._keys: tuple[str, ...] = ()
        self._fields = 0
        self._columns: list[_Numbers | _Blobs] = []
        self.length = 0
        stream, count = iter(objects), 1
        while chunk := list(islice(stream, count)):
            if not self.length:
                self._take_shape(chunk[0])
            self._add(chunk)
            # Large objects few at a time, since a whole chunk is held as objects.
            size = max(1, sum(column.size for column in self._columns))
            count = max(1, min(_CHUNK, 2 * count, _CHUNK_BYTES * self.length // size))

    def _take_shape(self, first: Any) -> None:
        if type(first) in (dict, tuple, list) and len(first) <= _MOST_FIELDS:
            self._container = type(first)
            self._fields = len(first)
            if type(first) is dict:
                self._keys = tuple(first)
        values = self._split([first])
        if values is None:  # keys that are no strings
            self._container, values = None, [[first]]
        self._columns = [_column_for(column[0]) for column in values]

    def _split(self, chunk: list[Any]) -> list[Sequence[Any]] | None:
        """The values by column, or None if not all objects are records of the shape."""
        if self._container is None:
            return [chunk]
        if set(map(type, chunk)) != {self._container}:
            return None
        if self._container is not dict:
            return list(zip(*chunk)) if set(map(len, chunk)) == {self._fields} else None
        # Types first: 1, 1.0 and True are equal as keys, but not the same to a reader.
        if not set(map(type, chain.from_iterable(chunk))) <= {str}:
            return None
        if set(map(tuple, chunk)) != {self._keys}:
            return None
        return list(zip(*map(dict.values, chunk)))

    def _add(self, chunk: list[Any]) -> None:
        values = self._split(chunk)
        if values is None:
            self._columns = [_pickles_of(self._drain())]
            self._container, values = None, [chunk]
        for number, column in enumerate(values):
            if not self._columns[number].extend(column, self.length):
                self._columns[number] = _pickles_of(self._columns[number].drain())
                self._columns[number].extend(column, self.length)
        self.length += len(chunk)

    def _drain(self) -> Iterator[Any]:
        if self._container is None:
            return self._columns[0].drain()
        if not self._columns:
            return iter([self._container()] * self.length)
        rows = zip(*(column.drain() for column in self._columns))
        if self._container is dict:
            return (dict(zip(self._keys, row)) for row in rows)
        return map(self._container, rows)

    def plan(self) -> tuple[int, Callable[[Writer], None]]:
        """The size of the columns in bytes, and a function that writes and frees them."""
        at, planned = TOKEN_SIZE, []
        for column in self._columns:
            described, at = column.planned(at)
            planned.append(described)
        layout = pickle.dumps(Layout(self._container, self._keys, tuple(planned), self.length))
        footer = layout + _FOOTER.pack(at, len(layout))

        def write(file: Writer) -> None:
            for column in self._columns:
                column.write(file)
            file.write(footer)

        return at - TOKEN_SIZE + len(footer), write


def read_records(memory: memoryview) -> tuple[Callable[[int], Any], int]:
    """A function that makes the object at an index, and the number of objects."""
    start, size = _FOOTER.unpack(memory[-_FOOTER.size :])
    layout: Layout = pickle.loads(memory[start : start + size])
    readers = [_column_reader(memory, column, layout.length) for column in layout.columns]
    if layout.container is None:
        return (readers[0] if readers else _nothing), layout.length
    if layout.container is dict:
        # Interned, as the keys in a program are, so that a look-up compares no text.
        fields = list(zip(map(sys.intern, layout.keys), readers))
        return (lambda index: {key: read(index) for key, read in fields}), layout.length
    if layout.container is tuple:
        return (lambda index: tuple([read(index) for read in readers])), layout.length
    return (lambda index: [read(index) for read in readers]), layout.length


def _column_reader(memory: memoryview, column: Column, length: int) -> Callable[[int], Any]:
    if column.kind not in ("text", "pickle"):
        return _cast(memory, column.start, column.kind, length).__getitem__
    ends = _cast(memory, column.start, column.ends, length + 1)
    blob = memory[slice(*column.blob)]
    loads = pickle.loads
    if column.kind == "text":
        return lambda index: str(blob[ends[index] : ends[index + 1]], "utf-8", "surrogatepass")
    return lambda index: loads(blob[ends[index] : ends[index + 1]])


def _cast(memory: memoryview, start: int, kind: Any, length: int) -> memoryview[Any]:
    return memory[start : start + length * struct.calcsize(kind)].cast(kind)


def _nothing(index: int) -> Any:
    raise IndexError(index)


class _Pieces:
    """Bytes that are appended at the end and freed from the beginning."""

    def __init__(self) -> None:
        self._pieces: deque[bytearray] = deque()
        self.size = 0

    def append(self, data: Any) -> None:
        if not self._pieces or len(self._pieces[-1]) >= _PIECE:
            self._pieces.append(bytearray())
        before = len(self._pieces[-1])
        self._pieces[-1] += data
        self.size += len(self._pieces[-1]) - before

    def drain(self) -> Iterator[bytearray]:
        while self._pieces:
            yield self._pieces.popleft()


class _Numbers:
    """Numbers of one type, in the narrowest format that holds them all."""

    def __init__(self, type_: type) -> None:
        self._type = type_
        self.kind = {int: "b", float: "d", bool: "?"}[type_]
        self._pieces = _Pieces()

    @property
    def size(self) -> int:
        return self._pieces.size

    def extend(self, values: Sequence[Any], first: int) -> bool:
        """Add values from index ``first`` on; return False, and add none, if one does not fit."""
        if set(map(type, values)) != {self._type}:
            return False
        if self._type is int:
            kind = _kind_for(min(values), max(values))
            if kind is None:
                return False
            self._widen(kind)
        # array has no type code for booleans; as bytes they have the format "?".
        self._pieces.append(bytes(values) if self.kind == "?" else array(self.kind, values))
        return True

    def _widen(self, kind: str) -> None:
        if struct.calcsize(kind) > struct.calcsize(self.kind):
            narrow, self._pieces = self.drain(), _Pieces()
            self.kind = kind
            while chunk := list(islice(narrow, _CHUNK)):
                self._pieces.append(array(kind, chunk))

    def drain(self) -> Iterator[Any]:
        """Yield the values and free them."""
        kind: Any = self.kind
        pieces = (memoryview(piece).cast(kind) for piece in self._pieces.drain())
        return chain.from_iterable(pieces)

    def planned(self, at: int) -> tuple[Column, int]:
        """Its column if it starts at ``at`` in the block, and where it ends."""
        return Column(self.kind, at), _aligned(at + self.size)

    def write(self, file: Writer) -> None:
        """Write it as planned, and free it."""
        size = self.size
        for piece in self._pieces.drain():
            file.write(piece)
        _pad(file, size)


class _Blobs:
    """Strings, or any objects as pickles: the bytes of all values, and the length of each."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lengths = _Numbers(int)
        self._count = 0
        self._pieces = _Pieces()

    @property
    def size(self) -> int:
        return self._pieces.size + self._lengths.size

    def extend(self, values: Sequence[Any], first: int) -> bool:
        """Add values from index ``first`` on; return False, and add none, if one does not fit.

        Raises:
            ConfigurationError: a value cannot be pickled.
        """
        if self._kind == "text":
            if set(map(type, values)) != {str}:
                return False
            encoded = [value.encode("utf-8", "surrogatepass") for value in values]
        else:
            encoded = [_pickled(value, first + number) for number, value in enumerate(values)]
        # In one piece, so that no value crosses the end of a piece.
        self._pieces.append(b"".join(encoded))
        self._lengths.extend(list(map(len, encoded)), first)
        self._count += len(encoded)
        return True

    def drain(self) -> Iterator[Any]:
        """Yield the values and free them."""
        pieces, piece, at = self._pieces.drain(), memoryview(b""), 0
        for index, length in enumerate(self._lengths.drain()):
            if length and at == len(piece):
                piece, at = memoryview(next(pieces)), 0
            data, at = piece[at : at + length], at + length
            yield (
                str(data, "utf-8", "surrogatepass")
                if self._kind == "text"
                else _loaded(data, index)
            )

    def planned(self, at: int) -> tuple[Column, int]:
        """Its column if it starts at ``at`` in the block, and where it ends."""
        ends = next(kind for kind in "HIQ" if self._pieces.size < 256 ** struct.calcsize(kind))
        start = _aligned(at + (self._count + 1) * struct.calcsize(ends))
        stop = start + self._pieces.size
        self._ends = ends
        return Column(self._kind, at, (start, stop), ends), _aligned(stop)

    def write(self, file: Writer) -> None:
        """Write it as planned, and free it."""
        ends = accumulate(self._lengths.drain(), initial=0)
        while chunk := list(islice(ends, _CHUNK)):
            file.write(array(self._ends, chunk))
        _pad(file, (self._count + 1) * struct.calcsize(self._ends))
        size = self._pieces.size
        for piece in self._pieces.drain():
            file.write(piece)
        _pad(file, size)


def _column_for(value: Any) -> _Numbers | _Blobs:
    if type(value) in (int, float, bool):
        return _Numbers(type(value))
    return _Blobs("text" if type(value) is str else "pickle")


def _pickles_of(values: Iterator[Any]) -> _Blobs:
    pickles, count = _Blobs("pickle"), 0
    while chunk := list(islice(values, _CHUNK)):
        pickles.extend(chunk, count)
        count += len(chunk)
    return pickles


def _pickled(value: Any, index: int) -> bytes:
    try:
        return dumps(value)
    except Exception as error:
        raise ConfigurationError(
            f"object {index} cannot be shared, since it, or an object in it, cannot be pickled: a "
            f"{type(value).__name__} raised {error!r}. A SharedSequence holds objects that "
            "pickle.dumps accepts; share the means to make the object (a path, a name) instead"
        ) from error


def _loaded(data: memoryview, index: int) -> Any:
    try:
        return pickle.loads(data)
    except Exception as error:
        raise ConfigurationError(
            f"object {index} cannot be shared, since it, or an object in it, was pickled, but "
            f"pickle.loads raised {error!r}. A SharedSequence holds objects that pickle.loads "
            "restores; share the means to make the object (a path, a name) instead"
        ) from error


def _kind_for(low: int, high: int) -> str | None:
    for kind, dtype in (("b", np.int8), ("h", np.int16), ("i", np.int32), ("q", np.int64)):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return kind
    return None


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT


def _pad(file: Writer, size: int) -> None:
    file.write(bytes(-size % _ALIGNMENT))
