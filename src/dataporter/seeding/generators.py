"""The global generators of Python, NumPy and torch: seeded, saved and restored (C8)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from dataporter.seeding import numpy_state, python_state, torch_state

__all__ = [
    "GENERATORS",
    "NUMPY",
    "PYTHON",
    "TORCH",
    "GlobalGenerator",
    "global_state",
    "isolated_generators",
    "restore_generators",
    "saved_generators",
    "seed_generators",
]

_WORD = (1 << 32) - 1
_random_seed = random.seed


@dataclass(frozen=True, slots=True, eq=False)
class GlobalGenerator:
    """A generator that all code of a process shares.

    Attributes:
        name: for people.
        seed: seeds it with a key of 64 bits.
        save: its whole state, which equals another if nothing was drawn or set in between.
        restore: returns it to a saved state.
    """

    name: str
    seed: Callable[[int], None]
    save: Callable[[], Any]
    restore: Callable[[Any], None]

    def __reduce__(self) -> Any:
        return _by_name, (self.name,)


def _seed_numpy(key: int) -> None:
    numpy_state.seed(key >> 32)


def _seed_torch(key: int) -> None:
    torch.default_generator.manual_seed(key & _WORD)


# NumPy and torch run the same Mersenne Twister, and torch reads 32 bits of a seed. Each receives
# a different half of the key, because equal seeds would make the two streams identical.
PYTHON = GlobalGenerator("Python's random", _random_seed, python_state.save, python_state.restore)
NUMPY = GlobalGenerator("numpy.random", _seed_numpy, numpy_state.save, numpy_state.restore)
TORCH = GlobalGenerator(
    "torch's default generator", _seed_torch, torch_state.save, torch_state.restore
)
GENERATORS = (PYTHON, NUMPY, TORCH)


def _by_name(name: str) -> GlobalGenerator:
    return next(generator for generator in GENERATORS if generator.name == name)


def seed_generators(key: int) -> None:
    """Seed Python's ``random``, NumPy's legacy generator and torch's default CPU generator."""
    for generator in GENERATORS:
        generator.seed(key)


def saved_generators() -> tuple[Any, ...]:
    """The states of the three generators, to compare, and for :func:`restore_generators`."""
    return python_state.save(), numpy_state.save(), torch_state.save()


def restore_generators(saved: tuple[Any, ...]) -> None:
    """Return the three generators to the states that were saved."""
    of_python, of_numpy, of_torch = saved
    python_state.restore(of_python)
    numpy_state.restore(of_numpy)
    torch_state.restore(of_torch)


global_state = saved_generators


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Return the three generators to their states when the block ends."""
    saved = saved_generators()
    try:
        yield
    finally:
        restore_generators(saved)
