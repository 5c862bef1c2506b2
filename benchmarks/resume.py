"""How long does a resume take to the first index, and how much memory does it need?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from statistics import median
from typing import Any

import torch

from benchmarks.command import run
from benchmarks.datasets import Indices, NumpyIndices
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
from benchmarks.rounds import play
from benchmarks.tables import Goal, Table
from benchmarks.timing import peak_allocated, peak_resident, seconds_once

GOAL_SECONDS = 0.010
GOAL_BYTES = 2e6
TRILLION = 10**12
# torch's RandomSampler makes a list of all indices: at this length it takes half a gigabyte.
LENGTH_FOR_PEERS = 10**7
_HOW = {
    OURS: "next(iter())",
    TORCH: "islice",
    TORCHDATA: "next(iter())",
    GRAIN: "next(iter())",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A resume in two parts: what a new process does before the clock starts, and after."""

    build: Callable[[], Any]
    resume: Callable[[Any], object]

    def seconds(self) -> float:
        loader = self.build()
        return seconds_once(lambda: self.resume(loader))

    def whole(self) -> object:
        return self.resume(self.build())


def measure(quick: bool) -> Table:
    rows, goals = _of_a_trillion(repetitions=5 if quick else 25)
    length = LENGTH_FOR_PEERS // 10 if quick else LENGTH_FOR_PEERS
    rows += _beside_the_peers(length, rounds=1 if quick else 3)
    return Table(
        "Resume: from `load_state_dict` to the first sample of a shuffled epoch, batch 256",
        ("", "samples", "position", "time", "Python and NumPy peak", "process peak"),
        tuple(rows),
        tuple(goals),
        (
            "The dataset holds nothing: each sample is its own index. Each time is the median over "
            "resumes of a new loader (construction is not timed, but its memory counts); "
            "`samples_at` computes only the indices, `next(iter())` the batch. Python and NumPy "
            "peak: tracemalloc. Process peak: growth of a forked process, tensors included, "
            "accurate to a few MB.",
            f"At {TRILLION:,} samples torch and torchdata cannot start: `torch.randperm` would "
            f"need 8 TB. At {length:,} torch skips with `itertools.islice` over a loader with the "
            "same seed, which reads every skipped sample; torchdata iterates over its sampler.",
        ),
    )


def _of_a_trillion(repetitions: int) -> tuple[list[tuple[str, ...]], list[Goal]]:
    loader = our_loader(Indices(TRILLION))
    rows: list[tuple[str, ...]] = []
    times: list[float] = []
    peaks: list[int] = []
    for where, step in (
        ("start", 0),
        ("half", len(loader) // 2),
        ("last batch but one", len(loader) - 2),
    ):
        ways = {
            f"{OURS}, samples_at": _ours_by_index(TRILLION, step),
            f"{OURS}, next(iter())": _ours(TRILLION, step),
            f"{GRAIN}, next(iter())": _grain(TRILLION, step),
        }
        rounds = play({name: case.seconds for name, case in ways.items()}, repetitions)
        for name, case in ways.items():
            peak = peak_allocated(case.whole)
            rows.append(
                (name, f"{TRILLION:,}", where, _time(rounds.median(name)), _megabytes(peak), "")
            )
            if name.startswith(OURS):
                times.append(rounds.median(name))
                peaks.append(peak)
    goals = [
        Goal(
            f"below {_time(GOAL_SECONDS)} at {TRILLION:,} samples",
            f"at most {_time(max(times))}",
            max(times) < GOAL_SECONDS,
        ),
        Goal(
            f"below {_megabytes(GOAL_BYTES)} at {TRILLION:,} samples",
            f"at most {_megabytes(max(peaks))}",
            max(peaks) < GOAL_BYTES,
        ),
    ]
    return rows, goals


def half_way(length: int) -> dict[str, Case]:
    """How each library resumes half-way through an epoch."""
    step = length // BATCH_SIZE // 2
    return {
        OURS: _ours(length, step),
        TORCH: Case(
            build=lambda: torch_loader(Indices(length), generator=torch.Generator().manual_seed(1)),
            resume=lambda loader: next(islice(loader, step, None)),
        ),
        TORCHDATA: _torchdata(length, step),
        GRAIN: _grain(length, step),
    }


def _beside_the_peers(length: int, rounds: int) -> list[tuple[str, ...]]:
    ways = half_way(length)
    played = play({name: case.seconds for name, case in ways.items()}, rounds)
    return [
        (
            f"{name}, {_HOW[name]}",
            f"{length:,}",
            "half",
            _time(median(played.figures[name])),
            "",
            _megabytes(peak_resident(case.whole)),
        )
        for name, case in ways.items()
    ]


def _our_state(length: int, step: int) -> dict[str, Any]:
    saved = our_loader(Indices(length))
    saved.seek(step=step)
    return saved.state_dict()


def _ours(length: int, step: int) -> Case:
    state = _our_state(length, step)

    def resume(loader: Any) -> object:
        loader.load_state_dict(state)
        return next(iter(loader))

    return Case(partial(our_loader, Indices(length)), resume)


def _ours_by_index(length: int, step: int) -> Case:
    state = _our_state(length, step)

    def resume(loader: Any) -> object:
        loader.load_state_dict(state)
        return loader.samples_at(loader.epoch, loader.step)[0]

    return Case(partial(our_loader, Indices(length)), resume)


def _torchdata(length: int, step: int) -> Case:
    saved = torchdata_loader(Indices(length))
    batches = iter(saved)
    for _ in range(step):
        next(batches)
    state = saved.state_dict()

    def resume(loader: Any) -> object:
        loader.load_state_dict(state)
        return next(iter(loader))

    return Case(lambda: torchdata_loader(Indices(length)), resume)


def _grain(length: int, step: int) -> Case:
    def resume(loader: Any) -> object:
        batches = iter(loader)
        batches.set_state({"next_index": step})
        return next(batches)

    return Case(lambda: grain_loader(NumpyIndices(length)), resume)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB" if size < 10e6 else f"{size / 1e6:,.0f} MB"


if __name__ == "__main__":
    run(measure, __doc__)
