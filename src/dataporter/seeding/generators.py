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
    "seed_generators",
]


def seed_generators(key: int) -> None:
    """Seed Python's ``random``, NumPy's legacy generator and torch's default CPU generator.

    NumPy and torch run the same Mersenne Twister and torch reads 32 bits of a seed, so each is
    given its own half of the key: equal halves would make the two streams copies of one another.
    """
    random.seed(key)
    try:
        np.random.seed(key >> 32)
    except TypeError:  # somebody chose another bit generator with numpy.random.set_bit_generator
        generator = get_bit_generator()
        generator.state = type(generator)(key >> 32).state
    torch.default_generator.manual_seed(key & 0xFFFFFFFF)


def global_state() -> tuple[Any, bytes, bytes]:
    """The states of the three, to be compared: whether anybody has drawn."""
    return (
        random.getstate(),
        numpy_state.words(),
        torch.default_generator.get_state().numpy().tobytes(),
    )


@contextmanager
def isolated_generators() -> Iterator[None]:
    """Put the states of the three global generators back when the block ends."""
    python_state = random.getstate()
    legacy_state = numpy_state.save()
    torch_state = torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        numpy_state.put_back(legacy_state)
        torch.default_generator.set_state(torch_state)
