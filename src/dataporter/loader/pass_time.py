"""Pass time: how long the training loop has waited for the batches of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Generic, TypeVar

__all__ = ["PassTime", "Timed"]

Batch = TypeVar("Batch")


class PassTime:
    """The time of a pass, from where it is first asked for a batch to where it last answered.

    Attributes:
        wait_seconds: how long it was asked.
        batches: how many it has delivered.
    """

    __slots__ = ("_first", "_last", "batches", "wait_seconds")

    def __init__(self) -> None:
        self.wait_seconds = 0.0
        self.batches = 0
        self._first = self._last = 0.0

    def count(self, asked: float, batches: int) -> None:
        """Count an answer, at this moment.

        Args:
            asked: when the loop has asked, by ``time.perf_counter``.
            batches: how many the pass has delivered.
        """
        self._last = now = perf_counter()
        self.wait_seconds += now - asked
        self.batches = batches
        self._first = self._first or asked

    @property
    def wait_share(self) -> float:
        """The share of the time that was waiting; 0 before anything was asked."""
        seconds = self._last - self._first
        return self.wait_seconds / seconds if seconds else 0.0

    @property
    def batches_per_second(self) -> float:
        """Batches in a second of that time; 0 before anything was asked."""
        seconds = self._last - self._first
        return self.batches / seconds if seconds else 0.0


class Timed(Generic[Batch], Iterator[Batch]):
    """The batches of a pass, counted in its time."""

    def __init__(self, batches: Iterator[Batch], time: PassTime) -> None:
        self._batches, self._time, self._delivered = batches, time, 0

    def __next__(self) -> Batch:
        asked = perf_counter()
        try:
            batch = next(self._batches)
            self._delivered += 1
            return batch
        finally:
            self._time.count(asked, self._delivered)
