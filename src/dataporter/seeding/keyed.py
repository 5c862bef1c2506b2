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

__all__ = ["UNSEEDED", "Draws", "Seeds", "keyed"]

T = TypeVar("T")

# So many samples are looked at before some generators are left alone.
_LOOKED_AT = 8
# Seconds. Beside a sample that takes longer, seeding all generators costs less than a twentieth, so
# all are seeded, and no sample that is slow to read is ever read twice.
_SLOW = 0.0002


class Draws:
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

    def add(self, drawn: Iterable[GlobalGenerator], *, of_samples: bool) -> None:
        """Count generators as drawn from."""
        name = "samples" if of_samples else "batch"
        either = {*getattr(self, name), *drawn}
        setattr(self, name, tuple(each for each in GENERATORS if each in either))


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


def keyed(draws: Draws, make: Callable[[Seeds], T]) -> T:
    """What ``make`` returns or raises if all generators are seeded; afterwards they are as before.

    Args:
        draws: what is known of the dataset; learns more.
        make: makes a batch, and seeds as it is told. May be called several times, up to the last of
            which each result is discarded.
    """
    before = saved_generators()
    with Watch() as watch:
        try:
            while True:
                seeds = _Seeds(draws, before, watch)
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
        "_draws",
        "_left_alone",
        "_looks",
        "_of_samples",
        "_seeded_at",
        "_watch",
        "each",
    )

    def __init__(self, draws: Draws, before: tuple[Any, ...], watch: Watch) -> None:
        self._draws = draws
        self._before = before
        self._watch = watch
        self._of_samples = True
        # The states after the last seeding, where each sample is looked at.
        self._looks: tuple[Any, ...] | None = None
        self._left_alone: list[int]
        self.each: Callable[[int], None] | None
        if draws.is_known:
            self._left_alone = [n for n in _NUMBERS if GENERATORS[n] not in draws.samples]
            self.each = _seeding(draws.samples)
        else:
            self._left_alone = []
            self.each = self._look_and_seed

    def failed(self, key: int) -> None:
        if self.has_missed():
            raise _MakeAgain
        for number in self._left_alone:
            GENERATORS[number].seed(key)
        self._left_alone = []
        if self._draws.is_known:
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
            if GENERATORS[number] in self._draws.batch:
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
        draws = self._draws
        draws.is_known = draws.looked_at >= _LOOKED_AT
        if draws.is_known and draws.fastest > _SLOW:
            draws.add(GENERATORS, of_samples=True)

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
        if missed:
            self._draws.add(map(GENERATORS.__getitem__, missed), of_samples=self._of_samples)
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
            self._draws.looked_at += 1
            self._draws.fastest = min(self._draws.fastest, perf_counter() - self._seeded_at)
        read = self._watch.read
        drawn = [
            generator
            for generator, state in zip(GENERATORS, self._looks)
            if generator in read or generator.save() != state
        ]
        if drawn:
            self._draws.add(drawn, of_samples=self._of_samples)


class _Unseeded:
    """No seeds: for threads, which share the generators."""

    each: Callable[[int], None] | None = None

    def failed(self, key: int) -> None:
        """Seed nothing."""

    def collating(self, key: int) -> None:
        """Seed nothing."""


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
