"""Keyed randomness: the hash behind every seed, and the seeding of the global generators (C8)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator

from dataporter.seeding import numpy_state

__all__ = [
    "global_state",
    "isolated_generators",
    "restore_generators",
    "saved_generators",
    "seed_generators",
]


def seed_generators(key: int) -> None:
    """Seed Python's ``random``, NumPy's legacy generator and torch's default CPU generator.

    NumPy and torch run the same Mersenne Twister, and torch reads 32 bits of a seed. Each receives
    a different half of the key, because equal seeds would make the two streams identical.
    """
    random.seed(key)
    try:
        np.random.seed(key >> 32)
    except TypeError:  # numpy.random.set_bit_generator set a different kind
        generator = get_bit_generator()
        generator.state = type(generator)(key >> 32).state
    torch.default_generator.manual_seed(key & 0xFFFFFFFF)


def global_state() -> tuple[Any, bytes, bytes]:
    """The states of the three generators, to detect whether anything was drawn in between."""
    return (
        random.getstate(),
        numpy_state.words(),
        torch.default_generator.get_state().numpy().tobytes(),
    )


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Restore the states of the three global generators when the block ends."""
    saved = saved_generators()
    try:
        yield
    finally:
        restore_generators(saved)


def saved_generators() -> tuple[Any, ...]:
    """The states of the three generators, for :func:`restore_generators`."""
    return random.getstate(), numpy_state.save(), torch.default_generator.get_state()


def restore_generators(saved: tuple[Any, ...]) -> None:
    """Set the three generators to the states that were saved."""
    python_state, legacy_state, torch_state = saved
    random.setstate(python_state)
    numpy_state.restore(legacy_state)
    torch.default_generator.set_state(torch_state)
