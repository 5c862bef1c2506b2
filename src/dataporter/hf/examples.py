"""Examples: converts the Python objects that a stream yields to the samples a table gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dataporter.convert import Conversion
from dataporter.convert.paths import shown
from dataporter.errors import SampleError
from dataporter.hf.forms import stacked
from dataporter.hf.images import Decoding, float_of_images, scaled, tensor_of
from dataporter.hf.schema import content_of, dtype_of_value, is_list_feature
from dataporter.structure import Step

__all__ = ["sample_of"]

_WHOLE = {
    dtype: torch.empty(0, dtype=dtype).numpy().dtype
    for dtype in (
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}


def sample_of(
    example: Mapping[str, Any], features: Mapping[str, Any] | None, decoding: Decoding
) -> dict[str, Any]:
    """The sample of an example; numbers without a feature have 64 bits, as in Arrow.

    Raises:
        SampleError: a value does not fit the dtype of its feature.
    """
    return {
        name: _made(value, (features or {}).get(name), (name,), decoding)
        for name, value in example.items()
    }


def _made(value: Any, feature: Any, path: tuple[Step, ...], decoding: Decoding) -> Any:
    # The usual case first: most of the time of a stream is spent here.
    if type(value) is list and getattr(feature, "shape", None) is None:
        return _list(value, content_of(feature), (*path, 0), decoding)
    if value is None or isinstance(value, str | bytes):
        return value
    if hasattr(value, "getbands"):  # a Pillow image, recognised without importing Pillow
        return _image(value, decoding.image_mode, decoding.conversion, path)
    if (shape := getattr(feature, "shape", None)) is not None:
        return _numbers(value, _dtype(feature.dtype), path).reshape(-1, *shape[1:])
    if isinstance(value, Mapping):
        features = feature if isinstance(feature, Mapping) else {}
        return {
            name: _made(inner, features.get(name), (*path, name), decoding)
            for name, inner in value.items()
        }
    if isinstance(value, bool | int | float | np.generic | np.ndarray | torch.Tensor):
        dtype = dtype_of_value(feature)
        if feature is not None and dtype is None and not is_list_feature(feature):
            return value
        return _numbers(value, dtype or _leaf_dtype(feature), path)
    if isinstance(value, list | tuple):
        return _list(value, content_of(feature), (*path, 0), decoding)
    return value


def _list(value: Any, content: Any, path: tuple[Step, ...], decoding: Decoding) -> Any:
    if not len(value):
        tail = _empty_tail(content)
        dtype = _leaf_dtype(content)
        return [] if tail is None or dtype is None else torch.empty((0, *tail), dtype=dtype)
    if isinstance(value[0], bool | int | float):
        dtype = dtype_of_value(content)
        if (content is None or dtype is not None) and not _has_null(value):
            return _numbers(value, dtype, path)
    return stacked([_made(inner, content, path, decoding) for inner in value])


def _has_null(values: Any) -> bool:
    try:
        return None in values
    except (RuntimeError, ValueError):  # arrays among them, which compare by element
        return any(inner is None for inner in values)


def _empty_tail(content: Any) -> tuple[int, ...] | None:
    """The shape of an empty list of this content, without the first dimension."""
    if dtype_of_value(content) is not None:
        return ()
    if (shape := getattr(content, "shape", None)) is not None:
        return tuple(extent or 0 for extent in shape)
    if is_list_feature(content):
        tail = _empty_tail(content_of(content))
        return None if tail is None else (max(getattr(content, "length", 0), 0), *tail)
    return (0, 0, 0) if type(content).__name__ == "Image" else None


def _leaf_dtype(feature: Any) -> torch.dtype | None:
    while is_list_feature(feature):
        feature = content_of(feature)
    if getattr(feature, "shape", None) is not None:
        return _dtype(feature.dtype)
    return torch.uint8 if type(feature).__name__ == "Image" else dtype_of_value(feature)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def _numbers(value: Any, dtype: torch.dtype | None, path: tuple[Step, ...]) -> torch.Tensor:
    # A copy: torch does not accept read-only arrays. Its own tensors warn if asked for one.
    array = np.array(np.asarray(value) if isinstance(value, torch.Tensor) else value)
    try:
        whole = torch.from_numpy(array)
    except TypeError as error:
        raise SampleError(
            f"path {shown(path)!r}: {value!r} is not an array of numbers: correct its feature, or "
            "the function that made it"
        ) from error
    if dtype is None or whole.dtype is dtype:
        return whole
    if array.dtype.kind in "iu" and dtype in _WHOLE:
        narrow_array = array.astype(_WHOLE[dtype])  # for a few numbers much faster than torch
        narrow, fits = torch.from_numpy(narrow_array), bool((narrow_array == array).all())
    else:
        narrow = whole.to(dtype)
        fits = dtype.is_floating_point or bool((narrow.to(whole.dtype) == whole).all())
    if not fits:
        raise SampleError(
            f"path {shown(path)!r}: {value!r} does not fit {str(dtype).removeprefix('torch.')}, "
            "the dtype of its feature: correct the feature, or the function that made the value"
        )
    return narrow


def _image(
    image: Any, mode: str | None, conversion: Conversion | None, path: tuple[Step, ...]
) -> torch.Tensor:
    pixels = tensor_of(image, mode)
    dtype = float_of_images(conversion, path)
    return pixels if dtype is None else scaled(pixels, dtype)
