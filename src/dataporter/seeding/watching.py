"""Watching: the states of generators that user code reads, and the warnings that it shows.

A generator that is read has not moved, but what was read is as random as a draw:
`torch.initial_seed` is the seed itself, and `torch.random.fork_rng` draws and puts the state back.
No generator shows that it was read, so the functions that read it note it while a batch is made.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections import Counter
from functools import wraps
from typing import Any, cast

import numpy as np
import torch

from dataporter.seeding.generators import NUMPY, PYTHON, TORCH, GlobalGenerator

__all__ = ["Watch"]


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
        for watch in _watches:
            watch.read.add(generator)
        return function(*arguments, **named)

    return noting


# What reads a state: where it is found, under which name, and what stands there meanwhile.
_READERS = [
    (vars(module), name, vars(module)[name], _noting(vars(module)[name], generator))
    for module, name, generator in (
        (random, "getstate", PYTHON),
        (np.random, "get_state", NUMPY),
        (np.random.mtrand, "get_state", NUMPY),
        (torch, "initial_seed", TORCH),
        (torch.random, "initial_seed", TORCH),
        (torch, "get_rng_state", TORCH),
        (torch.random, "get_rng_state", TORCH),
    )
]
_show_plainly: Any = warnings.showwarning


def _show(message: Any, category: Any, filename: str, lineno: int, *others: Any) -> None:
    shown = (str(message), category, filename, lineno)
    is_news = [watch.is_news(shown) for watch in _watches]  # each has to know
    if all(is_news):
        _show_plainly(message, category, filename, lineno, *others)


def _install() -> None:
    global _show_plainly
    for module, name, plain, noting in _READERS:
        if module[name] is plain:  # and not what somebody else has put there
            module[name] = noting
    _show_plainly, warnings.showwarning = warnings.showwarning, cast("Any", _show)


def _remove() -> None:
    for module, name, plain, noting in _READERS:
        if module[name] is noting:
            module[name] = plain
    if warnings.showwarning is _show:
        warnings.showwarning = _show_plainly
