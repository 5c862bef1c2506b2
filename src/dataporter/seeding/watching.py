"""Watching: the states of generators that user code reads, and the warnings that it shows.

A generator that is read has not moved, but what was read is as random as a draw:
`torch.initial_seed` is the seed itself, and `torch.random.fork_rng` draws and puts the state back.
No generator shows that it was read, so the functions that read it note it while a batch is made.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import warnings
from collections import Counter
from functools import wraps
from typing import Any, cast

import numpy as np
import torch

from dataporter.seeding.generators import GENERATORS, NUMPY, PYTHON, TORCH, GlobalGenerator

__all__ = ["Watch", "note_read"]


class Watch:
    """Watches while a batch is made; another attempt at it shows no warning a second time.

    Attributes:
        read: the generators whose states were read in this attempt.
    """

    __slots__ = ("_again", "_shown", "read")

    def __init__(self) -> None:
        self.read: set[GlobalGenerator] = set()
        self._shown: list[Any] = []
        self._again: Counter[Any] | None = None

    def __enter__(self) -> Watch:
        with _lock:
            _watches.append(self)
            if len(_watches) == 1:
                _install()
        return self

    def __exit__(self, *exception: object) -> None:
        with _lock:
            _watches.remove(self)
            if not _watches:
                _remove()

    def begin_again(self) -> None:
        """The batch is made once more: what the last attempt has shown is not shown again."""
        self.read.clear()
        self._again = (self._again or Counter()) | Counter(self._shown)
        self._shown.clear()

    def is_news(self, shown: Any) -> bool:
        """Whether no earlier attempt has shown this warning; notes that it is shown."""
        self._shown.append(shown)
        return self._again is None or self._shown.count(shown) > self._again[shown]


_lock = threading.Lock()
_watches: list[Watch] = []


def _noting(function: Any, generator: GlobalGenerator) -> Any:
    @wraps(function)
    def noting(*arguments: Any, **named: Any) -> Any:
        note_read(generator)
        return function(*arguments, **named)

    return noting


# What reads a state: where it is found, under which name, and what stands there meanwhile.
_readers = [
    (vars(module), name, vars(module)[name], _noting(vars(module)[name], generator))
    for module, name, generator in (
        (random, "getstate", PYTHON),
        (np.random, "get_state", NUMPY),
        (np.random, "get_bit_generator", NUMPY),
        (torch, "initial_seed", TORCH),
        (torch, "get_rng_state", TORCH),
    )
]
_NOTING = {id(plain): (plain, noting) for _, _, plain, noting in _readers}
_looked_through: set[str] = {"random", "numpy.random", "torch"}
_modules = 0  # how many there were then


def note_read(generator: GlobalGenerator) -> None:
    """Count a generator as read, where it was read by other means."""
    for watch in _watches:
        watch.read.add(generator)


def _find_other_names() -> None:
    """Find the functions where modules have imported them by name."""
    global _modules
    _modules = len(sys.modules)
    for name, module in list(sys.modules.items()):
        # Ours read states only to put them back.
        if name in _looked_through or name.partition(".")[0] == "dataporter":
            continue
        _looked_through.add(name)
        names = getattr(module, "__dict__", None)
        for own_name, value in list(names.items()) if type(names) is dict else ():
            if id(value) in _NOTING:
                _readers.append((cast("Any", names), own_name, *_NOTING[id(value)]))


class _Showing:
    """Stands in for ``warnings.showwarning`` while batches are made; then it passes all on."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    def __call__(
        self, message: Any, category: Any, filename: str, lineno: int, *others: Any
    ) -> None:
        shown = (str(message), category, filename, lineno)
        judges = _watches if self is _showing else ()
        is_news = [watch.is_news(shown) for watch in judges]  # each has to know
        if all(is_news):
            self.plain(message, category, filename, lineno, *others)


# The one that judges. Others may have kept one that is older, and call it.
_showing: _Showing | None = None


def _install() -> None:
    global _showing
    if len(sys.modules) != _modules:
        _find_other_names()
    for module, name, plain, noting in _readers:
        if module.get(name) is plain:  # and not what somebody else has put there
            module[name] = noting
    present: Any = warnings.showwarning
    showing = present if isinstance(present, _Showing) else _Showing(present)
    _showing, warnings.showwarning = showing, cast("Any", showing)


def _remove() -> None:
    global _showing
    for module, name, plain, noting in _readers:
        if module.get(name) is noting:
            module[name] = plain
    showing, _showing = _showing, None
    if showing is not None and cast("Any", warnings.showwarning) is showing:
        warnings.showwarning = showing.plain


def _note_fork() -> None:
    for generator in GENERATORS:
        note_read(generator)  # a fork has copies of them


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_note_fork)
