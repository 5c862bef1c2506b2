"""How fast do two workers hand over batches, and how much memory do the batches take?"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch

from benchmarks.command import run
from benchmarks.family import held_by_family
from benchmarks.loaders import (
    OURS,
    SPDL,
    TORCH,
    TORCHDATA,
    our_loader,
    spdl_loader,
    spdl_threads,
    torch_loader,
    torchdata_loader,
)
from benchmarks.photographs import Photographs
from benchmarks.rounds import Rounds, play
from benchmarks.tables import Goal, Table
from dataporter import ResumableDataLoader

NUM_WORKERS = 2
PREFETCH = 4
WARM_UP = NUM_WORKERS * PREFETCH + 2
BATCH_SIZE = 256
STEP = 0.01  # s, of a training loop
MB = 1 << 20
# float32 values in a row, and the goal as a multiple of torch's batches per second.
SIZES = ((64, 9.0), (4096, 6.0), (12288, 6.0))
PHOTOGRAPHS_IN_BATCH = 16
OUR_THREADS = "DataPorter, threads"
SPDL_THREADS = "SPDL, threads"
BARE = "no loader"
NOT_APPLICABLE = "—"
CONTESTANTS = (OURS, TORCH, TORCHDATA, SPDL, OUR_THREADS, SPDL_THREADS)


class Rows:
    """Rows that are read a batch at a time and need no collation."""

    def __init__(self, width: int) -> None:
        self.features = torch.rand(4096, width)

    def __len__(self) -> int:
        return 5_000_000

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("rows are read a batch at a time")

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(indices) % len(self.features)
        return {"x": self.features[rows], "y": rows}


def unchanged(batch: Any) -> Any:
    return batch


def measure(quick: bool) -> Table:
    rounds, at_most = (2, 0.3) if quick else (5, 1.0)
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    for width, times in SIZES:
        played = _race(Rows(width), BATCH_SIZE, rounds, at_most, collate_fn=unchanged)
        size = BATCH_SIZE * (width * 4 + 8)
        what = f"{size / MB:.2g} MB" if size > MB else f"{size / 1024:.0f} kB"
        rows.append(_row(f"batches of {what}", played))
        goals.append(_goal(f"batches of {what}: at least {times:.0f} times torch", played, times))
    photographs = Photographs()
    threads = {
        OUR_THREADS: lambda: our_loader(
            photographs,
            PHOTOGRAPHS_IN_BATCH,
            num_workers=NUM_WORKERS,
            prefetch_factor=PREFETCH,
            worker_kind="thread",
        ),
        SPDL_THREADS: lambda: spdl_threads(
            photographs, PHOTOGRAPHS_IN_BATCH, num_threads=NUM_WORKERS
        ),
    }
    played = _race(
        photographs,
        PHOTOGRAPHS_IN_BATCH,
        rounds,
        at_most,
        threads,
        {BARE: lambda: _bare_rate(photographs, at_most) / PHOTOGRAPHS_IN_BATCH},
    )
    rows.append(_row(f"{PHOTOGRAPHS_IN_BATCH} JPEGs, decoded and resized to 224 x 224", played))
    goals.append(_goal("JPEGs: as fast as torch", played, 1.0))
    share = played.ratio(OURS, BARE)
    goals.append(
        Goal(
            f"JPEGs: at least 0.97 of the rate of {NUM_WORKERS} processes that decode without a "
            f"loader ({played.median(BARE) * PHOTOGRAPHS_IN_BATCH:,.0f} per second)",
            f"{share:.2f}",
            share >= 0.97,
        )
    )
    goals += [_memory_goal(), *_first_batch_goals(3 if quick else 15)]
    return Table(
        "Handover: batches per second from 2 workers, each 4 batches ahead (times torch)",
        ("", *CONTESTANTS),
        tuple(rows),
        tuple(goals),
        (
            f"{WARM_UP} batches are taken before the clock starts, then {at_most} s of batches are "
            f"counted; medians of {rounds} rounds, and of the ratios within a round. The rows of "
            "the first three are read a batch at a time and need no collation, so handover is "
            "nearly all of the work. Grain cannot read a batch of rows at once; threads have "
            "nothing to hand over. SPDL: `get_pytorch_dataloader` with worker processes, and its "
            "own thread pipeline.",
            "Memory is the PSS of the training process and its workers, minus that of the process "
            "before it had a loader. First batches are requested after a step of 10 ms, in which "
            "the training loop sleeps; bare round trips are measured back to back, and also after "
            "such a step. A jump goes to an epoch that was not prefetched.",
        ),
    )


def _race(
    dataset: Any,
    batch_size: int,
    rounds: int,
    at_most: float,
    more: Mapping[str, Callable[[], Iterable[Any]]] | None = None,
    rates: Mapping[str, Callable[[], float]] | None = None,
    **arguments: Any,
) -> Rounds:
    arguments |= {"num_workers": NUM_WORKERS, "prefetch_factor": PREFETCH}
    loaders: dict[str, Callable[[], Iterable[Any]]] = {
        OURS: lambda: our_loader(dataset, batch_size, **arguments),
        TORCH: lambda: torch_loader(dataset, batch_size, **arguments),
        TORCHDATA: lambda: torchdata_loader(dataset, batch_size, **arguments),
        SPDL: lambda: spdl_loader(dataset, batch_size, **arguments),
        **(more or {}),
    }
    measured = {name: partial(_rate, build, at_most) for name, build in loaders.items()}
    return play({**measured, **(rates or {})}, rounds)


def _rate(build: Callable[[], Iterable[Any]], at_most: float) -> float:
    batches = _for_ever(build())
    for _ in range(WARM_UP):
        next(batches)
    count, begin = 0, time.perf_counter()
    for batch in batches:
        count += 1
        # A training loop at least reads its batch.
        (batch["x"] if isinstance(batch, dict) else batch).flatten()[0].item()
        now = time.perf_counter()
        if now - begin > at_most:
            break
    batches.close()
    return count / (now - begin)


def _for_ever(loader: Iterable[Any]) -> Any:
    while True:
        yield from loader


def _row(name: str, played: Rounds) -> tuple[str, ...]:
    return (
        name,
        *(
            f"{played.median(loader):,.0f} ({played.ratio(loader, TORCH):.2f})"
            if loader in played.figures
            else NOT_APPLICABLE
            for loader in CONTESTANTS
        ),
    )


def _goal(what: str, played: Rounds, times: float) -> Goal:
    reached = played.ratio(OURS, TORCH)
    return Goal(what, f"{reached:.2f} times", reached >= times)


def _bare_rate(photographs: Photographs, seconds: float) -> float:
    """Photographs per second of as many processes as there are workers, which only decode."""
    context = multiprocessing.get_context("fork")
    counts = context.Queue()

    def decode() -> None:
        torch.set_num_threads(1)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            photographs[count]
            count += 1
        counts.put(count / (time.perf_counter() - begin))

    processes = [context.Process(target=decode, daemon=True) for _ in range(NUM_WORKERS)]
    for process in processes:
        process.start()
    total = sum(counts.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(10)
    return float(total)


def _memory_goal() -> Goal:
    # In a new process: memory that this one has freed but kept would count as well.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        held, size = pool.apply(_memory_of_a_loader)
    slots = NUM_WORKERS * (PREFETCH + 1)
    limit = slots * size + 50 * MB
    return Goal(
        f"memory with batches of {size / MB:.0f} MB: at most {slots} slots (prefetched, and one "
        f"per worker in use) and 50 MB, {limit / MB:.0f} MB",
        f"{held / MB:.0f} MB",
        held <= limit,
    )


def _memory_of_a_loader() -> tuple[int, int]:
    dataset = Rows(SIZES[-1][0])
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # a pool's may have no children
    before = held_by_family()
    loader = ResumableDataLoader(
        dataset,
        BATCH_SIZE,
        collate_fn=unchanged,
        num_workers=NUM_WORKERS,
        prefetch_factor=PREFETCH,
        multiprocessing_context="fork",  # a spawned process would spawn its own, each with a torch
    )
    batches = iter(loader)
    for _ in islice(batches, 60):
        pass
    time.sleep(0.5)
    return held_by_family() - before, BATCH_SIZE * (SIZES[-1][0] * 4 + 8)


def _first_batch_goals(repeats: int) -> Iterator[Goal]:
    dataset = Rows(SIZES[0][0])
    trip = _bare_round_trip(dataset, 50 * repeats, pause=0.0)
    after_a_step = _bare_round_trip(dataset, 5 * repeats, pause=STEP)
    loader = ResumableDataLoader(
        dataset,
        BATCH_SIZE,
        shuffle=True,
        seed=1,
        collate_fn=unchanged,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
    )
    next(iter(loader))
    last, jumped = len(loader) - 1, []
    next_epoch = []
    for epoch in range(1, repeats + 1):
        loader.seek(epoch=epoch, step=last)
        list(loader)
        time.sleep(STEP)
        next_epoch.append(_first_batch(loader))
        time.sleep(0.05)
        loader.seek(epoch=epoch, step=5)
        jumped.append(_first_batch(loader))
    for what, found, trips in (
        ("the next epoch", next_epoch, 2),
        ("a jump elsewhere", jumped, 3),
    ):
        seconds = median(found)
        yield Goal(
            f"first batch after iter() with persistent workers, {what}: at most {trips} bare round "
            f"trips of {trip * 1e6:.0f} µs ({after_a_step * 1e6:.0f} µs after a training step)",
            f"{seconds * 1e6:.0f} µs",
            seconds <= trips * trip,
        )


def _first_batch(loader: Iterable[Any]) -> float:
    begin = time.perf_counter()
    batches = iter(loader)
    batch = next(batches)
    seconds = time.perf_counter() - begin
    del batch, batches
    return seconds


def _bare_round_trip(dataset: Rows, repeats: int, *, pause: float) -> float:
    """Seconds from asking a process for a batch to its answer that it has read it.

    Back to back, or with a pause before each, in which the processor cores fall asleep.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def serve() -> None:
        torch.set_num_threads(1)
        while (indices := theirs.recv()) is not None:
            dataset.__getitems__(indices)
            theirs.send(True)

    process = context.Process(target=serve, daemon=True)
    process.start()
    times = []
    for start in range(repeats):
        indices = list(range(start, start + BATCH_SIZE))
        time.sleep(pause)
        begin = time.perf_counter()
        ours.send(indices)
        ours.recv()
        times.append(time.perf_counter() - begin)
    ours.send(None)
    process.join(10)
    return median(times)


if __name__ == "__main__":
    run(measure, __doc__)
