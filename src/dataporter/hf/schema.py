"""Schema: builds the tree of nodes that reads a column from its Arrow type and feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from dataporter.hf.images import Decoding, float_of_images
from dataporter.hf.nodes import (
    Bits,
    Blocks,
    Extents,
    Images,
    Lists,
    Node,
    Numbers,
    Objects,
    Structs,
)
from dataporter.structure import Step

__all__ = [
    "Column",
    "column_of",
    "content_of",
    "dtype_of_value",
    "is_list_feature",
]

_DTYPES = {
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "halffloat": torch.float16,
    "float": torch.float32,
    "double": torch.float64,
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column's reader, and how many rows are in each of its chunks.

    Attributes:
        node: reads it.
        lengths: rows of each chunk that is not empty.
        is_list: whether it can be padded: it holds lists of numbers, or arrays.
    """

    node: Node
    lengths: tuple[int, ...]
    is_list: bool


def column_of(name: str, column: Any, feature: Any, decoding: Decoding) -> Column:
    """The reader of a ``pyarrow.ChunkedArray``."""
    arrays = [chunk for chunk in column.chunks if len(chunk)]
    builder = _Builder(decoding)
    built = builder.built(arrays, column.type, feature, (name,))
    return Column(built.node, tuple(map(len, arrays)), built.is_list)


def dtype_of_value(feature: Any) -> torch.dtype | None:
    """The dtype in which a feature of single numbers is stored; None for all others."""
    kind = getattr(feature, "pa_type", None)
    if not isinstance(kind, pa.DataType) or hasattr(feature, "decode_example"):
        return None
    return torch.bool if pa.types.is_boolean(kind) else _DTYPES.get(str(kind))


@dataclass(frozen=True, slots=True)
class _Built:
    node: Node
    plain: Any = None
    has_shape: bool = False
    is_list: bool = False


@dataclass(frozen=True, slots=True)
class _Builder:
    decoding: Decoding

    def built(
        self, arrays: Sequence[Any], kind: Any, feature: Any, path: tuple[Step, ...]
    ) -> _Built:
        if decode := self._decoder(feature):
            if type(feature).__name__ != "Image":
                return _Built(Objects(arrays, decode))
            dtype = float_of_images(self.decoding.conversion, path)
            images = Images(Objects(arrays), decode, self.decoding.image_mode, dtype)
            return _Built(images)
        if hasattr(kind, "storage_dtype"):  # the extension types of datasets' arrays
            return self._blocks(arrays, kind.storage_type, kind.shape, path)
        if pa.types.is_boolean(kind) or (name := str(kind)) in _DTYPES:
            plain = Bits(arrays) if pa.types.is_boolean(kind) else Numbers(arrays, _DTYPES[name])
            return _Built(plain, None if plain.has_nulls else plain, not plain.has_nulls)
        if pa.types.is_struct(kind):
            return self._structs(arrays, kind, feature, path)
        if _is_list(kind) and _needs_reading(kind.value_type, content_of(feature)):
            inner = self.built(
                [array.values for array in arrays], kind.value_type, content_of(feature), (*path, 0)
            )
            extents = Extents(arrays, kind)
            node = Lists(extents, inner.node, inner.plain, has_shape=inner.has_shape)
            has_shape = inner.has_shape and extents.fixed is not None
            has_shape = has_shape and not extents.validity.has_nulls
            return _Built(node, None, has_shape, is_list=inner.has_shape)
        return _Built(Objects(arrays))

    def _decoder(self, feature: Any) -> Callable[[Any], Any] | None:
        decode = _decode_of(feature)
        if decode is None:
            return None
        return lambda value: decode(value, token_per_repo_id=None)

    def _structs(
        self, arrays: Sequence[Any], kind: Any, feature: Any, path: tuple[Step, ...]
    ) -> _Built:
        features = feature if isinstance(feature, dict) else {}
        inner = {}
        for number in range(kind.num_fields):
            field = kind.field(number)
            fields = [array.field(number) for array in arrays]
            found = self.built(fields, field.type, features.get(field.name), (*path, field.name))
            inner[field.name] = found.node
        return _Built(Structs(arrays, inner))

    def _blocks(
        self,
        arrays: Sequence[Any],
        kind: Any,
        shape: tuple[int | None, ...],
        path: tuple[Step, ...],
    ) -> _Built:
        levels = []
        storage = [array.storage for array in arrays]
        for _ in shape:
            levels.append(Extents(storage, kind))
            storage, kind = [array.values for array in storage], kind.value_type
        content = self.built(storage, kind, None, path)
        if content.plain is None:
            return _Built(Objects(arrays))
        fixed = tuple(extent for extent in shape if extent is not None)
        if len(fixed) == len(shape):
            blocks = Blocks(levels, fixed, content.plain, _shown(path))
            return _Built(blocks, None, not levels[0].validity.has_nulls, is_list=True)
        rows = Blocks(levels[1:], fixed, content.plain, _shown(path))
        return _Built(Lists(levels[0], rows, None, has_shape=True), is_list=True)


def _shown(path: tuple[Step, ...]) -> str:
    return ".".join("*" if isinstance(step, int) else step for step in path)


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def content_of(feature: Any) -> Any:
    """The feature of a list's content, or None."""
    if isinstance(feature, list | tuple):
        return feature[0] if feature else None
    return getattr(feature, "feature", None)


def is_list_feature(feature: Any) -> bool:
    """Whether a feature is one of lists, in any notation of ``datasets``."""
    return isinstance(feature, list | tuple) or hasattr(feature, "feature")


def _decode_of(feature: Any) -> Any:
    """What decodes an element of a feature, or None."""
    # Concatenating streams makes a Features of a struct, which decodes whole rows.
    if isinstance(feature, dict) or not getattr(feature, "decode", True):
        return None
    return getattr(feature, "decode_example", None)


def _needs_reading(kind: Any, feature: Any) -> bool:
    """Whether a node must read it, because it holds more than Arrow's Python objects."""
    if _decode_of(feature) is not None:
        return True
    if isinstance(kind, pa.ExtensionType) or pa.types.is_boolean(kind) or str(kind) in _DTYPES:
        return True
    if _is_list(kind):
        return _needs_reading(kind.value_type, content_of(feature))
    if pa.types.is_struct(kind):
        features = feature if isinstance(feature, dict) else {}
        return any(
            _needs_reading(kind.field(number).type, features.get(kind.field(number).name))
            for number in range(kind.num_fields)
        )
    return False
