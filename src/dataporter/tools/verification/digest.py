"""Digests: the leaves of a batch, each with its dtype, its shape and a hash of its bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from dataporter.structure import Step, parts_of

__all__ = ["Leaf", "digest_of", "leaves_of", "path_shown"]

Path = tuple[Step, ...]

# Rows of longer leaves have no digests: they are not samples.
_MOST_ROWS = 4096
_ROW_BYTES = 8
_DEEPEST = 32
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PLAIN = (str, bytes, bytearray, int, float, complex)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf of a batch.

    Attributes:
        path: the steps that lead to it.
        kind: the name of its class.
        dtype: of a tensor or an array; "" for others.
        shape: of a tensor or an array; () for others.
        digest: of kind, dtype, shape and bytes.
        rows: a digest of each row of a tensor or an array; empty if it has none, or very many.
        value: the leaf itself, a tensor as an array; None if it was not kept.
    """

    path: Path
    kind: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes
    rows: tuple[bytes, ...]
    value: Any

    def without_value(self) -> Leaf:
        """The same leaf without its value, which takes memory."""
        return Leaf(self.path, self.kind, self.dtype, self.shape, self.digest, self.rows, None)


def leaves_of(batch: Any) -> list[Leaf]:
    """The leaves of a batch in its own order, since that order is compared as well.

    Containers are those of :mod:`dataporter.structure`; other objects are replaced by their
    attributes.
    """
    return [_leaf(path, value) for path, value in _walk(batch, (), frozenset())]


def digest_of(value: Any) -> bytes:
    """One digest of all leaves of a value."""
    hashed = blake2b(digest_size=16)
    for leaf in leaves_of(value):
        hashed.update(repr(leaf.path).encode())
        hashed.update(leaf.digest)
    return hashed.digest()


def path_shown(path: Sequence[Step]) -> str:
    """A path as users write it."""
    return ".".join(map(str, path)) or "the batch"


def _walk(value: Any, path: Path, above: frozenset[int]) -> Iterator[tuple[Path, Any]]:
    if id(value) in above or len(path) > _DEEPEST:
        return
    parts = parts_of(value)
    if parts is not None:
        # That a container is empty, and its class, are compared as well.
        yield (*path, "()"), f"{type(value).__name__} of {len(parts)}"
        for part in parts:
            yield from _walk(part.value, (*path, part.step), above | {id(value)})
    else:
        attributes = {} if _is_array(value) else _attributes(value)
        # A subclass of one of these has a value beside its attributes.
        is_value = _is_array(value) or isinstance(value, _PLAIN) or not _has_attributes(value)
        yield (path, value) if is_value else ((*path, "()"), type(value).__name__)
        for name, inner in attributes.items():
            yield from _walk(inner, (*path, name), above | {id(value)})


def _is_array(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray | np.generic)


def _has_attributes(value: Any) -> bool:
    if callable(value) or hasattr(value, "tobytes"):
        return False
    # The repr of a class with slots mostly shows them; and slots may hold a hash that differs in
    # each process, as those of a Path do.
    own_repr: Any = type(value).__repr__
    shows_nothing = own_repr is object.__repr__
    return hasattr(value, "__dict__") or (shows_nothing and bool(_slots(value)))


def _attributes(value: Any) -> dict[str, Any]:
    if not _has_attributes(value):
        return {}
    names = [name for name in _slots(value) if hasattr(value, name)]
    return {**{name: getattr(value, name) for name in names}, **getattr(value, "__dict__", {})}


def _slots(value: Any) -> list[str]:
    declared = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    lists = [[one] if isinstance(one, str) else list(one) for one in declared]
    return [name for names in lists for name in names if not name.startswith("__")]


def _leaf(path: Path, value: Any) -> Leaf:
    kind = type(value).__name__
    if _is_array(value):
        dtype = str(value.dtype).removeprefix("torch.")
        return _array_leaf(path, kind, dtype, _as_array(value))
    content = _content(value)
    # Exactly these classes: a user's subclass cannot be unpickled where its module is missing.
    kept = value if type(value) in (str, bytes, int, float, bool, type(None)) else None
    return Leaf(path, kind, "", (), _hash(kind, "", (), [content]), (), kept)


def _array_leaf(path: Path, kind: str, dtype: str, array: Any) -> Leaf:
    if array.dtype.hasobject:
        rows = [repr(item).encode() for item in array.reshape(-1)]
        return Leaf(path, kind, dtype, array.shape, _hash(kind, dtype, array.shape, rows), (), None)
    if array.ndim and 0 < array.shape[0] <= _MOST_ROWS:
        rows = [blake2b(row, digest_size=_ROW_BYTES).digest() for row in _bytes_of_rows(array)]
        digest = _hash(kind, dtype, array.shape, rows)
        return Leaf(path, kind, dtype, array.shape, digest, tuple(rows), array)
    digest = _hash(kind, dtype, array.shape, [np.ascontiguousarray(array).tobytes()])
    return Leaf(path, kind, dtype, array.shape, digest, (), array)


def _bytes_of_rows(array: Any) -> Iterator[Any]:
    flat = np.ascontiguousarray(array).reshape(array.shape[0], -1)
    for row in flat.view(np.uint8) if flat.size else flat:
        yield row.tobytes()


def _as_array(value: Any) -> Any:
    """A copy of a tensor or an array as an array; dtypes that NumPy lacks become integers."""
    if not isinstance(value, torch.Tensor):
        return np.array(value)
    dense = value if value.layout is torch.strided else value.to_dense()
    plain = dense.detach().cpu().contiguous()
    try:
        return np.array(plain.resolve_conj().resolve_neg().numpy())
    except TypeError:
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        return np.array(plain.view(bits[plain.element_size()]).numpy())


def _content(value: Any) -> bytes:
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, set | frozenset):
        # Independent of the order of iteration.
        return b"".join(sorted(digest_of(item) for item in value))
    if hasattr(value, "tobytes"):  # a PIL image
        size = f"{getattr(value, 'size', '')}{getattr(value, 'mode', '')}"
        return size.encode() + bytes(value.tobytes())
    for kind in (str, int, float, complex):
        if isinstance(value, kind):  # a subclass may have another repr
            return kind.__repr__(value).encode()
    return _ADDRESS.sub("", repr(value)).encode()


def _hash(kind: str, dtype: str, shape: tuple[int, ...], contents: list[bytes]) -> bytes:
    hashed = blake2b(f"{kind}|{dtype}|{shape}|".encode(), digest_size=16)
    for content in contents:
        hashed.update(content)
    return hashed.digest()
