"""What does it cost to take a state mid-epoch, and how large is it?"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from benchmarks.command import run
from benchmarks.datasets import Dicts, NumpyDicts
from benchmarks.loaders import (
    GRAIN,
    OURS,
    TORCHDATA,
    grain_loader,
    our_loader,
    torchdata_loader,
)
from benchmarks.rounds import play
from benchmarks.tables import Goal, Table
from benchmarks.timing import seconds_per_call

GOAL_SECONDS = 20e-6
GOAL_BYTES = 1024
BATCHES_BEFORE = 20


def measure(quick: bool) -> Table:
    # Iterators, and with them workers, must stay alive until their state is taken.
    alive: list[Any] = []
    states: dict[str, Callable[[], Any]] = {}
    for num_workers in (0, 2):
        for name, build in ((OURS, our_loader), (TORCHDATA, torchdata_loader)):
            loader = build(Dicts(), num_workers=num_workers)
            alive.append(_advanced(loader))
            states[f"{name}, {num_workers} workers"] = loader.state_dict
        if num_workers == 0 or not quick:
            batches = _advanced(grain_loader(NumpyDicts(), num_workers=num_workers))
            alive.append(batches)
            states[f"{GRAIN}, {num_workers} workers"] = batches.get_state
    at_least = 0.02 if quick else 0.1
    rounds = play(
        {
            name: lambda state=state: seconds_per_call(state, at_least=at_least)
            for name, state in states.items()
        },
        rounds=2 if quick else 5,
    )
    rows = []
    for name, state in states.items():
        low, high = rounds.range(name)
        rows.append(
            (
                name,
                f"{rounds.median(name) * 1e6:.1f}",
                f"{low * 1e6:.1f} to {high * 1e6:.1f}",
                f"{_size(state()):,}",
            )
        )
    ours = [name for name in states if name.startswith(OURS)]
    slowest = max(rounds.median(name) for name in ours)
    largest = max(_size(states[name]()) for name in ours)
    return Table(
        f"State: `state_dict()` after {BATCHES_BEFORE} batches of a shuffled epoch of 200,000",
        ("", "µs", "range", "bytes as JSON"),
        tuple(rows),
        (
            Goal(
                f"below {GOAL_SECONDS * 1e6:.0f} µs",
                f"at most {slowest * 1e6:.1f} µs",
                slowest < GOAL_SECONDS,
            ),
            Goal(f"below {GOAL_BYTES} bytes", f"at most {largest} bytes", largest < GOAL_BYTES),
        ),
        (
            "torchdata's state holds torch's generator as a tensor, which JSON cannot hold; it is "
            "counted as a list of numbers. torch's DataLoader has no state. The workers are alive "
            "and have prefetched. --quick omits Grain's workers, which take 10 s to start.",
        ),
    )


def _advanced(loader: Any) -> Any:
    batches = iter(loader)
    for _ in range(BATCHES_BEFORE):
        next(batches)
    return batches


def _size(state: Any) -> int:
    return len(json.dumps(state, default=lambda tensor: tensor.tolist()))


if __name__ == "__main__":
    run(measure, __doc__)
