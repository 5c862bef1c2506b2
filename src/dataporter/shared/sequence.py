"""SharedSequence: any objects, held once for all processes that read them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import index as as_integer
from typing import Any, TypeVar, overload

from dataporter.errors import ConfigurationError
from dataporter.shared.block import Block, Handle, create_block, find_block
from dataporter.shared.records import Records, read_records

__all__ = ["SharedSequence"]

T = TypeVar("T")


class SharedSequence(Sequence[T]):
    """A read-only list that all processes share, and that does not grow when it is read.

    A list of a million paths, dicts or annotations in a dataset grows in every worker: each access
    counts a reference, which writes to memory that the worker shares with its parent, and thereby
    copies it (https://github.com/pytorch/pytorch/issues/13246). A ``SharedSequence`` holds the
    objects as columns of bytes in one read-only block of memory; each access makes a new object.

    Records (dicts with the same string keys in the same order, or tuples or lists of one length)
    with up to 64 fields become one column per field: integers of 1 to 8 bytes, floats, booleans,
    strings, and pickles for all other types and for fields of several types. All other objects are
    pickled whole. A tensor takes the bytes of its values, also if it is a view of a larger one. An
    object that is read equals the one that was given and has the same types, but it is a new
    object: changing it does not change the sequence. An object that is in several records, or in
    several fields of one, is read as several objects.

    It is indexed and sliced like a list. A slice is a view of the same block. Comparison is element
    by element, also with lists and tuples; as always, a NaN equals nothing.

    Forked processes inherit the block. A pickle holds none of the content, only where to find the
    block: spawned workers, and other processes on this machine that unpickle it, map the same
    memory, as long as the process that made the pickle or the one that made the block holds the
    sequence. The block has no name and disappears with the last process that has it, however that
    ends. On macOS and Windows, where this is untested, forked processes share the block, and a
    pickle carries its bytes, so that each spawned worker has one copy, which does not grow either.

    Reading from several threads at once is safe. A ``SharedSequence`` can itself be a dataset.

    Args:
        objects: any iterable of objects that can be pickled; a generator is consumed lazily, so
            that about a thousand of its objects exist at a time.

    Raises:
        ConfigurationError: ``objects`` is not iterable, or holds an object that cannot be pickled;
            or, at unpickling, no process that the pickle names has the block any more.

    Example:
        >>> from dataporter import SharedSequence
        >>> samples = SharedSequence({"path": f"{i}.jpg", "label": i % 3} for i in range(1000))
        >>> samples[-1]
        {'path': '999.jpg', 'label': 0}
        >>> samples[:2] == [{"path": "0.jpg", "label": 0}, {"path": "1.jpg", "label": 1}]
        True
    """

    __slots__ = ("__weakref__", "_block", "_read", "_rows")

    _block: Block
    _rows: range
    _read: Callable[[int], T]

    def __init__(self, objects: Iterable[T]) -> None:
        if not isinstance(objects, Iterable):
            raise ConfigurationError(
                f"objects={objects!r} is a {type(objects).__name__}, which is not iterable: pass a "
                "list, a generator or another iterable of the objects to hold"
            )
        size, write = Records(objects).plan()
        self._block = create_block(size, write)
        self._read, length = _reader(self._block)
        self._rows = range(length)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole shared block, which a slice shares with its source."""
        return len(self._block.memory)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> SharedSequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | SharedSequence[T]:
        if type(index) is slice:
            return _view(self._block, self._read, self._rows[index])
        try:
            row = self._rows[index]
        except (IndexError, TypeError) as error:
            raise self._wrong(index, error) from None
        return self._read(row)

    def __getitems__(self, indices: Iterable[int]) -> list[T]:
        """The objects of a batch, for loaders that read batches."""
        return [self[index] for index in indices]

    def __iter__(self) -> Iterator[T]:
        return map(self._read, self._rows)

    def __reversed__(self) -> Iterator[T]:
        return map(self._read, reversed(self._rows))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SharedSequence | list | tuple):
            return NotImplemented
        if len(self) != len(other):
            return False
        here = (self._block, self._rows)
        if isinstance(other, SharedSequence) and here == (other._block, other._rows):
            return True
        return all(mine == theirs for mine, theirs in zip(self, other))

    # It equals lists, which are not hashable.
    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> SharedSequence[T]:
        return self

    def __deepcopy__(self, memo: object) -> SharedSequence[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._block.handle(), self._rows)

    def __repr__(self) -> str:
        return f"<SharedSequence of {len(self):,} objects, {self.nbytes / 1e6:,.1f} MB shared>"

    def _wrong(self, index: Any, error: Exception) -> Exception:
        if isinstance(error, TypeError):
            return TypeError(
                f"a SharedSequence is indexed by integers and slices, not by {index!r} (a "
                f"{type(index).__name__})"
            )
        if not len(self):
            return IndexError(f"index {as_integer(index)}: this SharedSequence is empty")
        return IndexError(
            f"index {as_integer(index)} is out of range for a SharedSequence of {len(self):,} "
            f"objects; expected {-len(self)} to {len(self) - 1}"
        )


# The readers of each block in this process; views of a block share them.
_READERS: weakref.WeakKeyDictionary[Block, tuple[Callable[[int], Any], int]] = (
    weakref.WeakKeyDictionary()
)


def _reader(block: Block) -> tuple[Callable[[int], Any], int]:
    reader = _READERS.get(block)
    if reader is None:
        reader = _READERS[block] = read_records(block.memory)
    return reader


def _view(block: Block, read: Callable[[int], T], rows: range) -> SharedSequence[T]:
    view: SharedSequence[T] = SharedSequence.__new__(SharedSequence)
    view._block, view._read, view._rows = block, read, rows
    return view


def _restored(handle: Handle, rows: range) -> SharedSequence[Any]:
    block = find_block(handle)
    return _view(block, _reader(block)[0], rows)
