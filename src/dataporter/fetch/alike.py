"""Alike: whether samples of several sources make one batch, and if not, which differ in what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

__all__ = ["difference"]

_NUMBERS = {bool: "bool", int: "int64", float: "float64"}
_ADVICE = "give one of the sources a transform (transforms={...}) that makes its samples alike"


def difference(samples: Mapping[str, Any], *, shapes: bool, strict: bool) -> str | None:
    """In what a sample of one source differs from that of another, or None.

    torch's ``default_collate`` drops the keys that the first sample of a batch does not have, and
    makes ints floats where both meet, so that what a batch holds would depend on which source its
    first sample is from.

    Args:
        samples: a sample of each source, by name.
        shapes: whether the shapes of arrays count.
        strict: whether kinds and lengths count; otherwise keys and dtypes only.
    """
    (first, sample), *others = samples.items()
    for other, another in others:
        for path, one, two in _differences(sample, another, "", shapes=shapes, strict=strict):
            where = f" at {path!r}" if path else ""
            return f"source {first!r} has {one}{where}, source {other!r} has {two}: {_ADVICE}"
    return None


def _differences(
    one: Any, two: Any, path: str, *, shapes: bool, strict: bool
) -> Iterator[tuple[str, str, str]]:
    """Path and both descriptions of each difference."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        if one.keys() != two.keys():
            yield path, f"the keys {_keys(one)}", f"the keys {_keys(two)}"
            return
        for key in one:
            within = f"{path}.{key}" if path else str(key)
            yield from _differences(one[key], two[key], within, shapes=shapes, strict=strict)
        return
    kinds = _kind(one), _kind(two)
    if kinds[0] != kinds[1]:
        if strict:
            yield path, kinds[0], kinds[1]
    elif kinds[0] == "a list":
        if len(one) == len(two):
            for number, pair in enumerate(zip(one, two)):
                yield from _differences(*pair, f"{path}[{number}]", shapes=shapes, strict=strict)
        elif strict:
            yield path, f"a list of {len(one)} values", f"one of {len(two)}"
    elif (dtypes := (_dtype(one), _dtype(two)))[0] != dtypes[1]:
        yield path, f"{kinds[0]} of {dtypes[0]}", f"one of {dtypes[1]}"
    elif shapes and (extents := (_shape(one), _shape(two)))[0] != extents[1]:
        yield path, f"{kinds[0]} of shape {extents[0]}", f"one of shape {extents[1]}"


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a tensor"
    if isinstance(value, np.ndarray):
        return "a NumPy array"
    if type(value) in _NUMBERS or isinstance(value, np.generic):
        return "a number"
    if isinstance(value, Mapping):
        return "a dict"
    if type(value) is list or type(value) is tuple:
        return "a list"
    return "None" if value is None else f"a {type(value).__name__}"


def _dtype(value: Any) -> str | None:
    dtype = getattr(value, "dtype", None)
    return _NUMBERS.get(type(value)) if dtype is None else str(dtype).removeprefix("torch.")


def _shape(value: Any) -> list[int]:
    return list(getattr(value, "shape", ()))


def _keys(sample: Mapping[Any, Any]) -> list[Any]:
    return list(sample)
