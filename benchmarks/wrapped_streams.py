"""How fast are streams of Hugging Face without workers, beside torch's loader on the same one?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value
from torch.utils.data import DataLoader

from benchmarks.command import run
from benchmarks.loaders import OURS, TORCH
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table
from dataporter import UnifiedHFDatasetWrapper, create_resumable_dataloader

BATCH_SIZE = 64
ROWS, LENGTH, SHARDS = 40_000, 128, 4
SIMPLE = f"{OURS}, simple"
WRAPPED = "wrapped tables"
GOAL = 1.0


def measure(quick: bool) -> Table:
    datasets.disable_progress_bars()
    rows = _rows()
    streams: dict[str, Callable[[], Any]] = {
        WRAPPED: lambda: UnifiedHFDatasetWrapper(rows()),
        "wrapped, with a map": lambda: UnifiedHFDatasetWrapper(rows().map(_counted)),
        "as it is": rows,
    }
    lines: list[tuple[str, ...]] = []
    reached = {}
    for stream, build in streams.items():
        loaders = {
            TORCH: DataLoader(build(), BATCH_SIZE),
            OURS: create_resumable_dataloader(build(), BATCH_SIZE),
            SIMPLE: create_resumable_dataloader(build(), BATCH_SIZE, strategy="simple"),
        }
        found = race(loaders, batch_size=BATCH_SIZE, quick=quick)
        for name in loaders:
            low, high = found.range(name)
            reached[stream, name] = found.ratio(name, TORCH)
            lines.append(
                (
                    f"{stream}, {name}",
                    f"{found.median(name):,.0f}",
                    f"{low:,.0f} to {high:,.0f}",
                    f"{reached[stream, name]:.2f}",
                )
            )
    return Table(
        f"Hugging Face streams without workers: {ROWS:,} rows of {LENGTH} token ids (int32) and a "
        f"label in {SHARDS} shards, in memory, batch {BATCH_SIZE}",
        ("", "samples/s", "range", "times torch"),
        tuple(lines),
        tuple(
            Goal(
                f"at least {GOAL:g} times torch, {stream}",
                f"{reached[stream, OURS]:.2f}",
                reached[stream, OURS] >= GOAL,
            )
            for stream in streams
        ),
        (
            PROCEDURE,
            "`simple` seeds the generators once a batch. Both loaders read the same stream; a pass "
            "of ours takes turns among the shards, and takes a snapshot of the stream for each "
            "batch.",
        ),
    )


def _counted(example: dict[str, Any]) -> dict[str, Any]:
    return {"count": sum(islice(example["input_ids"], 8))}


def _rows() -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    features = Features({"input_ids": List(Value("int32")), "label": Value("int64")})
    table = Dataset.from_dict(
        {
            "input_ids": rng.integers(0, 30_522, (ROWS, LENGTH), dtype=np.int32),
            "label": rng.integers(0, 10, ROWS),
        },
        features=features,
    )
    return lambda: table.to_iterable_dataset(num_shards=SHARDS)


if __name__ == "__main__":
    run(measure, __doc__)
