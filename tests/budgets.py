"""What a law costs: ``make test`` runs few of its cases, ``make test-all`` all of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import settings


def cases(full: int) -> int:
    """``max_examples`` of a law that does not draw 100 cases, scaled to this run.

    The profile that is loaded says how many cases a law draws that asks for no number.
    """
    return max(3, full * settings.default.max_examples // 100)


def slow(*parameters: Any) -> list[Any]:
    """Parameters that only ``make test-all`` runs; a tuple is the values of several arguments."""
    return [
        pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow)
        for each in parameters
    ]


def slow_except(quick: Collection[Any], parameters: Collection[Any]) -> list[Any]:
    """All ``parameters``, of which ``make test`` runs those in ``quick``."""
    found = [*quick, *slow(*(each for each in parameters if each not in quick))]
    assert len(found) == len(list(parameters)), f"not all of {quick} are parameters"
    return found
