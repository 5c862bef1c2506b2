"""Keyed: a batch as if all global generators were seeded, at the cost of those it draws from (C8).

Seeding all three takes 9 us, several times as long as reading a small sample. So only generators
that the dataset was seen to draw from are seeded, and the others are left alone. Where one of these
has moved by the end of the batch, it is put back, the batch is made again with it seeded, and it
counts as drawn from ever after. So whatever was seen before, the batch is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any, Protocol, TypeVar

from dataporter.seeding.generators import (
    GENERATORS,
    GlobalGenerator,
    restore_generators,
    saved_generators,
    seed_generators,
)
from dataporter.seeding.watching import Watch

__all__ = ["UNSEEDED", "DrawnFrom", "Seeds", "keyed"]

T = TypeVar("T")

# So many samples are looked at before some generators are left alone.
_LOOKED_AT = 8
# Seconds. Beside a sample that takes longer, seeding all generators costs less than a twentieth, so
# all are seeded, and no sample that is slow to read is ever read twice.
_SLOW = 0.0002


class DrawnFrom:
    """The generators that a dataset draws from, as far as its batches have shown.

    Attributes:
        samples: those drawn from while samples are read.
        batch: those drawn from while samples are made a batch.
        is_known: whether enough samples were looked at, one by one.
        looked_at: how many were, or how many batches, where each has one seed.
        fastest: seconds that the fastest of these took.
    """

    __slots__ = ("batch", "fastest", "is_known", "looked_at", "samples")

    def __init__(self) -> None:
        self.samples: tuple[GlobalGenerator, ...] = ()
        self.batch: tuple[GlobalGenerator, ...] = ()
        self.is_known = False
        self.looked_at = 0
        self.fastest = math.inf

    def add_of_samples(self, drawn: Iterable[GlobalGenerator]) -> None:
        """Count generators as drawn from while samples are read."""
        self.samples = _joined(self.samples, drawn)

    def add_of_batch(self, drawn: Iterable[GlobalGenerator]) -> None:
        """Count generators as drawn from while samples are made a batch."""
        self.batch = _joined(self.batch, drawn)


class Seeds(Protocol):
    """The seeds of one attempt to make a batch, for the code that makes it.

    Attributes:
        each: seeds what has to be seeded before a sample, or before a batch that has one seed, by
            its key; None if nothing has.
    """

    each: Callable[[int], None] | None

    def failed(self, key: int) -> None:
        """A sample has failed that was seeded with ``key``; another may take its place.

        From here on everything is seeded, so that nothing behind this is made again.
        """

    def collating(self, key: int) -> None:
        """All samples are read, the last one with this key, and are now made a batch."""


def keyed(drawn_from: DrawnFrom, make: Callable[[Seeds], T]) -> T:
    """What ``make`` returns or raises if all generators are seeded; afterwards they are as before.

    Args:
        drawn_from: what is known of the dataset; learns more.
        make: makes a batch, and seeds as it is told. May be called several times, up to the last of
            which each result is discarded.
    """
    before = saved_generators()
    with Watch() as watch:
        try:
            while True:
                seeds = _Seeds(drawn_from, before, watch)
                try:
                    made = make(seeds)
                    seeds.finish()
                    break
                except _MakeAgain:
                    pass
                except (KeyboardInterrupt, GeneratorExit):
                    raise
                except BaseException:  # sys.exit() too: other seeds might not have led here
                    if not seeds.has_missed():
                        raise
                restore_generators(before)
                watch.begin_again()
        except BaseException:
            restore_generators(before)
            raise
    seeds.put_back()
    return made


class _MakeAgain(Exception):
    """A generator that was not seeded was drawn from."""


class _Seeds:
    """Seeds for ``keyed``: those generators that are known to be drawn from, or at first all."""

    __slots__ = (
        "_before",
        "_drawn_from",
        "_left_alone",
        "_looks",
        "_of_samples",
        "_seeded_at",
        "_watch",
        "each",
    )

    def __init__(self, drawn_from: DrawnFrom, before: tuple[Any, ...], watch: Watch) -> None:
        self._drawn_from = drawn_from
        self._before = before
        self._watch = watch
        self._of_samples = True
        # The states after the last seeding, where each sample is looked at.
        self._looks: tuple[Any, ...] | None = None
        self._left_alone: list[int]
        self.each: Callable[[int], None] | None
        if drawn_from.is_known:
            self._left_alone = [n for n in _NUMBERS if GENERATORS[n] not in drawn_from.samples]
            self.each = _seeding(drawn_from.samples)
        else:
            self._left_alone = []
            self.each = self._look_and_seed

    def failed(self, key: int) -> None:
        if self.has_missed():
            raise _MakeAgain
        for number in self._left_alone:
            GENERATORS[number].seed(key)
        self._left_alone = []
        if self._drawn_from.is_known:
            self.each = seed_generators

    def collating(self, key: int) -> None:
        if self.has_missed():
            raise _MakeAgain
        self._look()
        self._of_samples = False
        self._watch.read.clear()
        if self._looks is not None:
            self._looks = saved_generators()
        for number in list(self._left_alone):
            if GENERATORS[number] in self._drawn_from.batch:
                self._left_alone.remove(number)
                GENERATORS[number].seed(key)

    def finish(self) -> None:
        """The batch is made.

        Raises:
            _MakeAgain: a generator that was not seeded was drawn from.
        """
        if self.has_missed():
            raise _MakeAgain
        self._look()
        known = self._drawn_from
        known.is_known = known.looked_at >= _LOOKED_AT
        if known.is_known and known.fastest > _SLOW:
            known.add_of_samples(GENERATORS)

    def has_missed(self) -> bool:
        """Whether a generator was drawn from that was not seeded; learns which."""
        read = self._watch.read
        all_alone = not read and len(self._left_alone) == len(_NUMBERS)
        if all_alone and saved_generators() == self._before:
            return False  # the usual case, in half the time
        missed = [
            number
            for number in self._left_alone
            if GENERATORS[number].save() != self._before[number] or GENERATORS[number] in read
        ]
        self._learn([GENERATORS[number] for number in missed])
        return bool(missed)

    def put_back(self) -> None:
        """Return the generators that were seeded to their states before the batch."""
        for number in _NUMBERS:
            if number not in self._left_alone:
                GENERATORS[number].restore(self._before[number])

    def _look_and_seed(self, key: int) -> None:
        self._look()
        seed_generators(key)
        self._looks = saved_generators()
        self._seeded_at = perf_counter()

    def _look(self) -> None:
        """Note which generators were drawn from since they were seeded."""
        if self._looks is None:
            return
        if self._of_samples:
            self._drawn_from.looked_at += 1
            self._drawn_from.fastest = min(
                self._drawn_from.fastest, perf_counter() - self._seeded_at
            )
        read = self._watch.read
        drawn = [
            generator
            for generator, state in zip(GENERATORS, self._looks)
            if generator in read or generator.save() != state
        ]
        self._learn(drawn)

    def _learn(self, drawn: list[GlobalGenerator]) -> None:
        if drawn and self._of_samples:
            self._drawn_from.add_of_samples(drawn)
        elif drawn:
            self._drawn_from.add_of_batch(drawn)


class _Unseeded:
    """No seeds: for threads, which share the generators."""

    each: Callable[[int], None] | None = None

    def failed(self, key: int) -> None:
        """Seed nothing."""

    def collating(self, key: int) -> None:
        """Seed nothing."""


def _joined(
    known: tuple[GlobalGenerator, ...], drawn: Iterable[GlobalGenerator]
) -> tuple[GlobalGenerator, ...]:
    either = {*known, *drawn}
    return tuple(generator for generator in GENERATORS if generator in either)


UNSEEDED: Seeds = _Unseeded()
_NUMBERS = range(len(GENERATORS))


def _seeding(generators: tuple[GlobalGenerator, ...]) -> Callable[[int], None] | None:
    if not generators:
        return None
    first, *others = (generator.seed for generator in generators)
    if not others:
        return first

    def seed(key: int) -> None:
        first(key)
        for other in others:
            other(key)

    return seed
