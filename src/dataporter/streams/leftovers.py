"""Leftovers: the samples after the last whole batch of each shard, joined into batches (C10)."""

from __future__ import annotations

import pickle
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dataporter.fetch.failure import Failure
from dataporter.shared.pickling import dumps

__all__ = ["Bundle", "Leftover", "Leftovers"]


class Bundle:
    """Samples on their way from one worker to another.

    The training process, which passes them on, keeps their pickle: it need not be able to load
    them. Without workers nothing is pickled.
    """

    __slots__ = ("_pickled", "_samples")

    def __init__(self, samples: list[Any] | None, pickled: bytes | None = None) -> None:
        self._samples = samples
        self._pickled = pickled

    def samples(self) -> list[Any]:
        """The samples."""
        if self._samples is None:
            assert self._pickled is not None
            self._samples, self._pickled = pickle.loads(self._pickled), None
        return self._samples

    def __reduce__(self) -> tuple[Any, ...]:
        pickled = self._pickled
        if pickled is None:
            pickled = dumps(self._samples)
        return Bundle, (None, pickled)


class Leftover(NamedTuple):
    """Consecutive samples from the end of a shard.

    Attributes:
        shard: number of the shard.
        first: offset of the first sample.
        length: number of samples, with those that failed.
        missing: offsets of the samples that failed and have no substitute.
        failures: what failed.
        ends: whether the shard has no samples after these.
        bundle: where the samples are.
        start: number of samples in the bundle before these.
    """

    shard: int
    first: int
    length: int
    missing: tuple[int, ...]
    failures: tuple[Failure, ...]
    ends: bool
    bundle: Bundle
    start: int = 0

    @property
    def stop(self) -> int:
        """The offset after the last sample."""
        return self.first + self.length

    def samples(self) -> list[Any]:
        """The samples that did not fail."""
        return self.bundle.samples()[self.start : self.start + self.length - len(self.missing)]

    def split(self, count: int) -> tuple[Leftover, Leftover]:
        """The first ``count`` samples, and the rest."""
        at = self.first + count
        before = tuple(offset for offset in self.missing if offset < at)
        head = self._replace(
            length=count,
            missing=before,
            failures=tuple(one for one in self.failures if one.position < at),
            ends=False,
        )
        tail = self._replace(
            first=at,
            length=self.length - count,
            missing=self.missing[len(before) :],
            failures=self.failures[len(head.failures) :],
            start=self.start + count - len(before),
        )
        return head, tail


@dataclass(slots=True)
class Leftovers:
    """The leftovers of a rank's shards, in the order in which the shards ended.

    They are joined as soon as they make a batch, so fewer than two batches of samples are held.
    Each is shorter than a batch, so a batch of them always uses one up.
    """

    _held: deque[Leftover] = field(default_factory=deque)
    count: int = 0

    def add(self, leftover: Leftover) -> None:
        """Add the leftover of a shard that has ended."""
        self._held.append(leftover)
        self.count += leftover.length

    def take(self, count: int) -> tuple[Leftover, ...]:
        """Take out the first ``count`` samples, or all of them if there are fewer."""
        taken: list[Leftover] = []
        left = min(count, self.count)
        self.count -= left
        while left:
            leftover = self._held.popleft()
            if leftover.length > left:
                leftover, rest = leftover.split(left)
                self._held.appendleft(rest)
            taken.append(leftover)
            left -= leftover.length
        return tuple(taken)
