"""Randomness: the states of generators, and how to fix a source of randomness in a process."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

__all__ = ["Generators", "fix", "generator_state", "restore_generator"]

Generators = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)

_NOW = 1_700_000_000.0
_PID = 4242


def generator_state(generator: Any) -> Any:
    """The state of a generator of Python, NumPy or torch."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.get_state()


def restore_generator(generator: Any, state: Any) -> None:
    """Set a generator to a state from :func:`generator_state`."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def fix(source: str) -> None:
    """Make a source the same in every process; call this before the user's modules are imported."""
    _SOURCES[source]()


def _time() -> None:
    for name in ("time", "monotonic", "perf_counter", "process_time"):
        setattr(time, name, lambda: _NOW)
        setattr(time, f"{name}_ns", lambda: int(_NOW * 1e9))

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Fixed:
            return cls.fromtimestamp(_NOW, tz)

        @classmethod
        def utcnow(cls) -> Fixed:
            return cls.fromtimestamp(_NOW, datetime.timezone.utc).replace(tzinfo=None)

    vars_of_module: Any = datetime
    vars_of_module.datetime = Fixed


def _pid() -> None:
    os.getpid = lambda: _PID
    os.getppid = lambda: _PID - 1


def _entropy() -> None:
    counter = itertools.count()

    def urandom(size: int) -> bytes:
        return hashlib.shake_128(str(next(counter)).encode()).digest(size)

    seed = random.Random.seed

    def seeded(self: random.Random, a: Any = None, version: int = 2) -> None:
        seed(self, next(counter) if a is None else a, version)

    os.urandom = urandom
    # SystemRandom reads this one, and with it `secrets` and NumPy's unseeded generators.
    if hasattr(random, "_urandom"):
        random._urandom = urandom
    patched: Any = random.Random
    patched.seed = seeded


_SOURCES: dict[str, Callable[[], Any]] = {
    "python": lambda: random.seed(0),
    "numpy": lambda: np.random.seed(0),
    "torch": lambda: torch.manual_seed(0),
    "time": _time,
    "pid": _pid,
    "entropy": _entropy,
}
