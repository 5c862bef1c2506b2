"""How fast is each loader in its default setting? The one table that the README shows."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import psutil

from benchmarks.command import run
from benchmarks.datasets import Dicts, NumpyDicts, NumpyPairs, pairs
from benchmarks.huggingface import saved, token_rows
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
from benchmarks.machine import cpu_model
from benchmarks.photographs import Photographs
from benchmarks.readme import SUMMARY
from benchmarks.resume import LENGTH_FOR_PEERS, half_way
from benchmarks.rounds import Rounds, play
from benchmarks.side_by_side import race
from benchmarks.tables import Table
from benchmarks.timing import samples_per_second
from dataporter import UnifiedHFDatasetWrapper

SHOWN = (OURS, TORCH, TORCHDATA, GRAIN)
# torch's loader takes part twice: how its two results differ is the noise of the machine.
AGAIN = f"{TORCH}, again"
NUM_WORKERS = 2
SMALL_BATCH = 64
PHOTOGRAPHS_IN_BATCH = 16
# So many that a pass is long enough to measure.
TOKEN_ROWS = 100_000
WARM_UP = 20
# Samples that the reader threads of Grain's workers have read by its turn, since they never stop.
GRAIN_IS_AHEAD = NUM_WORKERS * 500
NOT_APPLICABLE = "—"


@dataclass(frozen=True, slots=True)
class Row:
    """A question, and the speed of each contestant in each round."""

    question: str
    speeds: Rounds
    shown: Callable[[float], str]


class NumpyPhotographs(Photographs):
    """The same as arrays, since Grain batches with NumPy."""

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index).numpy()


def measure(quick: bool) -> Table:
    datasets.disable_progress_bars()
    load = os.getloadavg()[0]
    return _table(list(_rows(quick)), load)


def _table(rows: list[Row], load: float) -> Table:
    return Table(
        SUMMARY,
        ("", "DataPorter", "torch", "torchdata", "Grain"),
        tuple((row.question, *_cells(row)) for row in rows),
        (),
        (
            f"{_machine()}, load {load:.1f} before the run; speeds in samples per second (times "
            f"torch's). {_noise(rows)}",
            "Each loader is what its documentation writes first; ours is "
            "`create_resumable_dataloader(dataset, batch_size=..., shuffle=True)`. Medians of the "
            "rounds; in parentheses the median, over the rounds, of how many times as fast as "
            "torch's loader. Bold: the fastest, and what the noise does not tell from it. Without "
            "workers the loaders take turns of 20 batches; with workers each has the machine to "
            f"itself, and {WARM_UP} batches are taken before the clock starts (of Grain, also what "
            "its workers have read in the meantime).",
            "Grain reads the same rows as NumPy values; its reader threads are off where there are "
            "no workers. torch and torchdata read Hugging Face's rows with `with_format('torch')`, "
            "Grain with `with_format('numpy')`, DataPorter with its wrapper. To resume, torch "
            "skips the delivered batches with `itertools.islice`. --quick omits Grain's workers, "
            "which take 10 s to start.",
            "torch's loader against itself, lowest to highest: "
            + "; ".join(f"{row.question}: {_against_itself(row)}" for row in rows)
            + ".",
        ),
    )


def _rows(quick: bool) -> Iterator[Row]:
    inline = partial(_inline, quick=quick)
    workers = partial(_with_workers, quick=quick)
    yield Row(
        f"dicts of 64 floats and a label, batch {BATCH_SIZE}, no workers",
        inline(Dicts(), NumpyDicts()),
        _per_second,
    )
    yield Row("the same, 2 workers", workers(Dicts(), NumpyDicts()), _per_second)
    yield Row(
        "the same rows in a `TensorDataset`, no workers",
        inline(pairs(), NumpyPairs()),
        _per_second,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = saved(token_rows(TOKEN_ROWS), Path(folder))
        yield Row(
            f"Hugging Face rows of 512 tokens, batch {SMALL_BATCH}, 2 workers",
            workers(
                rows.with_format("torch"),
                rows.with_format("numpy"),
                ours=UnifiedHFDatasetWrapper(rows),
                batch_size=SMALL_BATCH,
            ),
            _per_second,
        )
    yield Row(
        f"JPEGs, decoded and resized, batch {PHOTOGRAPHS_IN_BATCH}, 2 workers",
        workers(Photographs(), NumpyPhotographs(), batch_size=PHOTOGRAPHS_IN_BATCH),
        _per_second,
    )
    length = LENGTH_FOR_PEERS // 10 if quick else LENGTH_FOR_PEERS
    yield Row(
        f"from a saved state to the next batch, half-way through {length:,} samples",
        _resumed(length, rounds=2 if quick else 3),
        _duration,
    )


def _inline(dataset: Any, source: Any, *, quick: bool) -> Rounds:
    loaders = {
        OURS: our_loader(dataset),
        TORCH: torch_loader(dataset),
        AGAIN: torch_loader(dataset),
        TORCHDATA: torchdata_loader(dataset),
        GRAIN: grain_loader(source),
    }
    return race(loaders, batch_size=BATCH_SIZE, quick=quick)


def _with_workers(
    dataset: Any,
    source: Any,
    *,
    quick: bool,
    ours: Any = None,
    batch_size: int = BATCH_SIZE,
) -> Rounds:
    arguments: Any = {"batch_size": batch_size, "num_workers": NUM_WORKERS}
    loaders: dict[str, Iterable[Any]] = {
        OURS: our_loader(dataset if ours is None else ours, **arguments),
        TORCH: torch_loader(dataset, **arguments),
        AGAIN: torch_loader(dataset, **arguments),
        TORCHDATA: torchdata_loader(dataset, **arguments),
    }
    if not quick:
        # Its workers stay alive between the rounds, as they take so long to start.
        loaders[GRAIN] = _Kept(iter(grain_loader(source, **arguments)))
    warm_up = dict.fromkeys(loaders, WARM_UP)
    warm_up[GRAIN] = WARM_UP + GRAIN_IS_AHEAD // batch_size
    timed = {
        name: partial(
            samples_per_second,
            loader,
            batch_size=batch_size,
            at_most=0.3 if quick else 0.7,
            warm_up=warm_up[name],
        )
        for name, loader in loaders.items()
    }
    played = play(timed, 3 if quick else 7)
    for loader in loaders.values():
        if isinstance(loader, _Kept):
            loader.close()
    return played


class _Kept:
    """An iterator that continues where the last round left it."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterator)

    def close(self) -> None:
        with suppress(AttributeError):
            self._iterator.close()


