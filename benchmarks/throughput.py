"""How fast do shuffled batches come out of tensors that lie in memory, without workers?"""

from __future__ import annotations

from functools import partial
from time import perf_counter

import torch
from torch.utils.data import TensorDataset

from benchmarks.command import run
from benchmarks.datasets import NumpyPairs, pairs
from benchmarks.loaders import (
    BATCH_SIZE,
    GRAIN,
    OURS,
    TORCH,
    TORCHDATA,
    grain_loader,
    our_loader,
    torch_loader,
    torchdata_loader,
)
from benchmarks.rounds import play
from benchmarks.tables import Goal, Table
from benchmarks.timing import samples_per_second

GOAL = 8.0
BARE = "bare gather"


def measure(quick: bool) -> Table:
    dataset = pairs()
    pass_speed = partial(samples_per_second, batch_size=BATCH_SIZE, at_most=0.3 if quick else 1.5)
    ours, torch_s = our_loader(dataset), torch_loader(dataset)
    torchdata_s, grain_s = torchdata_loader(dataset), grain_loader(NumpyPairs())
    rounds = play(
        {
            BARE: lambda: _bare_gather(dataset),
            OURS: lambda: pass_speed(ours),
            TORCH: lambda: pass_speed(torch_s),
            TORCHDATA: lambda: pass_speed(torchdata_s),
            GRAIN: lambda: pass_speed(grain_s),
        },
        rounds=3 if quick else 9,
    )
    rows = []
    for name in rounds.figures:
        low, high = rounds.range(name)
        rows.append(
            (
                name,
                f"{rounds.median(name):,.0f}",
                f"{low:,.0f} to {high:,.0f}",
                f"{BATCH_SIZE / rounds.median(name) * 1e6:,.0f}",
                f"{rounds.ratio(name, TORCH):.2f}",
            )
        )
    reached = rounds.ratio(OURS, TORCH)
    return Table(
        "Throughput: TensorDataset of 200,000 rows (64 float32, 1 int64), shuffled, batch 256, "
        "no workers",
        ("", "samples/s", "range", "µs a batch", "times torch"),
        tuple(rows),
        (Goal(f"at least {GOAL:g} times torch", f"{reached:.1f} times", reached >= GOAL),),
        (
            f"{len(rounds.figures[OURS])} rounds in turn, each a new pass (a whole epoch where it "
            "takes less than 1.5 s); medians, and medians of the ratios within a round.",
            "Bare gather: `index_select` on both tensors with slices of a ready permutation, which "
            "no loader can be faster than. Grain has no dataset of columns: it reads the same "
            "NumPy rows one by one, and batches them with NumPy; its reader threads are off.",
        ),
    )


def _bare_gather(dataset: TensorDataset) -> float:
    features, labels = dataset.tensors
    permutation = torch.randperm(len(features))
    steps = len(features) // BATCH_SIZE
    begin = perf_counter()
    for start in range(0, steps * BATCH_SIZE, BATCH_SIZE):
        rows = permutation[start : start + BATCH_SIZE]
        features.index_select(0, rows)
        labels.index_select(0, rows)
    return steps * BATCH_SIZE / (perf_counter() - begin)


if __name__ == "__main__":
    run(measure, __doc__)
