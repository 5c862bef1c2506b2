"""One case of `benchmarks.shared_objects`, in a process with only a training run's imports.

python -m benchmarks.shared_family HOLDER LOADER COUNT
"""

from __future__ import annotations

import gc
import json
import pickle
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
from torch.utils.data import DataLoader

from dataporter import ResumableDataLoader, SharedSequence

BATCH_SIZE = 256
NUM_WORKERS = 2
ACCESSES = 200_000


class Serialized:
    """Pickles in one array, as detectron2 holds its lists, so that no reference is counted."""

    def __init__(self, objects: Iterable[Any]) -> None:
        pickles = [np.frombuffer(pickle.dumps(each, -1), dtype=np.uint8) for each in objects]
        self.ends = np.cumsum([len(each) for each in pickles], dtype=np.int64)
        self.pickles = np.concatenate(pickles)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Any:
        start = 0 if index == 0 else self.ends[index - 1].item()
        return pickle.loads(self.pickles[start : self.ends[index].item()].data)


class Made:
    """Holds nothing and creates each object on access: the cost of everything else."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self.length = sum(1 for _ in objects)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return record(index)


HOLDERS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "nothing": Made,
    "list": list,
    "serialized": Serialized,
    "shared": SharedSequence,
}
LOADERS: dict[str, Callable[..., Any]] = {"torch": DataLoader, "ours": ResumableDataLoader}


def record(index: int) -> dict[str, Any]:
    return {
        "path": f"images/{index:08d}.jpg",
        "label": index % 10,
        "width": 640 + index % 7,
        "height": 480,
    }


def records(count: int) -> Iterator[dict[str, Any]]:
    return map(record, range(count))


def case(holder: str, loader: str, count: int) -> dict[str, float]:
    """Seconds, and bytes of the training process and its workers together (PSS)."""
    before = _peak()
    begin = perf_counter()
    dataset = HOLDERS[holder](records(count))
    found: dict[str, float] = {"build": perf_counter() - begin, "peak": _peak() - before}
    # A full collection writes to every object, torch's too, which would copy them in the workers.
    gc.collect()
    batches = LOADERS[loader](
        dataset,
        BATCH_SIZE,
        shuffle=True,
        num_workers=NUM_WORKERS,
        multiprocessing_context="fork",
    )
    begin = perf_counter()
    epoch = iter(batches)
    next(epoch)
    found["first"], found["first_own"] = _held()
    # All but the last, after which workers may be stopped.
    for _ in range(len(batches) - 2):
        next(epoch)
    found["last"], found["last_own"] = _held()
    found["epoch"] = perf_counter() - begin
    list(epoch)
    found["access"] = _seconds_an_access(dataset)
    return found


def _seconds_an_access(dataset: Any) -> float:
    indices = random.Random(0).choices(range(len(dataset)), k=ACCESSES)
    begin = perf_counter()
    for index in indices:
        dataset[index]
    return (perf_counter() - begin) / ACCESSES


def _held() -> tuple[int, int]:
    """PSS of the process and its workers, and the part of it that is no library file."""
    process = psutil.Process()
    whole = own = 0
    for each in (process, *process.children(recursive=True)):
        for line in Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines():
            name, _, size = line.partition(":")
            if name == "Pss":
                whole += _kilobytes(size)
            elif name in ("Pss_Anon", "Pss_Shmem"):
                own += _kilobytes(size)
    return whole, own


def _kilobytes(size: str) -> int:
    return int(size.split()[0]) * 1024


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return _kilobytes(line.partition(":")[2])


if __name__ == "__main__":
    print(json.dumps(case(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
