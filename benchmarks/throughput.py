"""How fast are shuffled batches of in-memory tensors, without workers?"""

from __future__ import annotations

from collections.abc import Iterator

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
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table

GOAL = 15.0
BARE = "bare gather"


def measure(quick: bool) -> Table:
    dataset = pairs()
    rounds = race(
        {
            BARE: BareGather(dataset),
            OURS: our_loader(dataset),
            TORCH: torch_loader(dataset),
            TORCHDATA: torchdata_loader(dataset),
            GRAIN: grain_loader(NumpyPairs()),
        },
        batch_size=BATCH_SIZE,
        quick=quick,
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
        ("", "samples/s", "range", "µs per batch", "times torch"),
        tuple(rows),
        (Goal(f"at least {GOAL:g} times torch", f"{reached:.1f} times", reached >= GOAL),),
        (
            PROCEDURE,
            "Bare gather: `index_select` on both tensors with slices of a precomputed permutation; "
            "no loader can be faster. Grain has no dataset of columns: it reads the same NumPy "
            "rows one by one and batches them with NumPy; its reader threads are off.",
        ),
    )


class BareGather:
    """Only the gathers, by a precomputed permutation."""

    def __init__(self, dataset: TensorDataset) -> None:
        self._features, self._labels = dataset.tensors
        self._permutation = torch.randperm(len(dataset))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self._permutation) - BATCH_SIZE + 1, BATCH_SIZE):
            rows = self._permutation[start : start + BATCH_SIZE]
            yield self._features.index_select(0, rows), self._labels.index_select(0, rows)


if __name__ == "__main__":
    run(measure, __doc__)
