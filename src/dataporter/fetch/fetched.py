"""What a fetch gives: a batch, and what was left out of it."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from dataporter.convert import Originals
from dataporter.errors import warn

__all__ = [
    "NO_BATCH",
    "Fetched",
    "Nothing",
    "Skipped",
    "warn_of_skipped",
]


class Skipped(NamedTuple):
    """A sample that ``on_error="skip"`` left out: its index, its position, and what it raised."""

    index: Any
    position: int
    error: str


class Nothing(Enum):
    """Stands where a batch would be."""

    NO_BATCH = "no batch"


NO_BATCH = Nothing.NO_BATCH


class Fetched(NamedTuple):
    """What came of a request.

    Attributes:
        batch: ``NO_BATCH`` where a stream had nothing more, or was only to come to a place.
        skipped: what is missing from it.
        originals: which dtypes it had before it was converted.
        shard: of a stream, how far its shard has come.
    """

    batch: Any
    skipped: tuple[Skipped, ...] = ()
    originals: Originals = ()
    shard: Any = None


def warn_of_skipped(request: Any, fetched: Fetched) -> None:
    """A warning for each sample that was left out, from what serves the loop's ``next()``."""
    for skipped in fetched.skipped:
        warn(
            f"on_error='skip' left out sample index {skipped.index!r} (epoch {request.epoch}, "
            f"step {request.step}, position {skipped.position}): {skipped.error}",
            RuntimeWarning,
        )
