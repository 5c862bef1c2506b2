"""A digest of samples: cheap, and the same in every process (C10, C12).

It is of each sample's structure and types, of the numbers and texts in it, and of some bytes of
each array. Of other objects it is of the type alone: what they hold may differ from one process to
the next, and still mean the same.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from struct import pack
from typing import Any

import numpy as np
import torch

__all__ = ["FAILED", "digested", "digested_offsets", "is_digested"]

# Stands for a sample that failed.
FAILED = object()

# All samples at first, so that short streams are digested as a whole; then one of so many, so that
# a part of every state's samples is, and hardly any time is taken.
_ALL_UP_TO = 64
_EVERY, _UP_TO = 16, 1024
_LATER_EVERY = 256

# Of a long text, sequence or array: so many characters, items or bytes at either end.
_AT_EITHER_END = 32
_ITEMS_AT_EITHER_END = 8
# Elements spread over an array, beside its ends.
_SPREAD = 16
# Up to this size all bytes, which takes less time than choosing some.
_BYTES_AS_A_WHOLE = 1024
_DEEPEST = 16
# So many texts of keys and forms of arrays are kept, with what they are digested to.
_MOST_KEPT = 1024


def is_digested(offset: int) -> bool:
    """Whether the sample at this offset of a shard is digested."""
    return offset < _ALL_UP_TO or offset % (_EVERY if offset < _UP_TO else _LATER_EVERY) == 0


def digested_offsets(start: int, stop: int, since: int, compared: int) -> Sequence[int]:
    """The offsets from ``start`` to ``stop`` of the samples that are digested.

    Args:
        since: offset of the last snapshot, after which so many are ``compared`` in any case.
    """
    found: Sequence[int]
    if start >= _UP_TO:
        found = range(-(-start // _LATER_EVERY) * _LATER_EVERY, stop, _LATER_EVERY)
    else:
        found = [*filter(is_digested, range(start, stop))]
    after = range(max(start, since), min(stop, since + compared))
    if not after:
        return found
    return sorted({*found, *after}) if found else after


def digested(sample: Any, digest: int) -> int:
    """The digest of a sample and of the samples before it.

    Args:
        digest: of the samples before it; 0 at first.
    """
    return _of(sample, digest, 0) & 0xFFFFFFFF


def _of(value: Any, digest: int, depth: int) -> int:
    if depth > _DEEPEST:
        return digest
    kind = type(value)
    function, mark = _known.get(kind) or _learnt(kind)
    return function(value, (digest * 31 + mark) & 0xFFFFFFFF, depth)


Function = Callable[[Any, int, int], int]


def _plain(value: Any, digest: int, depth: int) -> int:
    return zlib.crc32(repr(value).encode(), digest)


def _enum(value: Any, digest: int, depth: int) -> int:
    return zlib.crc32(str(value.name).encode(), digest)


def _type_alone(value: Any, digest: int, depth: int) -> int:
    return digest


def _float(value: float, digest: int, depth: int) -> int:
    # A NaN may have any of many bits.
    return zlib.crc32(pack("<d", value) if value == value else b"nan", digest)


def _text(value: Any, digest: int, depth: int) -> int:
    # The data may lie in another folder in the next run.
    text = str(value).rpartition("/")[2].rpartition("\\")[2]
    ends = text if len(text) <= 2 * _AT_EITHER_END else _ends(text)
    return zlib.crc32(ends.encode(errors="surrogatepass"), digest + len(text) & 0xFFFFFFFF)


def _bytes(value: Any, digest: int, depth: int) -> int:
    digest = digest + len(value) & 0xFFFFFFFF
    if len(value) <= 2 * _AT_EITHER_END:
        return zlib.crc32(value, digest)
    spread = value[:: len(value) // _SPREAD]
    return zlib.crc32(_ends(value), zlib.crc32(bytes(spread), digest))


def _ends(value: Any) -> Any:
    return value[:_AT_EITHER_END] + value[-_AT_EITHER_END:]


def _sequence(value: Any, digest: int, depth: int) -> int:
    digest = digest + len(value) & 0xFFFFFFFF
    if len(value) > 2 * _ITEMS_AT_EITHER_END:
        value = [*value[:_ITEMS_AT_EITHER_END], *value[-_ITEMS_AT_EITHER_END:]]
    if set(map(type, value)) == {int}:
        return zlib.crc32(repr(value).encode(), digest)
    for item in value:
        digest = _of(item, digest, depth + 1)
    return digest


def _set(value: Any, digest: int, depth: int) -> int:
    # A set of texts iterates in another order in each process.
    total = sum(_of(item, 0, depth + 1) for item in value)
    return zlib.crc32(b"%d:%d" % (len(value), total), digest)


def _mapping(value: Mapping[Any, Any], digest: int, depth: int) -> int:
    total, deeper = 0, depth + 1
    for key, item in value.items():
        of_key = _keys.get(key) if type(key) is str else None
        if of_key is None:
            of_key = _of_key(key, deeper)
        if deeper <= _DEEPEST:  # as _of() does, without a call for each item
            kind = type(item)
            function, mark = _known.get(kind) or _learnt(kind)
            of_key = function(item, (of_key * 31 + mark) & 0xFFFFFFFF, deeper)
        total += of_key
    return zlib.crc32(b"%d:%d" % (len(value), total), digest)


def _of_key(key: Any, depth: int) -> int:
    of_key = _of(key, 0, depth)
    if type(key) is str and depth <= _DEEPEST and len(_keys) < _MOST_KEPT:
        _keys[key] = of_key
    return of_key


def _fields(value: Any, digest: int, depth: int) -> int:
    for field in dataclasses.fields(value):
        digest = _of(getattr(value, field.name, None), digest, depth + 1)
    return digest


def _array(value: Any, digest: int, depth: int) -> int:
    value = np.asarray(value)
    dtype = value.dtype
    digest = digest + _of_form(dtype.char, value.shape) & 0xFFFFFFFF
    if dtype.hasobject:
        return _sequence(value.reshape(-1)[: 2 * _ITEMS_AT_EITHER_END].tolist(), digest, depth)
    if value.nbytes <= _BYTES_AS_A_WHOLE:
        # Dates have no buffer.
        is_buffer = dtype.kind in "biufc" and value.flags.c_contiguous
        return zlib.crc32(value if is_buffer else value.tobytes(), digest)
    if not value.flags.c_contiguous:
        # Never copied as a whole, however large it is.
        return zlib.crc32(value.flat[:: value.size // _SPREAD or 1].tobytes(), digest)
    flat = value.reshape(-1)
    return zlib.crc32(flat[:: value.size // _SPREAD or 1].tobytes() + flat[:8].tobytes(), digest)


def _of_form(char: str, shape: tuple[int, ...]) -> int:
    form = _forms.get((char, shape))
    if form is None:
        form = zlib.crc32(f"{char}{shape}".encode())
        if len(_forms) < _MOST_KEPT:
            _forms[char, shape] = form
    return form


def _tensor(value: Any, digest: int, depth: int) -> int:
    try:
        # Refused for a tensor on a device, a sparse or quantised one, one with a gradient or of a
        # dtype that NumPy lacks, and for a conjugate or negative view.
        if type(value) is torch.Tensor:
            return _array(value.numpy(), digest, depth)
    except (TypeError, RuntimeError):
        pass
    plain = (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )
    if not plain:
        return zlib.crc32(f"{value.dtype}{tuple(value.shape)}".encode(), digest)
    value = value.detach().resolve_conj().resolve_neg()
    if value.dtype is torch.bfloat16 or value.element_size() == 1:
        value = value.view(torch.int16 if value.dtype is torch.bfloat16 else torch.uint8)
    return _array(value.numpy(), digest, depth)


def _image(value: Any, digest: int, depth: int) -> int:
    # The pixels of an image from a file are not decoded yet.
    return zlib.crc32(f"{value.mode}{value.size}".encode(), digest)


def _table(value: Any, digest: int, depth: int) -> int:
    digest = zlib.crc32(b"%d" % len(value), digest)
    return _of(value[:1].to_pylist() if hasattr(value, "slice") else None, digest, depth)


def _scalar(value: Any, digest: int, depth: int) -> int:
    return _of(value.as_py(), digest, depth + 1)


def _frame(value: Any, digest: int, depth: int) -> int:
    digest = zlib.crc32(f"{value.shape}".encode(), digest)
    return _of(value.head(1).to_numpy(), digest, depth + 1)


_BY_TYPE: tuple[tuple[type | tuple[type, ...], Function], ...] = (
    (Enum, _enum),
    ((type(None), date, datetime, time, timedelta, Decimal), _plain),
    ((bool, int, complex), _plain),
    (float, _float),
    ((str, PurePath), _text),
    ((bytes, bytearray), _bytes),
    ((np.ndarray, np.generic), _array),
    (torch.Tensor, _tensor),
    ((list, tuple), _sequence),
    ((set, frozenset), _set),
    (Mapping, _mapping),
)
# By module and a member: libraries that need not be installed.
_BY_MODULE: tuple[tuple[str, str, Function], ...] = (
    ("PIL", "getpixel", _image),
    ("pyarrow", "as_py", _scalar),
    ("pyarrow", "slice", _table),
    ("pandas", "head", _frame),
    ("polars", "head", _frame),
)


# By type, what digests its values, and a number that stands for the type.
_known: dict[type, tuple[Function, int]] = {}
# The digests of keys of samples, and of dtypes and shapes.
_keys: dict[str, int] = {}
_forms: dict[tuple[str, tuple[int, ...]], int] = {}


def _learnt(kind: type) -> tuple[Function, int]:
    _known[kind] = _function_for(kind), zlib.crc32(kind.__qualname__.encode())
    return _known[kind]


def _function_for(kind: type) -> Function:
    for types, function in _BY_TYPE:
        if issubclass(kind, types):
            return function
    if dataclasses.is_dataclass(kind):
        return _fields
    library = kind.__module__.partition(".")[0]
    for name, member, function in _BY_MODULE:
        if library == name and hasattr(kind, member):
            return function
    return _type_alone
