"""Checks: whole numbers and choices, as arguments are given."""

from __future__ import annotations

import operator
from typing import Any

from dataporter.errors import ConfigurationError

__all__ = [
    "positive_number",
    "seed_checked",
    "whole_number",
]

# torch draws its seeds as non-negative int64, and JSON readers elsewhere stop there as well.
SEED_LIMIT = 1 << 63


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
            f"{name}={value!r}: expected a whole number from {lowest} to {limit - 1}"
        )
    return number
