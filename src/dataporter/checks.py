"""Checks: numbers, flags and choices, as arguments are given."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from dataporter.errors import ConfigurationError

__all__ = [
    "flag",
    "given",
    "is_one_of",
    "positive_number",
    "seed_checked",
    "whole_number",
]

# torch draws its seeds as non-negative int64, and JSON readers elsewhere stop there as well.
SEED_LIMIT = 1 << 63


def given(name: str, value: Any) -> str:
    """An argument as it was given, for the beginning of a message; a long value is cut."""
    text = " ".join(repr(value).split())
    return f"{name}={text if len(text) <= 80 else text[:77] + '...'}"


def flag(name: str, value: Any) -> bool:
    """True or False, or what a command line or NumPy has for them.

    Not any object that is true: the text ``"False"`` is as well.
    """
    if isinstance(value, bool | int | np.bool_) and value in (0, 1):
        return bool(value)
    raise ConfigurationError(f"{given(name, value)}: expected True or False")


def is_one_of(value: Any, *choices: str) -> bool:
    """Whether an argument is one of these texts. Arrays compare as arrays, so not by ``in``."""
    return isinstance(value, str) and value in choices


def seed_checked(seed: Any) -> int | None:
    """A seed within 0..2**63-1, or None."""
    if seed is None:
        return None
    return _whole("seed", seed, SEED_LIMIT)


def whole_number(name: str, value: Any) -> int:
    """An epoch or step: a whole number from 0."""
    return _whole(name, value, SEED_LIMIT)


def positive_number(name: str, value: Any) -> int:
    """A whole number from 1."""
    return _whole(name, value, SEED_LIMIT, lowest=1)


def _whole(name: str, value: Any, limit: int, lowest: int = 0) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not lowest <= number < limit:
        raise ConfigurationError(
            f"{given(name, value)}: expected a whole number from {lowest} to {limit - 1}"
        )
    return number
