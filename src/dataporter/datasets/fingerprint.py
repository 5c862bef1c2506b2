"""Fingerprints: what a dataset holds, as a short text, found out without reading samples (C6)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
)

from dataporter.datasets.columns import MappedColumns
from dataporter.datasets.spread import bytes_of, integers_of, spread
from dataporter.shared.sequence import SharedSequence

__all__ = ["content_of", "explicit_fingerprint", "fingerprint_of", "is_digest"]

# Where datasets keep what they index: torchvision's, and what people write after them.
_CONTENT = (
    *("samples", "imgs", "images", "files", "filenames", "file_list", "paths", "image_paths"),
    *("_samples", "_images", "_image_files", "_files", "_paths", "_labels", "_targets"),
    *("data", "targets", "labels", "ids", "x", "y", "X", "Y", "inputs", "texts", "tokens"),
    *("examples", "records", "encodings"),
)
# Beyond these numbers only some are looked at, spread over all.
_ENTRIES = 256  # of a list of numbers, texts or tuples of them
_LARGE_ENTRIES = 32  # of a list of anything else, and of datasets in one
_SHORT = 16  # fields of an entry
_TEXT = 512  # characters of a text; of longer ones, the beginning and the end
_DEEPEST = 8
# A later release that looks at other values gives another number.
_DIGEST = "content1:"

_SEQUENCES = (list, tuple, SharedSequence)
_NUMBERS = (bool, int, float, complex)
_SCALARS = (str, *_NUMBERS, bytes, np.generic, PurePath)
# Exactly these need no other form: most entries are, and the check for others takes longer.
_SETTLED = frozenset({bool, int, float, complex, type(None)})


def fingerprint_of(dataset: Any, given: str | None = None) -> str | None:
    """A text that is the same for the same content, and another one for other content.

    It reads no sample: ``__getitem__`` of a custom dataset is never called. Of large arrays and
    lists it looks at some values, spread over all, so that it takes milliseconds at most; it is a
    guard against mistakes, and no checksum. It is the same in each process and on each platform,
    wherever in memory the data lie.

    Args:
        dataset: as a loader takes it.
        given: the user's own; it counts instead.

    Returns:
        ``given``, else the dataset's ``fingerprint`` or (Hugging Face) ``_fingerprint``, else a
        digest; None where nothing is known of the content.
    """
    if given is not None:
        return given
    if (own := explicit_fingerprint(dataset)) is not None:
        return own
    content = _Content()
    try:
        content.add(dataset, 1, 0)
    except Exception:  # an object of the user's that cannot be looked at must not end a pass
        return None
    return f"{_DIGEST}{content.hash.hexdigest()}" if content.is_known else None


def is_digest(fingerprint: str) -> bool:
    """Whether a fingerprint is a digest of the content that this release makes."""
    return fingerprint.startswith(_DIGEST)


def explicit_fingerprint(dataset: Any) -> str | None:
    """The dataset's ``fingerprint`` or (Hugging Face) ``_fingerprint``, or None."""
    for name in ("fingerprint", "_fingerprint"):
        fingerprint = getattr(dataset, name, None)
        if isinstance(fingerprint, str):
            return fingerprint
    return None


