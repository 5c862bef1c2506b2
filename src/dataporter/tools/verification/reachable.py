"""Reachable objects: all that a dataset refers to, by name, so that a report can name a change."""

from __future__ import annotations

import inspect
import io
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dataporter.tools.verification.randomness import Generators

__all__ = [
    "is_of_library",
    "is_open_file",
    "reachable",
    "snapshot",
]

_MOST = 5000
_MOST_ITEMS = 64
_DEEPEST = 8
_MOST_BYTES = 1 << 20
_DATABASES = ("sqlite3", "h5py", "lmdb")
_OURS = ("dataporter", "torch", "torchdata", "numpy")


def reachable(roots: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The objects that can be reached from some roots, each with its name.

    These are attributes, items of containers, variables that functions close over, the user's
    classes, and the globals of the modules that define those.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any, int]] = [(name, thing, 0) for name, thing in roots.items()]
    count = 0
    while waiting and count < _MOST:
        name, thing, depth = waiting.pop(0)
        if id(thing) in seen and not isinstance(thing, int | str | float | bool | None):
            continue
        seen.add(id(thing))
        count += 1
        yield name, thing
        if depth < _DEEPEST and not isinstance(thing, Generators):
            waiting += [(inner, one, depth + 1) for inner, one in _parts(name, thing)]


def snapshot(roots: Mapping[str, Any]) -> dict[str, Any]:
    """A comparable value of each reachable object that has one, by name."""
    return {name: token for name, thing in reachable(roots) if (token := _token(thing)) is not None}


def is_open_file(thing: Any) -> bool:
    """Whether an object is an open file or database that a fork would share."""
    if type(thing).__module__.partition(".")[0] in _DATABASES:
        return True
    try:
        return isinstance(thing, io.IOBase) and thing.fileno() > 2
    except (OSError, ValueError):  # in memory, or closed
        return False


def _parts(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, ModuleType):
        for key, value in vars(thing).items():
            # Modules that it imports are not the user's.
            if not key.startswith("__") and not isinstance(value, ModuleType):
                yield f"{name}.{key}", value
    elif isinstance(thing, Mapping):
        for key, value in list(thing.items())[:_MOST_ITEMS]:
            yield f"{name}[{key!r}]", value
    elif isinstance(thing, list | tuple):
        for index, value in enumerate(thing[:_MOST_ITEMS]):
            yield f"{name}[{index}]", value
    elif isinstance(thing, partial):
        yield f"{name}.func", thing.func
        yield f"{name}.args", thing.args
        yield f"{name}.keywords", thing.keywords
    elif inspect.isfunction(thing):
        for variable, cell in zip(thing.__code__.co_freevars, thing.__closure__ or ()):
            try:
                yield f"{name}'s variable {variable}", cell.cell_contents
            except ValueError:  # not set yet
                continue
        yield f"{name}.__dict__", vars(thing)
        yield from _module_of(thing)
    elif inspect.ismethod(thing):
        yield name, thing.__self__
    elif inspect.isclass(thing):
        if _is_users(thing):
            for key, value in vars(thing).items():
                is_cache = hasattr(value, "cache_info")
                if not key.startswith("__") and (is_cache or not inspect.isroutine(value)):
                    yield f"{thing.__qualname__}.{key}", value
            yield from _module_of(thing)
    elif not isinstance(thing, torch.Tensor | np.ndarray):
        for key, value in getattr(thing, "__dict__", {}).items():
            yield f"{name}.{key}", value
        if _is_users(type(thing)):
            yield type(thing).__qualname__, type(thing)


def _module_of(thing: Any) -> Iterator[tuple[str, Any]]:
    if _is_users(thing):
        module = sys.modules.get(thing.__module__)
        if module is not None:
            yield thing.__module__.rpartition(".")[2], module


def _is_users(thing: Any) -> bool:
    """Whether a class or function belongs neither to a library nor to Python."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    if getattr(module, "__file__", None) is None or module is None:
        return False
    return module.__name__.partition(".")[0] not in _OURS and not is_of_library(module)


def is_of_library(module: Any) -> bool:
    """Whether a module is in a directory where libraries are installed."""
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and any(map(Path(file).resolve().is_relative_to, _libraries()))


@cache
def _libraries() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    known = [paths[kind] for kind in ("stdlib", "purelib", "platlib")]
    # Those of the user, of Debian, and of the interpreter below a virtual environment.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return tuple(Path(path).resolve() for path in (*known, *others))


def _token(thing: Any) -> Any:
    if isinstance(thing, Generators):
        return None  # these are examined separately
    if hasattr(thing, "cache_info") and callable(thing):
        return ("cache", thing.cache_info().currsize)
    if isinstance(thing, int | float | str | bytes | bool | None):
        return thing if thing is not None else "None"
    if isinstance(thing, torch.Tensor | np.ndarray | np.generic):
        array = np.asarray(
            thing.detach().cpu().float() if isinstance(thing, torch.Tensor) else thing
        )
        small = array.nbytes <= _MOST_BYTES and not array.dtype.hasobject
        return (str(thing.dtype), tuple(thing.shape), array.tobytes() if small else b"")
    if isinstance(thing, Mapping | list | tuple | set | frozenset) or hasattr(thing, "maxlen"):
        return (type(thing).__name__, len(thing))
    return None
