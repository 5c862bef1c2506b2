"""What does reading sample by sample cost, where samples draw random numbers and where not?"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.command import run
from benchmarks.datasets import Dicts, NumpyDicts
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
from benchmarks.rounds import Rounds
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table

GOAL = 1.0
SIMPLE = "DataPorter, strategy 'simple'"
DRAWS: dict[str, Callable[[], object]] = {
    "Python's `random`": random.random,
    "NumPy": np.random.rand,
    "torch": lambda: torch.rand(()),
    "all three": lambda: (random.random(), np.random.rand(), torch.rand(())),
}


class DrawingDicts(Dicts):
    """The dicts of a dataset that draws random numbers for each."""

    def __init__(self, draw: Callable[[], object]) -> None:
        super().__init__()
        self._draw = draw

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._draw()
        return super().__getitem__(index)


def measure(quick: bool) -> Table:
    dataset = Dicts()
    nothing = race(
        {
            OURS: our_loader(dataset),
            SIMPLE: our_loader(dataset, strategy="simple"),
            TORCH: torch_loader(dataset),
            TORCHDATA: torchdata_loader(dataset),
            GRAIN: grain_loader(NumpyDicts()),
        },
        batch_size=BATCH_SIZE,
        quick=quick,
    )
    rows = _rows("nothing", nothing)
    for what, draw in DRAWS.items():
        drawing = DrawingDicts(draw)
        loaders = {OURS: our_loader(drawing), TORCH: torch_loader(drawing)}
        rows += _rows(what, race(loaders, batch_size=BATCH_SIZE, quick=quick))
    reached = nothing.ratio(OURS, TORCH)
    return Table(
        "Per sample: a dataset of dicts (64 float32, 1 int), shuffled, batch 256, no workers",
        ("each sample draws from", "", "samples/s", "range", "µs per sample", "times torch"),
        tuple(rows),
        (
            Goal(
                f"at least {GOAL:.1f} times torch where nothing is drawn",
                f"{reached:.2f} times",
                reached >= GOAL,
            ),
        ),
        (
            "The default strategy seeds a generator before each sample if the dataset draws from "
            "it, which makes random augmentation the same after a resume; no peer does it. "
            "'simple' seeds all three once per batch.",
            PROCEDURE,
            "Grain reads the same rows as NumPy values and batches them with NumPy; its reader "
            "threads are off.",
        ),
    )


def _rows(drawn: str, rounds: Rounds) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name in rounds.figures:
        low, high = rounds.range(name)
        rows.append(
            (
                drawn,
                name,
                f"{rounds.median(name):,.0f}",
                f"{low:,.0f} to {high:,.0f}",
                f"{1e6 / rounds.median(name):.2f}",
                f"{rounds.ratio(name, TORCH):.2f}",
            )
        )
    return rows


if __name__ == "__main__":
    run(measure, __doc__)
