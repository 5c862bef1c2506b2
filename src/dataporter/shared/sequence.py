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
    """A list that all processes hold together, once, and that no access makes grow.

    A list of a million paths, dicts or annotations in a dataset grows in every worker: each access
    counts a reference, and so writes to, and copies, memory that was shared when the worker was
    forked (https://github.com/pytorch/pytorch/issues/13246). Here the objects are columns of bytes
    in one read-only block of memory, and are made anew at each access.

    Records, that is dicts with the same string keys in the same order, or tuples or lists of one
    length, with up to 64 fields, become a column for each field: integers in 1 to 8 bytes, floats,
    truth values, strings, and pickles for everything else and for fields of several types. All
    other objects are pickled whole. What is read equals what was given and is of the same types;
    it is a new object each time, so changing it changes nothing here. An object that is in several
    records, or in several fields of one, is several objects afterwards.

    It is indexed and sliced as a list is. A slice is a view of the same block. Comparing goes
    element by element, also with lists and tuples; as always, a NaN equals nothing.

    Forked processes inherit the block. A pickle holds none of the content, only where to find the
    block: spawned workers, and whoever else unpickles it on this machine, map the same memory, as
    long as the process that made the pickle or the one that made the block holds the sequence. The
    block has no name and is gone when the last process that has it is, however that ends. On macOS
    and Windows, where this has not been tried, forked processes share the block, and a pickle
    carries its bytes, so that each spawned worker has one copy, which does not grow either.

    Reading from several threads at once is safe. A ``SharedSequence`` can be a dataset by itself.

    Args:
        objects: any iterable of objects that can be pickled; a generator is consumed as it comes,
            and no more than about a thousand of its objects exist at a time.

    Raises:
        ConfigurationError: ``objects`` is not iterable, or holds what cannot be pickled; or, when
            it is unpickled, no process that the pickle knows has the block any more.

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
                f"objects={objects!r} is a {type(objects).__name__}, which is not iterable; give a "
                "list, a generator or another iterable of the objects to hold"
            )
        size, write = Records(objects).plan()
        self._block = create_block(size, write)
        self._read, length = _reader(self._block)
        self._rows = range(length)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole shared block, which a slice has in common with what it is of."""
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
        """The objects of a batch, as loaders ask for them."""
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

    # It equals lists, which have no hash.
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


# What reads each block in this process; a view of a block reads it the same way.
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
