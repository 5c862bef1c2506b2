"""What does reading an epoch from a disk cost, sequentially, in blocks, or in random order?

The file is a memory-mapped Arrow file, and the page cache may hold a third of it.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.command import run
from benchmarks.page_cache import advise, bytes_read, forget, resident
from benchmarks.rounds import play
from benchmarks.tables import Table
from dataporter import BlockShuffledOrder, Order, ResumableDataLoader

IDS = 512
SAMPLE_BYTES = 4 * IDS
SAMPLES, QUICK_SAMPLES = 786_432, 262_144
IN_RECORD_BATCH = 8192
BATCH = 256
# Batches between checks of the page cache: 10 MB of samples.
LOOK_EVERY = 20
THIRD = 3


@dataclass(frozen=True, slots=True)
class Way:
    """A way to read the file: the order, and the advice to the kernel."""

    order: str | Order
    advice: int | None = None


WAYS = {
    "`sequential`": Way("sequential"),
    "`blocks` (1,024 samples, 16 mixed)": Way("blocks"),
    "`BlockShuffledOrder(4096, 4)`": Way(BlockShuffledOrder(4096, 4)),
    "`shuffled`": Way("shuffled"),
    "`shuffled`, read-ahead off (MADV_RANDOM)": Way("shuffled", mmap.MADV_RANDOM),
}


@dataclass(frozen=True, slots=True)
class Pass:
    """The measurements of one pass."""

    samples_per_second: float
    read_per_byte: float
    cached_before: int


class MappedRows:
    """The rows of a memory-mapped Arrow file; nothing is copied until the batch is stacked."""

    def __init__(self, path: Path) -> None:
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all()["ids"]
        self._chunks = [chunk.flatten().to_numpy().reshape(-1, IDS) for chunk in column.chunks]
        self._length = len(column)

    def __len__(self) -> int:
        return self._length

    def __getitems__(self, indices: list[int]) -> list[NDArray[np.int32]]:
        return [
            self._chunks[index // IN_RECORD_BATCH][index % IN_RECORD_BATCH] for index in indices
        ]


def measure(quick: bool) -> Table:
    samples = QUICK_SAMPLES if quick else SAMPLES
    at_most = 1.5 if quick else 5.0
    with TemporaryDirectory(prefix="dataporter-disk-") as folder:
        path = Path(folder) / "rows.arrow"
        _write(path, samples)
        passes: dict[str, list[Pass]] = {name: [] for name in WAYS}
        contestants: dict[str, Callable[[], float]] = {
            name: partial(_figure, path, way, passes[name], at_most) for name, way in WAYS.items()
        }
        rounds = play(contestants, rounds=2 if quick else 5)
        size = path.stat().st_size
    rows = []
    for name in WAYS:
        low, high = rounds.range(name)
        speed = rounds.median(name)
        rows.append(
            (
                name,
                f"{speed:,.0f}",
                f"{low:,.0f} to {high:,.0f}",
                f"{speed * SAMPLE_BYTES / 1e6:,.0f}",
                f"{median(one.read_per_byte for one in passes[name]):.1f}",
                f"{rounds.ratio(name, '`shuffled`'):.1f}",
            )
        )
    coldest = max(one.cached_before for of_way in passes.values() for one in of_way)
    return Table(
        f"From a disk: an epoch of {size / 1e9:.1f} GB, memory-mapped",
        (
            "",
            "samples/s",
            "lowest to highest",
            "MB/s delivered",
            "bytes read per byte delivered",
            "times `shuffled`",
        ),
        tuple(rows),
        (),
        (
            f"An Arrow file of {samples:,} samples of {IDS} int32, read in batches of {BATCH} "
            f"without workers. A pass is the epoch, or {at_most} s of it. Before each pass the "
            "file was dropped from the page cache (according to mincore at most "
            f"{coldest:,} bytes of it remained), and again whenever the cache held more than a "
            "third of it, as if the dataset were three times the size of memory; dropping it is "
            "not timed. Layers below the kernel (the disk, the host of a virtual machine) may have "
            "their own caches.",
            f"Read-ahead of the disk: {_read_ahead(Path(folder).parent)}.",
        ),
    )


def _write(path: Path, samples: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < 2 * samples * SAMPLE_BYTES:
        raise SystemExit(
            f"{path.parent} has {free / 1e9:.1f} GB free, and the file needs half of "
            f"{2 * samples * SAMPLE_BYTES / 1e9:.1f} GB: set TMPDIR to a folder on a larger disk"
        )
    schema = pa.schema([("ids", pa.list_(pa.int32(), IDS))])
    rng = np.random.default_rng(0)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for _ in range(samples // IN_RECORD_BATCH):
            ids = pa.array(rng.integers(0, 50_000, IN_RECORD_BATCH * IDS, dtype=np.int32))
            rows = pa.FixedSizeListArray.from_arrays(ids, IDS)
            writer.write_batch(pa.record_batch([rows], schema=schema))
    forget(path)
    if resident(path):
        raise SystemExit(
            f"{path.parent} keeps its files in memory, so nothing is read from a disk there: set "
            "TMPDIR to a folder on one"
        )


def _figure(path: Path, way: Way, seen: list[Pass], at_most: float) -> float:
    seen.append(_read(path, way, seed=len(seen), at_most=at_most))
    return seen[-1].samples_per_second


def _read(path: Path, way: Way, *, seed: int, at_most: float) -> Pass:
    forget(path)
    cached_before = resident(path)
    dataset = MappedRows(path)
    if way.advice is not None:
        advise(path, way.advice)
    loader = ResumableDataLoader(dataset, BATCH, order=way.order, seed=seed, collate_fn=_stacked)
    room = path.stat().st_size // THIRD
    before, seconds, count = bytes_read(), 0.0, 0
    batches = iter(loader)
    while seconds < at_most:
        begin = perf_counter()
        some = sum(1 for _ in islice(batches, LOOK_EVERY))
        seconds += perf_counter() - begin
        count += some
        if some < LOOK_EVERY:
            break
        if resident(path) > room:
            forget(path)
    delivered = count * BATCH
    return Pass(
        delivered / seconds, (bytes_read() - before) / (delivered * SAMPLE_BYTES), cached_before
    )


def _stacked(rows: list[NDArray[np.int32]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows))


def _read_ahead(folder: Path) -> str:
    device = os.stat(folder).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    for queue in (block / "queue", block / ".." / "queue"):
        if (queue / "read_ahead_kb").exists():
            return f"{int((queue / 'read_ahead_kb').read_text()):,} kB"
    return "not known"


if __name__ == "__main__":
    run(measure, __doc__)
