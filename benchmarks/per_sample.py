"""What does reading sample by sample cost, and what does seeding each sample add?"""

from __future__ import annotations

from itertools import count

import numpy as np

from benchmarks.command import run
from benchmarks.datasets import Dicts, NumpyDicts
from benchmarks.loaders import (
    BATCH_SIZE,
    GRAIN,
    TORCH,
    TORCHDATA,
    grain_loader,
    our_loader,
    torch_loader,
    torchdata_loader,
)
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table
from benchmarks.timing import seconds_per_call
from dataporter.seeding.generators import isolated_generators, seed_generators
from dataporter.seeding.hashing import mix, sample_key

GOAL = 1.0
SIMPLE = "DataPorter, strategy 'simple'"
ADVANCED = "DataPorter, strategy 'advanced'"


def measure(quick: bool) -> Table:
    dataset = Dicts()
    rounds = race(
        {
            SIMPLE: our_loader(dataset, strategy="simple"),
            TORCH: torch_loader(dataset),
            ADVANCED: our_loader(dataset),
            TORCHDATA: torchdata_loader(dataset),
            GRAIN: grain_loader(NumpyDicts()),
        },
        batch_size=BATCH_SIZE,
        at_most=0.5 if quick else 2.5,
        rounds=3 if quick else 7,
    )
    rows = []
    for name in rounds.figures:
        low, high = rounds.range(name)
        rows.append(
            (
                name,
                f"{rounds.median(name):,.0f}",
                f"{low:,.0f} to {high:,.0f}",
                f"{1e6 / rounds.median(name):.2f}",
                f"{rounds.ratio(name, TORCH):.2f}",
            )
        )
    seeding = rounds.paired(lambda slow, fast: 1e6 / slow - 1e6 / fast, ADVANCED, SIMPLE)
    reached = rounds.ratio(SIMPLE, TORCH)
    return Table(
        "Per sample: a dataset of dicts (64 float32, 1 int), shuffled, batch 256, no workers",
        ("", "samples/s", "range", "µs per sample", "times torch"),
        tuple(rows),
        (
            Goal(
                f"at least {GOAL:.1f} times torch without seeding each sample ('simple')",
                f"{reached:.2f} times",
                reached >= GOAL,
            ),
        ),
        (
            f"Seeding Python's, NumPy's and torch's generators before each sample ('advanced', the "
            f"default) costs {seeding:.1f} µs per sample within the loader; `seed_generators` by "
            f"itself takes {_bare_seeding(quick):.1f} µs. This makes random augmentation the same "
            "after a resume; no peer does it. 'simple' seeds once per batch. That, and restoring "
            f"the training loop's own generators, takes {_bare_isolation(quick):.0f} µs per batch "
            f"of {BATCH_SIZE} by itself, and more when the processor's caches are full of data: "
            "roughly the gap between 'simple' and torch.",
            PROCEDURE,
            "Grain reads the same rows as NumPy values and batches them with NumPy.",
        ),
    )


def _bare_seeding(quick: bool) -> float:
    """Microseconds of one seeding. The keys differ: equal ones could hit warm branches."""
    keys = mix(np.arange(4096, dtype=np.uint64)).tolist()
    offsets = count()
    with isolated_generators():
        seconds = seconds_per_call(
            lambda: seed_generators(keys[next(offsets) % 4096]), at_least=0.05 if quick else 0.3
        )
    return seconds * 1e6


def _bare_isolation(quick: bool) -> float:
    """Microseconds of the work around a batch in the training process."""

    def surround() -> None:
        with isolated_generators():
            seed_generators(sample_key(0, 0, 0))

    return seconds_per_call(surround, at_least=0.05 if quick else 0.3) * 1e6


if __name__ == "__main__":
    run(measure, __doc__)
