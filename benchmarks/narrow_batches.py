"""How much memory do batches take, and how fast are they delivered, as dtypes narrow?"""

from __future__ import annotations

import multiprocessing
import time
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.command import run
from benchmarks.family import with_unmapped_memory
from benchmarks.loaders import OURS, TORCH
from benchmarks.tables import Table
from dataporter import ResumableDataLoader, memory_report

NUM_WORKERS = 2
PREFETCH = 4
BATCH_SIZE = 64
MB = 1 << 20
RULES = {
    f"{OURS}, converter": {
        "image": "float16",
        "input_ids": "int32",
        "attention_mask": "uint8",
        "label": "int32",
    },
    f"{OURS}, scaled and packed": {
        "image": "uint8:scale",
        "input_ids": "int32",
        "attention_mask": "bits",
        "label": "int32",
    },
}


class Samples(Dataset[dict[str, torch.Tensor]]):
    """An image of 224 x 224, 512 tokens with their mask, and a label, created when read."""

    def __init__(self) -> None:
        made = torch.Generator().manual_seed(0)
        self.image = torch.randint(0, 256, (3, 224, 224), generator=made, dtype=torch.uint8)
        self.tokens = torch.randint(0, 50257, (512,), generator=made)

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "image": self.image.roll(index).float().div_(255),
            "input_ids": self.tokens.roll(index),
            "attention_mask": (torch.arange(512) < 100 + index % 412).long(),
            "label": torch.tensor(index % 1000),
        }


def loader_named(name: str) -> DataLoader[Any]:
    arguments: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "num_workers": NUM_WORKERS,
        "prefetch_factor": PREFETCH,
        # A spawned process would spawn its own, each with a torch.
        "multiprocessing_context": "fork",
    }
    if name == TORCH:
        return DataLoader(Samples(), **arguments)
    return ResumableDataLoader(Samples(), converter=RULES.get(name), **arguments)


def measure(quick: bool) -> Table:
    rounds, batches = (1, 15) if quick else (3, 60)
    names = [TORCH, OURS, *RULES]
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            # In a new process: memory that this one has freed but kept would count as well.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured[name].append(pool.apply(_held_and_rate, (name, batches)))
    rows = []
    theirs = sorted(held for held, _ in measured[TORCH])[rounds // 2]
    for name in names:
        held, rate = (sorted(column)[rounds // 2] for column in zip(*measured[name]))
        report = memory_report(loader_named(name))
        rows.append(
            (
                name,
                f"{report.after / MB:.1f} MB",
                f"{1 - report.after / report.before:.1%}",
                f"{held / MB:.0f} MB",
                f"{1 - held / theirs:.0%}",
                f"{rate:.1f}",
            )
        )
    return Table(
        "Narrow batches: 64 images, token ids, masks and labels, 2 workers, each 4 batches ahead",
        ("", "per batch", "saved", "held by the loader", "saved", "batches/s"),
        tuple(rows),
        (),
        (
            "Held: the memory of the training process and its workers (PSS, and shared memory that "
            "torch has sent and no process has mapped yet), minus that of the process before it "
            f"had a loader; the most in 10 steps of 0.2 s; medians of {rounds} processes each. It "
            "includes each worker's Python process, about 60 MB, and the memory in which it makes "
            "a batch before converting it. Reading a sample is cheap here, so the rate shows the "
            "cost of conversion.",
        ),
    )


def _held_and_rate(name: str, batches: int) -> tuple[float, float]:
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # a pool's may have no children
    loader = loader_named(name)
    before = with_unmapped_memory()
    stream = chain.from_iterable(repeat(loader))
    for batch in islice(stream, NUM_WORKERS * PREFETCH):
        del batch
    begin = time.perf_counter()
    for batch in islice(stream, batches):
        batch["label"].sum().item()
    seconds = time.perf_counter() - begin
    del batch
    most = 0
    for _batch in islice(stream, 10):
        # Like a training loop, it works on a batch while the workers are fully ahead.
        time.sleep(0.2)
        most = max(most, with_unmapped_memory())
    return most - before, batches / seconds


if __name__ == "__main__":
    run(measure, __doc__)
