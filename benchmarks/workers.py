"""How fast do two worker processes deliver, for each kind of dataset?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from benchmarks.command import run
from benchmarks.datasets import BatchedDicts, Dicts, NumpyDicts, NumpyPairs, pairs
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
from benchmarks.rounds import Rounds, play
from benchmarks.tables import Goal, Table
from benchmarks.timing import samples_per_second

NUM_WORKERS = 2
GOAL = 2.5
# More than the workers can have prefetched when the first batch is delivered.
WARM_UP = 8
SIMPLE = "DataPorter, strategy 'simple'"
NOT_APPLICABLE = "—"


def measure(quick: bool) -> Table:
    play_with = partial(_play, rounds=2 if quick else 5, at_most=0.3 if quick else 1.0)
    of_tensors = play_with(pairs(), None if quick else NumpyPairs())
    of_dicts = play_with(Dicts(), None if quick else NumpyDicts())
    of_batches = play_with(BatchedDicts(), None)
    reached = of_dicts.ratio(OURS, TORCH)
    rows = []
    for name in (OURS, SIMPLE, TORCH, TORCHDATA, GRAIN):
        cells = [_cell(rounds, name) for rounds in (of_tensors, of_dicts, of_batches)]
        rows.append((name, *cells))
    return Table(
        "Workers: the same datasets with 2 worker processes, samples/s (times torch)",
        ("", "TensorDataset", "dicts, `__getitem__`", "dicts, `__getitems__`"),
        tuple(rows),
        (
            Goal(
                f"dicts, `__getitem__`: at least {GOAL:g} times torch",
                f"{reached:.2f} times",
                reached >= GOAL,
            ),
        ),
        (
            f"{WARM_UP} batches are taken before the clock starts, so worker start-up does not "
            "count.",
            "DataPorter's first row is its default strategy. Grain has no public way to read a "
            "batch of rows from a source at once, hence the —. Its workers take about 10 s to "
            "start, so they stay alive between rounds, and --quick omits them.",
        ),
    )


def _play(dataset: Any, source: Any | None, *, rounds: int, at_most: float) -> Rounds:
    loaders: dict[str, Iterable[Any]] = {
        OURS: our_loader(dataset, num_workers=NUM_WORKERS),
        TORCH: torch_loader(dataset, num_workers=NUM_WORKERS),
        SIMPLE: our_loader(dataset, num_workers=NUM_WORKERS, strategy="simple"),
        TORCHDATA: torchdata_loader(dataset, num_workers=NUM_WORKERS),
    }
    if source is not None:
        loaders[GRAIN] = _Kept(iter(grain_loader(source, num_workers=NUM_WORKERS)))
    return play(
        {
            name: partial(
                samples_per_second,
                loader,
                batch_size=BATCH_SIZE,
                at_most=at_most,
                warm_up=WARM_UP,
            )
            for name, loader in loaders.items()
        },
        rounds,
    )


class _Kept:
    """An iterator that continues where the last round left it; prefetched batches are warm-up."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self._iterator


def _cell(rounds: Rounds, name: str) -> str:
    if name not in rounds.figures:
        return NOT_APPLICABLE
    return f"{rounds.median(name):,.0f} ({rounds.ratio(name, TORCH):.2f})"


if __name__ == "__main__":
    run(measure, __doc__)
