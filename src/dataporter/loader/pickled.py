"""Pickled: what in a loader's arguments cannot be sent to a worker that is not forked."""

from __future__ import annotations

import io
import pickle
import types
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing import context
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import torch

from dataporter.errors import ConfigurationError

__all__ = ["refuse_unpicklable"]

_DEEPEST = 20


def refuse_unpicklable(method: str, arguments: Mapping[str, Any], error: Exception) -> None:
    """Raise an error that names the object for which workers could not start, if one is found.

    Args:
        method: how the workers are started, ``"spawn"`` or ``"forkserver"``.
        arguments: by name, what the workers receive.
        error: what the start of a worker has raised.

    Raises:
        ConfigurationError: (a ``ValueError``) an object cannot be pickled.
    """
    for name, value in arguments.items():
        if _fault(value) is None:
            continue
        path, culprit = _deepest(name, value)
        raise ConfigurationError(
            f"workers that are started by {method!r} receive the loader's arguments by pickle, and "
            f"{path} cannot be pickled: it is {_described(culprit)}, or num_workers=0"
        ) from error


def _deepest(path: str, value: Any) -> tuple[str, Any]:
    """The innermost part that cannot be pickled, and the way to it."""
    for _ in range(_DEEPEST):
        inner = next(
            ((f"{path}{step}", part) for step, part in _parts(value) if _fault(part)), None
        )
        if inner is None:
            break
        path, value = inner
    return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, partial):
        yield ".func", value.func
        yield from ((f".args[{n}]", part) for n, part in enumerate(value.args))
        yield from ((f".keywords[{name!r}]", part) for name, part in value.keywords.items())
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    elif isinstance(value, dict):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{n}]", part) for n, part in enumerate(value))
    elif not isinstance(value, type):
        yield from ((f".{name}", part) for name, part in _attributes(value).items())


def _attributes(value: Any) -> dict[str, Any]:
    """What is pickled of an object's attributes, as it says by ``__getstate__`` or otherwise."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:
        return {}
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    attributes: dict[str, Any] = {}
    for part in state if isinstance(state, tuple) else (state,):
        attributes |= part if isinstance(part, dict) else {}
    return attributes


def _described(value: Any) -> str:
    advice = "or use multiprocessing_context='fork'"
    if isinstance(value, types.FunctionType):
        code = value.__code__
        place = f"{code.co_filename}:{code.co_firstlineno}"
        if value.__name__ == "<lambda>":
            return (
                f"a lambda ({place}); write it as a function (def) at the top of a module, {advice}"
            )
        return (
            f"the function {value.__qualname__} ({place}), which is not found under this name; "
            f"define it at the top of a module, {advice}"
        )
    kind = value if isinstance(value, type) else type(value)
    if "<locals>" in kind.__qualname__:
        what = "the class" if isinstance(value, type) else "an object of the class"
        return (
            f"{what} {kind.__qualname__}, which is defined in a function; define it at the top of "
            f"a module, {advice}"
        )
    return (
        f"a {kind.__module__}.{kind.__qualname__} ({_fault(value)}); create it in the worker, at "
        f"its first use, and leave it out in __getstate__, {advice}"
    )


class _NoData(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


class _Pickler(ForkingPickler):
    """Pickles as the start of a worker does, but leaves out tensors and arrays, which can be."""

    def persistent_id(self, value: Any) -> str | None:
        is_plain = type(value) is np.ndarray and value.dtype.hasobject is False
        return "data" if is_plain or isinstance(value, torch.Tensor) else None


class _Starting:
    """A process that is being started, for locks and the like, which are pickled only for one."""

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor

    def DupFd(self, descriptor: int) -> int:  # Python's name
        return descriptor


def _fault(value: Any) -> str | None:
    """Why a value cannot be pickled; None if it can."""
    before = context.get_spawning_popen()
    context.set_spawning_popen(_Starting())  # type: ignore[arg-type]
    try:
        _Pickler(_NoData(), pickle.HIGHEST_PROTOCOL).dump(value)
    except Exception as error:
        return str(error) or type(error).__name__
    finally:
        context.set_spawning_popen(before)
    return None
