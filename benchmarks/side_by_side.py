"""Side by side: passes over several loaders, which take turns of a few batches.

For loaders that work only while a batch is requested. On a busy machine the speed changes from one
second to the next; passes that take turns every few milliseconds are all affected alike.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from random import Random
from time import perf_counter
from typing import Any

from benchmarks.rounds import Rounds

__all__ = ["PROCEDURE", "race"]

# Of a pass, and how many there are; the second of each with --quick.
SECONDS = (1.5, 0.4)
ROUNDS = (7, 3)
PROCEDURE = (
    "A round is one pass over each loader; the loaders take turns of 20 batches in random order. A "
    f"pass is the whole epoch, including its start, or {SECONDS[0]} s of it ({SECONDS[1]} s with "
    "--quick). Medians of the rounds, and of the ratios within a round."
)

# Enough for a loader to fill the processor's caches again after its neighbour's turn.
BATCHES_IN_TURN = 20


def race(loaders: Mapping[str, Iterable[Any]], *, batch_size: int, quick: bool) -> Rounds:
    """Samples per second of each pass, from ``iter()`` on."""
    figures: dict[str, list[float]] = {name: [] for name in loaders}
    shuffled = Random(0)
    for _ in range(ROUNDS[quick]):
        gc.collect()
        passes = {name: _Pass(loader, SECONDS[quick]) for name, loader in loaders.items()}
        running = list(passes.values())
        while running:
            for this_pass in running:
                this_pass.take_turn()
            running = [this_pass for this_pass in running if not this_pass.over]
            # A loader that follows another one of the same dataset finds its rows in the caches.
            shuffled.shuffle(running)
        for name, this_pass in passes.items():
            figures[name].append(this_pass.batches * batch_size / this_pass.seconds)
    return Rounds(figures)


class _Pass:
    def __init__(self, loader: Iterable[Any], at_most: float) -> None:
        self._loader = loader
        self._at_most = at_most
        self._iterator: Iterator[Any] | None = None
        self.batches = 0
        self.seconds = 0.0
        self.over = False

    def take_turn(self) -> None:
        begin = perf_counter()
        if self._iterator is None:
            self._iterator = iter(self._loader)
        count = 0
        for _ in islice(self._iterator, BATCHES_IN_TURN):
            count += 1
        self.seconds += perf_counter() - begin
        self.batches += count
        if count < BATCHES_IN_TURN or self.seconds > self._at_most:
            self.over, self._iterator = True, None
