"""How fast is a mixture of streams, beside a source alone and what other libraries mix?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torchdata.nodes import Batcher, IterableWrapper, Loader, Mapper, MultiNodeWeightedSampler

from benchmarks.command import run
from benchmarks.loaders import OURS, TORCH
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table
from dataporter import MixtureStream, create_resumable_dataloader

BATCH_SIZE = 64
ROWS, WIDTH, SHARDS = 40_000, 64, 4
WEIGHTS = {"web": 0.7, "code": 0.25, "books": 0.05}
ALONE, MIXED = f"{OURS}, one source alone", f"{OURS}, MixtureStream"
INTERLEAVED = f"{TORCH}, interleave_datasets"
SAMPLER = "torchdata MultiNodeWeightedSampler"
_ENDLESS = 1 << 40
# Of the samples per second of a source alone, and times interleave_datasets.
GOALS = {ALONE: 0.6, INTERLEAVED: 1.0}


class Rows(IterableDataset[Any]):
    """Rows that are nearly free to read, in shards that have a state."""

    num_shards = SHARDS

    def __init__(self) -> None:
        self.row = torch.linspace(0, 1, WIDTH)

    def shard(self, num_shards: int, index: int) -> _Shard:
        return _Shard(self.row, index)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.shard(1, 0))


class _Shard(Iterator[Any]):
    def __init__(self, row: torch.Tensor, index: int) -> None:
        self.row, self.index, self.position = row, index, 0

    def __next__(self) -> Any:
        self.position += 1
        return {"row": self.row, "number": self.position}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def measure(quick: bool) -> Table:
    datasets.disable_progress_bars()
    cheap = {name: Rows() for name in WEIGHTS}
    table = Dataset.from_dict(
        {
            "row": np.random.default_rng(0).random((ROWS, WIDTH), dtype=np.float32),
            "number": np.arange(ROWS),
        }
    )
    arrow = {name: table.to_iterable_dataset(num_shards=SHARDS) for name in WEIGHTS}
    probabilities = list(WEIGHTS.values())
    contests: dict[str, dict[str, Any]] = {
        "cheap rows": {
            ALONE: create_resumable_dataloader(Rows(), BATCH_SIZE),
            MIXED: create_resumable_dataloader(_mixture(cheap), BATCH_SIZE),
            SAMPLER: _sampled(Rows),
        },
        "Hugging Face streams": {
            ALONE: create_resumable_dataloader(arrow["web"], BATCH_SIZE),
            MIXED: create_resumable_dataloader(_mixture(arrow), BATCH_SIZE),
            INTERLEAVED: DataLoader(
                datasets.interleave_datasets(
                    list(arrow.values()),
                    probabilities=probabilities,
                    seed=0,
                    stopping_strategy="all_exhausted",
                ),
                BATCH_SIZE,
            ),
            SAMPLER: _sampled(lambda: table.to_iterable_dataset(num_shards=SHARDS)),
        },
    }
    lines, goals = [], []
    for contest, loaders in contests.items():
        found = race(loaders, batch_size=BATCH_SIZE, quick=quick)
        for name in loaders:
            low, high = found.range(name)
            lines.append(
                (
                    f"{contest}, {name}",
                    f"{found.median(name):,.0f}",
                    f"{low:,.0f} to {high:,.0f}",
                    f"{found.ratio(MIXED, name):.2f}",
                )
            )
            if name in GOALS:
                ratio = found.ratio(MIXED, name)
                goal = f"at least {GOALS[name]:g} times {name}, {contest}"
                goals.append(Goal(goal, f"{ratio:.2f}", ratio >= GOALS[name]))
    return Table(
        f"Mixtures of three streams without workers: rows of {WIDTH} numbers, in {SHARDS} shards, "
        f"weights {', '.join(map(str, probabilities))}, batch {BATCH_SIZE}",
        ("", "samples/s", "range", "MixtureStream is times this"),
        tuple(lines),
        tuple(goals),
        (
            PROCEDURE,
            "Each of ours seeds what the stream draws, takes a snapshot of each source with every "
            "batch, and has exact shares. The two others draw each source at random.",
        ),
    )


def _mixture(sources: dict[str, Any]) -> MixtureStream:
    return MixtureStream(sources, WEIGHTS, stopping=_ENDLESS)


def _sampled(build: Callable[[], Any]) -> Any:
    nodes = {name: IterableWrapper(build()) for name in WEIGHTS}
    batches = Batcher(MultiNodeWeightedSampler(nodes, WEIGHTS), BATCH_SIZE)
    return Loader(Mapper(batches, default_collate))


if __name__ == "__main__":
    run(measure, __doc__)