def _resumed(length: int, rounds: int) -> Rounds:
    ways = half_way(length)
    ways[AGAIN] = ways[TORCH]
    played = play({name: case.seconds for name, case in ways.items()}, rounds)
    return Rounds({name: [1 / each for each in times] for name, times in played.figures.items()})


def _cells(row: Row) -> Iterator[str]:
    speeds = row.speeds
    # Ratios within a round say more than medians: the machine's speed changes from round to round.
    best = max(speeds.ratio(name, TORCH) for name in SHOWN if name in speeds.figures)
    least = best * (1 - _spread(row))
    for name in SHOWN:
        if name not in speeds.figures:
            yield NOT_APPLICABLE
            continue
        shown = row.shown(speeds.median(name))
        if speeds.ratio(name, TORCH) >= least:
            shown = f"**{shown}**"
        yield shown if name == TORCH else f"{shown} ({_times(speeds.ratio(name, TORCH))})"


def _against_itself(row: Row) -> str:
    ratios = _ratios(row)
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def _ratios(row: Row) -> list[float]:
    figures = row.speeds.figures
    return [one / other for one, other in zip(figures[AGAIN], figures[TORCH], strict=True)]


def _spread(row: Row) -> float:
    """How far the ratio of two equal contestants typically is from 1."""
    return median(abs(ratio - 1) for ratio in _ratios(row))


def _noise(rows: list[Row]) -> str:
    typical = [f"{_spread(row):.0%}" for row in rows]
    return (
        "Noise: torch's loader took part twice; in half of the rounds its two speeds differed by "
        f"at most {', '.join(typical[:-1])} and {typical[-1]}, row by row."
    )


def _machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchdata", "grain"))
    return (
        f"{date.today().isoformat()}, {psutil.cpu_count(logical=False)} cores of {cpu_model()}, "
        f"Python {platform.python_version()}, {libraries}"
    )


def _per_second(speed: float) -> str:
    return f"{_rounded(speed):,.0f}"


def _duration(speed: float) -> str:
    seconds = 1 / speed
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{_rounded(ratio):,.0f}"


def _rounded(number: float) -> float:
    """To three digits, as many as the noise leaves."""
    return float(np.format_float_positional(number, 3, unique=False, fractional=False))


if __name__ == "__main__":
    run(measure, __doc__)
