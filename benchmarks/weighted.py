"""What do draws by weight cost: until the first batch, for an index, and to resume in mid-epoch?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, WeightedRandomSampler

from benchmarks.command import run
from benchmarks.rounds import Rounds, play
from benchmarks.tables import Table
from dataporter import ResumableDataLoader, WeightedOrder

LENGTHS = (10**4, 10**6, 10**7)
# Ours alone: torch refuses more than 2**24 weights.
LONGEST = 10**8
BATCH_SIZE = 256
AT_ONCE = 8192
OURS, TORCH = "DataPorter WeightedOrder", "torch WeightedRandomSampler"
FIRST, INDEX, MIDDLE = "first batch, from the weights", "an index", "resume in mid-epoch"
UNITS = {FIRST: 1e3, INDEX: 1e9, MIDDLE: 1e3}
NOT_APPLICABLE = "—"


def measure(quick: bool) -> Table:
    lengths = LENGTHS[:2] if quick else (*LENGTHS, LONGEST)
    by_length = {length: _play(length, quick) for length in lengths}
    rows = [
        (
            f"{what}, {'ns' if what == INDEX else 'ms'}: {who}",
            *(_cell(by_length[length], what, who) for length in lengths),
        )
        for what in UNITS
        for who in (OURS, TORCH)
    ]
    ratios = [
        (
            f"{what}: torch's time / DataPorter's",
            *(_ratio(by_length[length], what) for length in lengths),
        )
        for what in UNITS
    ]
    return Table(
        "Weighted draws, by number of weights",
        ("", *(f"{length:.0e}".replace("e+", "e") for length in lengths)),
        (*rows, *ratios),
        (),
        (
            f"Uniformly random weights, as many draws as weights, with replacement; batches of "
            f"{BATCH_SIZE} of a dataset that is a range. DataPorter's time to the first batch "
            "builds the alias table, once for all epochs; torch's draws the epoch, in each epoch.",
            f"An index: DataPorter, {AT_ONCE:,} positions at a time, as in its loader; torch, a "
            "whole pass over the sampler.",
            "Resume in mid-epoch, until the first batch: DataPorter seeks; torch draws the epoch "
            "and passes over its first half.",
            "torch refuses more than 2^24 weights.",
        ),
    )


def _cell(rounds: Rounds, what: str, who: str) -> str:
    name = f"{what} {who}"
    return f"{rounds.median(name):,.1f}" if name in rounds.figures else NOT_APPLICABLE


def _ratio(rounds: Rounds, what: str) -> str:
    theirs = f"{what} {TORCH}"
    if theirs not in rounds.figures:
        return NOT_APPLICABLE
    return f"{rounds.ratio(theirs, f'{what} {OURS}'):,.1f}"


def _play(length: int, quick: bool) -> Rounds:
    weights = np.random.default_rng(0).random(length)
    order = WeightedOrder(weights)
    acts: dict[str, Callable[[], float]] = {
        f"{FIRST} {OURS}": partial(_our_first, weights),
        f"{INDEX} {OURS}": partial(_our_index, order, length),
        f"{MIDDLE} {OURS}": partial(_our_middle, order, length),
    }
    if length < LONGEST:
        tensor = torch.from_numpy(weights)
        acts |= {
            f"{FIRST} {TORCH}": partial(_their_first, tensor),
            f"{INDEX} {TORCH}": partial(_their_index, tensor),
            f"{MIDDLE} {TORCH}": partial(_their_middle, tensor),
        }
    longest = 1 if length > 10**6 else 5
    rounds = play(acts, 2 if quick else longest)
    unit = {name: next(UNITS[what] for what in UNITS if name.startswith(what)) for name in acts}
    return Rounds({name: [unit[name] * figure for figure in rounds.figures[name]] for name in acts})


def _our_first(weights: NDArray[np.float64]) -> float:
    begin = perf_counter()
    order = WeightedOrder(weights)
    next(iter(ResumableDataLoader(range(len(weights)), BATCH_SIZE, order=order, seed=1)))
    return perf_counter() - begin


def _their_first(weights: torch.Tensor) -> float:
    begin = perf_counter()
    sampler = WeightedRandomSampler(weights, len(weights))  # type: ignore[arg-type]  # a tensor
    data: Any = range(len(weights))
    next(iter(DataLoader(data, BATCH_SIZE, sampler=sampler)))
    return perf_counter() - begin


def _our_index(order: WeightedOrder, length: int) -> float:
    starts = np.random.default_rng(1).integers(0, max(1, length - AT_ONCE), 100)
    positions = [np.arange(start, start + AT_ONCE) for start in starts]
    begin = perf_counter()
    for some in positions:
        order.indices(some, seed=1, epoch=0, dataset_length=length)
    return (perf_counter() - begin) / (len(starts) * AT_ONCE)


def _their_index(weights: torch.Tensor) -> float:
    begin = perf_counter()
    for _ in WeightedRandomSampler(weights, len(weights)):  # type: ignore[arg-type]  # a tensor
        pass
    return (perf_counter() - begin) / len(weights)


def _our_middle(order: WeightedOrder, length: int) -> float:
    begin = perf_counter()
    loader = ResumableDataLoader(range(length), BATCH_SIZE, order=order, seed=1)
    loader.seek(epoch=0, step=len(loader) // 2)
    next(iter(loader))
    return perf_counter() - begin


def _their_middle(weights: torch.Tensor) -> float:
    begin = perf_counter()
    sampler = WeightedRandomSampler(weights, len(weights))  # type: ignore[arg-type]  # a tensor
    batches = BatchSampler(sampler, BATCH_SIZE, False)
    data: Any = range(len(weights))
    rest: Any = islice(batches, len(batches) // 2, None)
    next(iter(DataLoader(data, batch_sampler=rest)))
    return perf_counter() - begin


if __name__ == "__main__":
    run(measure, __doc__)
