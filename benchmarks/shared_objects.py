"""What do a million small dicts in a dataset cost, at the start and at the end of an epoch?"""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.command import run
from benchmarks.shared_family import ACCESSES, BATCH_SIZE, NUM_WORKERS
from benchmarks.tables import Goal, Table

COUNT, QUICK_COUNT = 10**6, 10**5
MB = 1e6
GOAL_BYTES = 200e6
GOAL_SECONDS = 3e-6
# Memory that workers allocate by themselves from one moment to the next.
NOISE = 10e6
CASES = {
    "nothing held, torch": ("nothing", "torch"),
    "nothing held, DataPorter": ("nothing", "ours"),
    "list, torch": ("list", "torch"),
    "list, DataPorter": ("list", "ours"),
    "pickles in one array, torch": ("serialized", "torch"),
    "SharedSequence, torch": ("shared", "torch"),
    "SharedSequence, DataPorter": ("shared", "ours"),
}


def measure(quick: bool) -> Table:
    count = QUICK_COUNT if quick else COUNT
    found = {name: _case(holder, loader, count) for name, (holder, loader) in CASES.items()}
    rows = tuple(
        (
            name,
            f"{each['first'] / MB:,.0f} MB",
            f"{each['last'] / MB:,.0f} MB",
            f"{_growth(each) / MB:+,.0f} MB",
            f"{each['build']:.1f} s",
            f"{each['peak'] / MB:,.0f} MB",
            f"{each['epoch']:.1f} s",
            f"{each['access'] * 1e9:,.0f} ns",
        )
        for name, each in found.items()
    )
    goals = [goal for loader in ("torch", "DataPorter") for goal in _memory_goals(found, loader)]
    slowest = max(
        found[f"SharedSequence, {loader}"]["access"] for loader in ("torch", "DataPorter")
    )
    goals.append(
        Goal(
            f"at most {GOAL_SECONDS * 1e6:.0f} µs per access",
            f"{slowest * 1e6:.2f} µs",
            slowest <= GOAL_SECONDS,
        )
    )
    return Table(
        f"Shared objects: {count:,} dicts of a path and three integers, {NUM_WORKERS} workers, "
        "one epoch",
        ("", "first batch", "last", "growth", "build time", "build peak", "epoch", "per access"),
        rows,
        tuple(goals),
        (
            "Memory is the PSS of the training process and its forked workers together; each case "
            "has a separate process. Where nothing is held, each dict is created on access: the "
            "rest is Python, torch and the loader. The libraries' files are shared with other "
            "processes on the machine and count proportionally; growth excludes them. torch's "
            "sampler holds a list of all indices until it has drawn the last one, so memory falls "
            "there. The build peak is relative to the process before. "
            f"Batches of {BATCH_SIZE}, shuffled, collated by default_collate; "
            f"an access is the mean of {ACCESSES:,} at random indices in the training process. "
            "Pickles in one array are how detectron2 holds its lists.",
        ),
    )


def _case(holder: str, loader: str, count: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.shared_family", holder, loader, str(count)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def _growth(found: dict[str, float]) -> float:
    return found["last_own"] - found["first_own"]


def _memory_goals(found: dict[str, dict[str, float]], loader: str) -> tuple[Goal, Goal]:
    ours, bare = found[f"SharedSequence, {loader}"], found[f"nothing held, {loader}"]
    growth = _growth(ours)
    return (
        Goal(
            f"{loader}'s loader with SharedSequence: at most {GOAL_BYTES / MB:.0f} MB for all "
            "three processes",
            f"{ours['first'] / MB:,.0f} MB, {bare['first'] / MB:,.0f} MB of it without any object",
            ours["first"] <= GOAL_BYTES,
        ),
        Goal(
            f"{loader}'s loader with SharedSequence: no growth over the epoch ({NOISE / MB:.0f} MB "
            "for noise)",
            f"{growth / MB:+.1f} MB",
            growth <= NOISE,
        ),
    )


if __name__ == "__main__":
    run(measure, __doc__)
