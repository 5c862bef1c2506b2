"""What the tests of worker processes share."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from subjects import digest

from dataporter import ResumableDataLoader


class Filled:
    """Large enough to see a slot written over: 16 kB that repeat its index."""

    def __init__(self, length: int = 60) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((64, 64), float(index)), "n": np.full(8, index), "s": str(index)}


def inline(loader: ResumableDataLoader[Any]) -> list[str]:
    """The digests of the next epoch, read without workers."""
    arguments = {"shuffle": True, "seed": loader.seed, "strategy": loader.strategy}
    reference = ResumableDataLoader(
        loader.dataset, loader.batch_size, collate_fn=loader.collate_fn, **arguments
    )
    reference.seek(epoch=loader.epoch)
    return [digest(batch) for batch in reference]


def workers_of(process: psutil.Process | None = None) -> set[psutil.Process]:
    return set((process or psutil.Process()).children())


def shared_memory() -> set[str]:
    """Files in /dev/shm, except semaphores, which other tests have and engines do not."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def used_by_others() -> set[str]:
    """Files in /dev/shm that a process has mapped which is not of this one's family."""
    family = {process.pid for process in (psutil.Process(), *workers_of())}
    found: set[str] = set()
    for process in psutil.process_iter():
        if process.pid not in family:
            with contextlib.suppress(psutil.Error, OSError):
                found |= {Path(mapped.path).name for mapped in process.memory_maps()}
    return found
