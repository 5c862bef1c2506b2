"""How fast are iterable datasets, and how soon is the first batch after a resume?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from benchmarks.command import run
from benchmarks.loaders import OURS, TORCH, TORCHDATA
from benchmarks.rounds import Rounds, play
from benchmarks.side_by_side import PROCEDURE, race
from benchmarks.tables import Goal, Table
from benchmarks.timing import samples_per_second, seconds_once
from dataporter import create_resumable_dataloader

BATCH_SIZE = 64
# Samples before the stop from which each loader resumes.
STOP = 500_000
WARM_UP = 20
SHARDS, SNAPSHOTS = f"{OURS}, shards", f"{OURS}, snapshots"
# Times torch's samples per second, by the number of workers.
GOALS = {0: 1.0, 2: 8.0}
_ENDLESS = 1 << 40


class Stream(IterableDataset[Any]):
    """Rows that are nearly free to read, divided among the workers; has a state."""

    def __init__(self) -> None:
        # The same in each instance: a resume compares what it rereads.
        self.row = torch.linspace(0, 1, 64)
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, every = (0, 1) if info is None else (info.id, info.num_workers)
        return self.rows(first, every)

    def rows(self, first: int, every: int) -> Iterator[Any]:
        while self.position < _ENDLESS:
            number = first + every * self.position
            self.position += 1
            yield {"row": self.row, "number": number}

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Shards(Stream):
    """The same, in shards."""

    num_shards = 4

    def shard(self, num_shards: int, index: int) -> Shard:
        return Shard(index, num_shards)


class Shard(Stream):
    """One of them."""

    def __init__(self, index: int, num_shards: int) -> None:
        super().__init__()
        self.index, self.num_shards = index, num_shards

    def __iter__(self) -> Iterator[Any]:
        return self.rows(self.index, self.num_shards)


class Stateless(IterableDataset[Any]):
    """The same rows without a state."""

    def __iter__(self) -> Iterator[Any]:
        return iter(Stream())


def measure(quick: bool) -> Table:
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    for num_workers, wanted in GOALS.items():
        loaders: dict[str, Callable[[], Any]] = {
            TORCH: lambda n=num_workers: DataLoader(Stateless(), BATCH_SIZE, num_workers=n),
            TORCHDATA: lambda n=num_workers: StatefulDataLoader(
                Stream(), BATCH_SIZE, num_workers=n
            ),
            **_ours(num_workers),
        }
        rounds = _rates({name: build() for name, build in loaders.items()}, num_workers, quick)
        resumed = _resumed(num_workers, rounds=1 if quick else 3)
        for name in (SHARDS, SNAPSHOTS):
            reached = rounds.ratio(name, TORCH)
            goals.append(
                Goal(
                    f"{name}, {num_workers} workers: at least {wanted:g} times torch",
                    f"{reached:.2f} times",
                    reached >= wanted,
                )
            )
        for name in loaders:
            low, high = rounds.range(name)
            rows.append(
                (
                    f"{name}, {num_workers} workers",
                    f"{rounds.median(name):,.0f}",
                    f"{low:,.0f} to {high:,.0f}",
                    f"{rounds.ratio(name, TORCH):.2f}",
                    resumed.get(name, "no state"),
                )
            )
    return Table(
        "Streams: rows that are nearly free to read (64 float32, 1 int64), batch 64",
        ("", "samples/s", "range", "times torch", f"to the first batch after {STOP:,} samples"),
        tuple(rows),
        tuple(goals),
        (
            PROCEDURE + " With workers each loader is measured alone, in turn, after "
            f"{WARM_UP} batches.",
            "`simple` seeds the generators once a batch. The last column is the time from "
            "`iter()`, in a loader that has loaded the state, to the first batch, including worker "
            "start-up.",
        ),
    )


def _ours(num_workers: int) -> dict[str, Callable[[], Any]]:
    build = partial(create_resumable_dataloader, batch_size=BATCH_SIZE, num_workers=num_workers)
    return {
        SHARDS: lambda: build(Shards()),
        SNAPSHOTS: lambda: build(Stream()),
        f"{SHARDS}, simple": lambda: build(Shards(), strategy="simple"),
        f"{SNAPSHOTS}, simple": lambda: build(Stream(), strategy="simple"),
    }


def _rates(loaders: dict[str, Any], num_workers: int, quick: bool) -> Rounds:
    if num_workers == 0:
        return race(loaders, batch_size=BATCH_SIZE, quick=quick)
    at_most, rounds = (0.4, 3) if quick else (1.0, 7)
    # Workers keep reading during other loaders' turns, so each loader has the machine to itself.
    return play(
        {
            name: lambda loader=loader: samples_per_second(
                loader, batch_size=BATCH_SIZE, at_most=at_most, warm_up=WARM_UP
            )
            for name, loader in loaders.items()
        },
        rounds,
    )


def _resumed(num_workers: int, rounds: int) -> dict[str, str]:
    builds: dict[str, Callable[[], Any]] = {
        TORCHDATA: lambda: StatefulDataLoader(Stream(), BATCH_SIZE, num_workers=num_workers),
        **_ours(num_workers),
    }
    states = {name: _state_after(build(), STOP // BATCH_SIZE) for name, build in builds.items()}

    def seconds(name: str) -> float:
        loader = builds[name]()
        loader.load_state_dict(states[name])
        return seconds_once(lambda: next(iter(loader)))

    played = play({name: lambda name=name: seconds(name) for name in builds}, rounds)
    return {name: f"{played.median(name) * 1e3:.1f} ms" for name in builds}


def _state_after(loader: Any, batches: int) -> Any:
    iterator = iter(loader)
    for _ in islice(iterator, batches):
        pass
    return loader.state_dict()


if __name__ == "__main__":
    run(measure, __doc__)