class _Content:
    """A digest of all that was added; what is not known of a part counts as a blank."""

    def __init__(self) -> None:
        self.hash = blake2b(digest_size=8)
        self.is_known = False

    def add(self, part: Any, share: int, depth: int) -> None:
        """Add a dataset or a part of one, of which a ``share``-th of the values is looked at."""
        if depth > _DEEPEST:
            self._mark("deeper")
        elif isinstance(part, torch.Tensor | np.ndarray):
            self._add_array(part, share, depth)
        elif part is None or isinstance(part, _SCALARS):
            self.is_known = self.is_known or part is not None
            self._mark("value", _settled(part))
        elif (own := explicit_fingerprint(part)) is not None:
            self.is_known = True
            self._mark("fingerprint", own)
        else:
            kinds = () if _reads_by_itself(part) else _KINDS
            adds = (add for kind, add in kinds if isinstance(part, kind))
            next(adds, _Content._add_object)(self, part, share, depth)

    def _mark(self, kind: str, *values: object) -> None:
        # repr() separates the values, so that no two sequences of marks are one text.
        self.hash.update(repr((kind, *values)).encode("utf-8", "surrogatepass"))

    def _add_array(self, array: Any, share: int, depth: int) -> None:
        try:
            dtype, shape, values = bytes_of(array, share)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            self._mark("array")
            return
        self._mark("array", dtype, shape)
        if isinstance(values, bytes):
            self.is_known = True
            self.hash.update(values)
        elif values is not None:  # objects
            self._add_entries(values, share, depth)

    def _add_parts(self, parts: Sequence[Any], share: int, depth: int) -> None:
        """Add some of the datasets, or of the entries, in another."""
        self._mark("parts", len(parts))
        chosen = spread(len(parts), 1, max(2, _LARGE_ENTRIES // share)).tolist()
        for index in chosen:
            self.add(parts[index], share * len(chosen), depth + 1)

    def _add_columns(self, columns: Mapping[str, Any], share: int, depth: int) -> None:
        self._mark("columns", *sorted(columns))
        self._add_parts([columns[name] for name in sorted(columns)], share, depth)

    def _add_subset(self, subset: Subset[Any], share: int, depth: int) -> None:
        chosen = integers_of(subset.indices, share)
        if chosen is None:
            self.add(subset.indices, 2 * share, depth + 1)
        else:
            self.is_known = True
            self._mark("subset", len(subset.indices))
            self.hash.update(chosen)
        self.add(subset.dataset, 2 * share, depth + 1)

    def _add_concatenation(self, whole: ConcatDataset[Any], share: int, depth: int) -> None:
        self.is_known = True
        self._mark("concatenation")
        self.hash.update(integers_of(whole.cumulative_sizes, share) or b"")
        self._add_parts(whole.datasets, share, depth)

    def _add_stack(self, stack: StackDataset[Any], share: int, depth: int) -> None:
        parts: Any = stack.datasets
        is_named = isinstance(parts, dict)
        (self._add_columns if is_named else self._add_parts)(parts, share, depth)

    def _add_dict(self, part: dict[Any, Any], share: int, depth: int) -> None:
        if len(part) <= _LARGE_ENTRIES and all(isinstance(name, str) for name in part):
            self._add_columns(part, share, depth)
        else:
            self._mark("dict", len(part))

    def _add_entries(self, entries: Any, share: int, depth: int) -> None:
        """Add a list: all entries of a short one, or some that are spread over it."""
        self._mark("entries", len(entries))
        if len(entries) == 0 or not _is_plain(entries[0]):
            self._add_parts(entries, share, depth)
            return
        chosen = spread(len(entries), 16, max(1, _ENTRIES // 16 // share)).tolist()
        values = [entries[index] for index in chosen]
        root = _root(values)
        for value in values:
            if _is_plain(value):
                self._mark("entry", _settled(_below(root, value)))
                self.is_known = True
            else:
                self.add(value, share * len(values), depth + 1)

    def _add_object(self, part: Any, share: int, depth: int) -> None:
        """Add what an object of a custom class holds, if that can be known."""
        found = content_of(part)
        self._mark("object", *found)
        for value in found.values():
            self.add(value, share * len(found), depth + 1)


_KINDS: tuple[tuple[Any, Callable[[_Content, Any, int, int], None]], ...] = (
    (range, lambda content, part, share, depth: _add_range(content, part)),
    (dict, _Content._add_dict),
    (MappedColumns, lambda content, part, *place: content._add_columns(part.columns, *place)),
    (TensorDataset, lambda content, part, *place: content._add_parts(part.tensors, *place)),
    (Subset, _Content._add_subset),
    (ConcatDataset, _Content._add_concatenation),
    (StackDataset, _Content._add_stack),
    (_SEQUENCES, _Content._add_entries),
)


def _add_range(content: _Content, part: range) -> None:
    content.is_known = True
    content._mark("range", part.start, part.stop, part.step)


def content_of(part: Any) -> dict[str, Any]:
    """By name, the attributes of an object that are known to be its content."""
    own = getattr(part, "__dict__", None)
    if not isinstance(own, dict):
        return {}
    names = {name for name, value in own.items() if _is_dataset(value)}
    # No property is read, and no __getattr__ called: either may load a file.
    values = {name: inspect.getattr_static(part, name, None) for name in {*_CONTENT, *names}}
    return {name: values[name] for name in sorted(values) if _is_content(values[name])}


def _reads_by_itself(part: Any) -> bool:
    """Whether a list, tuple or dict has another ``__getitem__``, which may read samples."""
    kinds = (list, tuple, dict)
    return any(
        isinstance(part, kind) and type(part).__getitem__ is not kind.__getitem__ for kind in kinds
    )


def _is_dataset(value: Any) -> bool:
    if isinstance(value, Dataset):
        return not isinstance(value, IterableDataset)
    return isinstance(getattr(value, "__dict__", {}).get("_fingerprint"), str)


def _is_content(value: Any) -> bool:
    if _reads_by_itself(value):
        return False
    if isinstance(value, _SEQUENCES):
        # A list of other objects may be a cache, which fills as samples are read.
        return len(value) > 0 and all(_is_plain(value[index]) for index in (0, -1))
    if isinstance(value, dict):
        return bool(value) and all(_is_content(entry) for entry in value.values())
    return isinstance(value, torch.Tensor | np.ndarray | range) or _is_dataset(value)


def _is_plain(value: Any) -> bool:
    """Whether it is a number, a text, or a short tuple, list or dict of them."""
    if _reads_by_itself(value):
        return False
    if isinstance(value, dict):
        value = (*value, *value.values())
    if isinstance(value, list | tuple):
        short = 0 < len(value) <= _SHORT
        return short and all(each is None or isinstance(each, _SCALARS) for each in value)
    return isinstance(value, _SCALARS)


def _settled(value: Any) -> Any:
    """A number, a text, or a short tuple, list or dict of them, so that repr() says all of it.

    And no more than that: a member of an enumeration is its number, and a path has no class.
    """
    if type(value) in _SETTLED:
        return value
    if isinstance(value, list | tuple):
        return tuple(map(_settled, value))
    if isinstance(value, dict):
        return tuple((_settled(name), _settled(value[name])) for name in value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PurePath):
        value = value.as_posix()
    if isinstance(value, str | bytes):
        if len(value) > _TEXT:
            return len(value), value[: _TEXT // 2], value[-_TEXT // 2 :]
        return value[:]
    kind = next((kind for kind in _NUMBERS if isinstance(value, kind)), None)
    return value if kind is None else kind(value)


def _path(value: Any) -> str | None:
    """The path or text that an entry of a list is, or begins with."""
    if isinstance(value, list | tuple) and value:
        value = value[0]
    if isinstance(value, PurePath):
        value = value.as_posix()
    if type(value) is not str:
        return None
    return value.replace("\\", "/") if os.sep == "\\" else value


def _root(values: list[Any]) -> str:
    """The folder that all entries of a list of paths have in common, with its slash, or ``""``.

    It does not count, so that the data may move: to a disk of the machine that the job runs on,
    say.
    """
    paths = [_path(value) for value in values]
    known = [path[:_TEXT] for path in paths if path is not None]
    if len(known) < len(paths):
        return ""
    folder, slash, _ = _common(min(known), max(known)).rpartition("/")
    return folder + slash


def _common(one: str, other: str) -> str:
    """What both texts begin with."""
    ends = (at for at, (a, b) in enumerate(zip(one, other)) if a != b)
    return one[: next(ends, min(len(one), len(other)))]


def _below(root: str, value: Any) -> Any:
    """An entry of a list of paths, without the folder that all have in common."""
    path = _path(value)
    if path is None or not root:
        return value
    path = path[len(root) :]
    return (path, *value[1:]) if isinstance(value, list | tuple) else path
