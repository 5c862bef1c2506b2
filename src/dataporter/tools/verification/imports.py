"""Imports: which modules take long to import, and may be imported once for many processes."""

from __future__ import annotations

import importlib
import importlib.machinery
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from dataporter.tools.verification.factory import Factory, Setting
from dataporter.tools.verification.reachable import is_of_library

__all__ = ["Imports", "imports_of", "share", "watched"]

_SLOW = 1.0
# They start threads at import, and fail in forks of a process that has imported them.
_HOSTILE = frozenset({"jax", "tensorflow"})
_DESCRIPTORS, _THREADS = "/proc/self/fd", "/proc/self/task"


@dataclass(slots=True)
class Imports:
    """Modules that a process has imported.

    Attributes:
        libraries: names of those of libraries, in the order of their import.
        slow: those of the user that take long, each with the directory from which it is imported.
            What an import would share with forks (an open file, a thread, a seeded generator) is
            part of what is verified, so modules with such effects are left out.
    """

    libraries: tuple[str, ...] = ()
    slow: tuple[tuple[str, str], ...] = ()

    def __or__(self, other: Imports) -> Imports:
        """Those of both."""
        return Imports(
            tuple(dict.fromkeys((*self.libraries, *other.libraries))),
            tuple(dict.fromkeys((*self.slow, *other.slow))),
        )


@dataclass(slots=True)
class _Watch:
    slow: list[tuple[str, str]] = field(default_factory=list)
    with_effects: set[str] = field(default_factory=set)
    within: list[float] = field(default_factory=lambda: [0.0])

    def sound(self) -> tuple[tuple[str, str], ...]:
        """The slow modules, unless a package has effects that is imported with them."""
        return tuple(
            (name, root)
            for name, root in self.slow
            if name in sys.modules and self.with_effects.isdisjoint(_packages_of(name))
        )


@contextmanager
def watched(factory: Factory, found: Imports) -> Iterator[None]:
    """Fill in what is imported in the meantime, by anything but the loader's own module."""
    before = frozenset(sys.modules)
    own = str(factory.target).rpartition(":")[0]
    own = Path(own).stem if own.endswith(".py") else own
    watch = _Watch()
    loader: Any = importlib.machinery.SourceFileLoader
    exec_module = loader.exec_module

    def timed(self: Any, module: ModuleType) -> None:
        is_users = not is_of_library(module)
        effects = _effects() if is_users else None
        begun = time.perf_counter()
        watch.within.append(0.0)
        try:
            exec_module(self, module)
        finally:
            taken = time.perf_counter() - begun
            alone = taken - watch.within.pop()
            watch.within[-1] += taken
        if is_users and effects != _effects():
            watch.with_effects.add(module.__name__)
        elif is_users and alone >= _SLOW and module.__name__ != own:
            watch.slow.append((module.__name__, str(_root_of(module))))

    loader.exec_module = timed
    try:
        yield
    finally:
        del loader.exec_module  # it was inherited
        names = [name for name in sys.modules if name not in before]
        found.libraries = tuple(
            name
            for name in names
            if name.partition(".")[0] not in (own.partition(".")[0], "__main__")
            and is_of_library(sys.modules.get(name))
        )
        found.slow = watch.sound()


def imports_of(factory: Factory) -> Imports:
    """What a loader imports to make its first batch, without workers, which would import it."""
    found = Imports()
    # Some datasets can be read in workers only; what they have imported until then is found.
    with suppress(Exception, SystemExit), watched(factory, found):
        next(iter(factory.loader(Setting(num_workers=0))), None)
    return found


def share(libraries: Sequence[str], slow: Sequence[Sequence[str]] = ()) -> None:
    """Import modules here, so that forks of this process need not; each is tried once."""
    if not _HOSTILE.isdisjoint(name.partition(".")[0] for name in libraries):
        return
    for name in libraries:
        _import(name)
    for name, root in slow:
        sys.path.insert(0, root)
        _import(name)
        with suppress(ValueError):
            sys.path.remove(root)


def _import(name: str) -> None:
    if name in sys.modules or name in _tried:
        return
    _tried.add(name)
    # Some cannot be imported by themselves; the process that needs them imports them.
    with suppress(BaseException):
        importlib.import_module(name)


_tried: set[str] = set()


def _packages_of(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _root_of(module: ModuleType) -> Path:
    file = Path(str(module.__file__)).resolve()
    levels = module.__name__.count(".") + (file.name == "__init__.py")
    return file.parents[levels]


def _effects() -> tuple[Any, ...]:
    """What an import may change that forks would share, or that a fork would seed anew."""
    if not os.path.isdir(_DESCRIPTORS):
        return (object(),)  # unknown, so that it equals no other
    numpy_state: Any = np.random.get_state()
    return (
        sorted(os.listdir(_DESCRIPTORS)),
        sorted(os.listdir(_THREADS)),
        len(multiprocessing.active_children()),
        random.getstate(),
        numpy_state[1].tobytes(),
        numpy_state[2:],
        torch.get_rng_state().numpy().tobytes(),
    )
