"""The result of a fetch: a batch, and the samples that were left out of it."""

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
    """A sample that ``on_error="skip"`` left out: its index, its position and its exception."""

    index: Any
    position: int
    error: str


class Nothing(Enum):
    """Stands where a batch would be."""

    NO_BATCH = "no batch"


NO_BATCH = Nothing.NO_BATCH


class Fetched(NamedTuple):
    """The result of a request.

    Attributes:
        batch: ``NO_BATCH`` where a stream has ended, or was only read up to an offset.
        skipped: the samples that are missing from it.
        originals: its dtypes before the conversion.
        shard: the state of its shard after it; None where the dataset is no stream.
    """

    batch: Any
    skipped: tuple[Skipped, ...] = ()
    originals: Originals = ()
    shard: Any = None


def warn_of_skipped(request: Any, fetched: Fetched) -> None:
    """Warn of each sample that was left out."""
    for skipped in fetched.skipped:
        warn(
            f"on_error='skip' left out sample index {skipped.index!r} (epoch {request.epoch}, "
            f"step {request.step}, position {skipped.position}): {skipped.error}",
            RuntimeWarning,
        )
