"""Snapshots: what a dataset's or sampler's `state_dict()` returns, as JSON text and back (C5)."""

from __future__ import annotations

import base64
import inspect
import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from dataporter.errors import InvalidStateError, UnsupportedDatasetError

__all__ = ["decode", "encode", "keeps_state", "needed_arguments"]

# Dicts with string keys are JSON objects as they are; types that JSON lacks are objects with one
# key that starts with this mark.
_MARK = "$"
_LIMIT = 1 << 53  # where other JSON readers stop being exact
# What decoding raises for a text that encode() did not write.
_DAMAGED = (ValueError, TypeError, LookupError, AttributeError, RuntimeError)
_CONTAINERS: dict[str, type[Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def keeps_state(part: Any) -> bool:
    """Whether an iterable or iterator can save its state and load it.

    In some libraries, methods of these names require arguments that only the library knows, so they
    do not count.
    """
    save, load = getattr(part, "state_dict", None), getattr(part, "load_state_dict", None)
    return _takes(save) and _takes(load, {})


def needed_arguments(part: Any) -> str | None:
    """Which of the two methods needs more arguments, with them; None if neither does."""
    for name, values in (("state_dict", ()), ("load_state_dict", ({},))):
        method = getattr(part, name, None)
        if callable(method) and not _takes(method, *values):
            return f"{name}({', '.join(inspect.signature(method).parameters)})"
    return None


def _takes(method: Any, *values: Any) -> bool:
    """Whether this is a method that can be called with these values alone."""
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*values)
    except TypeError:
        return False
    except ValueError:  # a function of C may have no signature
        return True
    return True


def encode(value: Any) -> str:
    """A state as JSON text: numbers, strings, bytes, containers, arrays and tensors, exactly.

    Raises:
        UnsupportedDatasetError: the state holds another type. Nothing is pickled, because loading
            a pickle executes code.
    """
    return _as_text(value if _is_plain(value) else _encoded(value, "state"))


# Built once: json.dumps builds an encoder in each call that has options.
_as_text = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _is_plain(value: Any) -> bool:
    """Whether JSON text gives the value back as it is. Most states are, and need no copy."""
    kind = type(value)
    if kind is int:
        return bool(-_LIMIT <= value <= _LIMIT)
    if value is None or kind is bool or kind is str:
        return True
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or key[:1] == _MARK or not _is_plain(item):
                return False
        return True
    if kind is list:
        return all(map(_is_plain, value))
    return kind is float and math.isfinite(value)


def decode(text: str) -> Any:
    """The encoded value, with its original types.

    Raises:
        InvalidStateError: the text is damaged.
    """
    try:
        return _decoded(json.loads(text))
    except _DAMAGED as error:
        raise InvalidStateError(
            f"a snapshot in the state is damaged ({error}): {text[:80]!r}; load another one"
        ) from error


def _encoded(value: Any, path: str) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -_LIMIT <= value <= _LIMIT else {f"{_MARK}int": str(value)}
    if kind is float:
        return value if math.isfinite(value) else {f"{_MARK}float": repr(value)}
    if kind is list:
        return [_encoded(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if kind in (dict, OrderedDict):
        return _encoded_mapping(value, path)
    for name, container in _CONTAINERS.items():
        if kind is container:
            # A set iterates in another order in each process.
            items = sorted(value, key=repr) if name != "tuple" else value
            return {f"{_MARK}{name}": [_encoded(item, f"{path}[...]") for item in items]}
    if kind in (bytes, bytearray):
        return {f"{_MARK}{kind.__name__}": _text(bytes(value))}
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        name = "array" if isinstance(value, np.ndarray) else "scalar"
        return {f"{_MARK}{name}": [value.dtype.str, list(value.shape), _text(value.tobytes())]}
    if kind is torch.Tensor and value.layout is torch.strided and not value.is_quantized:
        plain = value.detach().cpu().contiguous()
        raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        dtype = str(plain.dtype).removeprefix("torch.")
        return {f"{_MARK}tensor": [dtype, list(plain.shape), _text(raw)]}
    raise UnsupportedDatasetError(
        f"a state_dict() has a {kind.__module__}.{kind.__qualname__} at {path}: a state "
        "may hold None, numbers, strings, bytes, lists, tuples, sets, dicts, NumPy arrays and "
        "tensors, so that loading a checkpoint executes nothing; convert the value to one of these"
    )


def _encoded_mapping(value: dict[Any, Any], path: str) -> Any:
    plain = all(type(key) is str and not key.startswith(_MARK) for key in value)
    if plain and type(value) is dict:
        return {key: _encoded(item, f"{path}[{key!r}]") for key, item in value.items()}
    name = "dict" if type(value) is dict else "ordered"
    pairs = [
        [_encoded(key, f"a key of {path}"), _encoded(item, f"{path}[{key!r}]")]
        for key, item in value.items()
    ]
    return {f"{_MARK}{name}": pairs}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key.startswith(_MARK) for key in value):
        return {key: _decoded(item) for key, item in value.items()}
    ((mark, content),) = value.items()
    name = mark.removeprefix(_MARK)
    if name in ("dict", "ordered"):
        pairs = ((_decoded(key), _decoded(item)) for key, item in content)
        return dict(pairs) if name == "dict" else OrderedDict(pairs)
    if name in _CONTAINERS:
        return _CONTAINERS[name](_decoded(item) for item in content)
    if name == "int":
        return int(content)
    if name == "float":
        return float(content)
    if name in ("bytes", "bytearray"):
        return _bytes(content) if name == "bytes" else bytearray(_bytes(content))
    dtype, shape, text = content
    raw = bytearray(_bytes(text))
    if name == "tensor":
        known = getattr(torch, dtype)
        flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0)
        return flat.view(known).reshape(shape) if raw else torch.empty(shape, dtype=known)
    array = np.frombuffer(raw, dtype=np.dtype(dtype)).reshape(shape)
    if name == "array":
        return array
    if name == "scalar":
        return array[()]
    raise ValueError(f"unknown mark {mark!r}")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
