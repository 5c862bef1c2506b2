"""What does an index of a shuffled epoch cost in time and memory as datasets grow?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np
import torch

# Not public in Grain 0.2.18, but the core of its public shuffle.
from grain._src.python.experimental.index_shuffle.python import index_shuffle_module
from torch.utils.data import RandomSampler

from benchmarks.command import run
from benchmarks.rounds import Rounds, play
from benchmarks.tables import Table
from benchmarks.timing import peak_allocated
from dataporter import BlockShuffledOrder, Order, ShuffledOrder

LENGTHS = (10**4, 10**6, 10**9, 10**12)
AT_ONCE = 8192
# Beyond it randperm alone takes seconds; at 10**9 it would take 8 GB.
LONGEST_PERMUTATION = 10**7
NOT_APPLICABLE = "—"

OURS: dict[str, Order] = {
    f"DataPorter {type(order).__name__}, {AT_ONCE:,} at a time": order
    for order in (ShuffledOrder(), BlockShuffledOrder())
}
RANDPERM = "torch.randperm"
SAMPLER = "torch RandomSampler (randperm, and a list of it)"
GRAIN = "Grain index_shuffle, one by one"


def measure(quick: bool) -> Table:
    lengths = sorted({*LENGTHS, LONGEST_PERMUTATION})
    by_length = {length: _play(length, quick) for length in lengths}
    rows = []
    for name in (*OURS, RANDPERM, SAMPLER, GRAIN):
        cells = [
            f"{by_length[length].median(name):.1f}"
            if name in by_length[length].figures
            else NOT_APPLICABLE
            for length in lengths
        ]
        rows.append((name, *cells, _memory(name)))
    return Table(
        "Orders: nanoseconds per index, by number of samples",
        ("", *(f"{length:.0e}".replace("e+", "e") for length in lengths), "memory"),
        tuple(rows),
        (),
        (
            "DataPorter: consecutive positions from random points of the epoch, as in its loader. "
            f"torch: a whole permutation, up to {LONGEST_PERMUTATION:,} samples. Grain: "
            f"`index_shuffle` called from Python for each of {AT_ONCE:,} indices, as its "
            "`shuffle()` does (an internal module of 0.2.18).",
            "Memory: held for an epoch, or the peak while creating it; by tracemalloc, plus the "
            "size of torch's tensors; randperm and RandomSampler were measured at 10^6.",
        ),
    )


def _play(length: int, quick: bool) -> Rounds:
    contestants: dict[str, Callable[[], float]] = {
        **{
            name: partial(_our_nanoseconds, order, length, calls=20 if quick else 100)
            for name, order in OURS.items()
        },
        GRAIN: partial(_grain_nanoseconds, length),
    }
    if length <= LONGEST_PERMUTATION:
        contestants[RANDPERM] = partial(_randperm_nanoseconds, length)
        contestants[SAMPLER] = partial(_sampler_nanoseconds, length)
    return play(contestants, rounds=2 if quick else 7)


def _our_nanoseconds(order: Order, length: int, calls: int) -> float:
    starts = np.random.default_rng(0).integers(0, length - AT_ONCE, calls)
    positions = [np.arange(start, start + AT_ONCE) for start in starts]
    begin = perf_counter()
    for some in positions:
        order.indices(some, seed=1, epoch=0, dataset_length=length)
    return (perf_counter() - begin) / (calls * AT_ONCE) * 1e9


def _randperm_nanoseconds(length: int) -> float:
    begin = perf_counter()
    torch.randperm(length)
    return (perf_counter() - begin) / length * 1e9


def _sampler_nanoseconds(length: int) -> float:
    begin = perf_counter()
    for _ in RandomSampler(range(length)):
        pass
    return (perf_counter() - begin) / length * 1e9


def _grain_nanoseconds(length: int) -> float:
    start = (length - AT_ONCE) // 2
    begin = perf_counter()
    for index in range(start, start + AT_ONCE):
        index_shuffle_module.index_shuffle(index, max_index=length - 1, seed=1, rounds=4)
    return (perf_counter() - begin) / AT_ONCE * 1e9


def _memory(name: str) -> str:
    measured = 10**6
    if name in OURS:
        some = np.arange(measured, measured + AT_ONCE)
        peak = peak_allocated(
            lambda: OURS[name].indices(some, seed=1, epoch=0, dataset_length=10**12)
        )
        return f"{peak / 1e3:.0f} kB during a call, for any length"
    if name == RANDPERM:
        return f"{torch.randperm(measured).nbytes / measured:.0f} B per sample"
    if name == SAMPLER:
        # The permutation's tensor is alive while its list is created, and is not traced.
        peak = peak_allocated(lambda: next(iter(RandomSampler(range(measured)))))
        return f"{peak / measured + 8:.0f} B per sample"
    peak = peak_allocated(
        lambda: index_shuffle_module.index_shuffle(1, max_index=10**12, seed=1, rounds=4)
    )
    return f"{peak} B, for any length"


if __name__ == "__main__":
    run(measure, __doc__)
