"""`measure`: runs a loader, its stages, and other numbers of workers, within so many seconds."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from dataporter.errors import UnsupportedDatasetError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.bench.advice import by_estimate, by_trial
from dataporter.tools.bench.copies import copied, with_workers
from dataporter.tools.bench.passes import Timings, run
from dataporter.tools.bench.report import BenchReport, Latency, Stage, Trial, duration
from dataporter.tools.bench.stages import Stages, measure_stages
from dataporter.tools.target import in_one_line

__all__ = ["measure"]

_ROUNDS = 3
# Waits that the hand-over is taken from: fewer say nothing.
_FEWEST = 5
# What the loop sleeps, of the time in which the workers make a batch, so that one is always ready.
_SLACK = 2.0
_MANY = 100
_MUCH_SEEDING = 0.3
_UNEXPLAINED = 1.5


def measure(
    loader: Any, *, seconds: float = 10.0, workers: Sequence[int] = (), step: float = 0.0
) -> BenchReport:
    """How fast a loader is, and why.

    Args:
        loader: a ``torch.utils.data.DataLoader`` or a ``ResumableDataLoader``; copies of it are
            run.
        seconds: for all of it, but for the start of workers and the batches under way.
        workers: other numbers of them to try.
        step: how long the loop sleeps after each batch.

    Raises:
        UnsupportedDatasetError: (a ``TypeError``) it is no loader.
        ConfigurationError: (a ``ValueError``) it gives no batch, or cannot have other workers.
    """
    if not isinstance(loader, DataLoader):
        raise UnsupportedDatasetError(
            f"{type(loader).__name__} is no DataLoader: name a function that returns a "
            "torch.utils.data.DataLoader or a ResumableDataLoader"
        )
    # All that can be refused is refused before anything is measured.
    contestants = {number: with_workers(loader, number) for number in workers}
    cores = _cores()
    notes = _notes_on_machine(cores)
    share = seconds / 2 if contestants else seconds
    current = copied(loader)
    timings = run(current, share * 0.5, step=step)
    stages = _stages(copied(loader, current), share * 0.3, notes)
    handover: list[float] = []
    if stages is not None:
        handover = _handover(loader, current, _work(stages), cores, share * 0.2, notes)
        notes += _notes_on_seeding(stages)
        notes += _notes_on_contention(loader, timings, _work(stages), handover, cores)
    trials = _trials(contestants, share, step)
    if len(timings.waits) < _MANY:
        notes.append(
            f"the percentiles are of {len(timings.waits)} batches only; --seconds measures more"
        )
    advice = by_trial(trials) if trials else []
    if not trials and stages is not None:
        advice = by_estimate(_work(stages), median(handover) if handover else None, step, cores)
    steady = max(timings.steady_seconds, 1e-9)
    return BenchReport(
        loader=type(loader).__name__,
        workers=loader.num_workers,
        cores=cores,
        batch_samples=timings.steady_samples / max(1, timings.steady_batches),
        batch_bytes=timings.batch_bytes,
        samples_per_second=timings.samples_per_second,
        batches_per_second=timings.batches_per_second,
        step=step,
        waited=timings.waited / steady,
        latency=Latency.of(timings.firsts, timings.waits),
        stages=tuple(_rows(loader, stages, handover, timings)),
        trials=trials,
        advice=tuple(advice),
        notes=tuple(notes),
    )


def _stages(loader: DataLoader[Any], seconds: float, notes: list[str]) -> Stages | None:
    try:
        return measure_stages(loader, seconds)
    except Exception as error:
        if loader.num_workers == 0:
            raise
        # A dataset may need what worker_init_fn does.
        notes.append(
            "where the time goes is not known: the dataset could not be read in this process, "
            f"outside of its workers ({in_one_line(error)})"
        )
        return None


def _work(stages: Stages) -> list[float]:
    """Seconds to make each batch."""
    parts = [part for part in (stages.read, stages.seed, stages.collate, stages.convert) if part]
    return [sum(row) for row in zip(*parts)]


def _handover(
    loader: DataLoader[Any],
    at: DataLoader[Any],
    work: list[float],
    cores: int,
    seconds: float,
    notes: list[str],
) -> list[float]:
    """What is left of ``next()`` where the loop is so slow that a batch always lies ready.

    A loader without workers gets one for it.
    """
    workers = max(1, loader.num_workers)
    step = max(1e-3, _SLACK * median(work) / min(workers, cores))
    if step * _FEWEST > seconds:
        notes.append(
            "the hand-over was not measured: it takes a loop that is slower than the workers, and "
            f"{step * _FEWEST * 5:.0f} s of --seconds"
        )
        return []
    try:
        slow = copied(with_workers(loader, workers), at)
        waits = run(slow, seconds, step=step).waits[workers:]
    except Exception as error:
        if loader.num_workers:
            raise
        notes.append(f"the hand-over was not measured: with a worker, {in_one_line(error)}")
        return []
    if len(waits) < _FEWEST:
        notes.append(
            "the hand-over was not measured: too few batches came; --seconds measures more"
        )
        return []
    return waits


def _notes_on_seeding(stages: Stages) -> list[str]:
    share = sum(stages.seed) / max(sum(_work(stages)), 1e-9)
    if share < _MUCH_SEEDING:
        return []
    return [
        f"{share:.0%} of the work is to seed the random generators before each sample, which makes "
        'random augmentation exact; strategy="simple" does it once a batch, and a dataset that '
        "reads whole batches (__getitems__) is seeded once, too"
    ]


def _notes_on_contention(
    loader: DataLoader[Any],
    timings: Timings,
    work: list[float],
    handover: list[float],
    cores: int,
) -> list[str]:
    """Where a loop that does nothing else waits longer than the stages explain."""
    if timings.stepped or not loader.num_workers or not timings.waits:
        return []
    made = median(work) / min(loader.num_workers, cores)
    explained = max(made, median(handover) if handover else 0.0)
    waited = timings.waited / max(1, timings.steady_batches)
    if waited < _UNEXPLAINED * explained:
        return []
    return [
        f"the loop got a batch every {duration(waited)}, and the stages explain "
        f"{duration(explained)}: packing a batch in the worker is the rest, and that the workers, "
        f"the loop and whatever else runs share {cores} cores, and memory"
    ]


def _trials(
    contestants: dict[int, DataLoader[Any]], seconds: float, step: float
) -> tuple[Trial, ...]:
    """Each number of workers in turn, so that a neighbour's noise falls on all of them alike."""
    if not contestants:
        return ()
    each = seconds / len(contestants) / _ROUNDS
    numbers = list(contestants)
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    last: DataLoader[Any] | None = None
    for turn in range(_ROUNDS):
        first = turn % len(numbers)
        for number in numbers[first:] + numbers[:first]:
            gc.collect()
            last = copied(contestants[number], last)
            rates[number].append(run(last, each, step=step).samples_per_second)
    return tuple(Trial(number, tuple(rates[number])) for number in numbers)


def _rows(
    loader: DataLoader[Any], stages: Stages | None, handover: list[float], timings: Timings
) -> list[Stage]:
    making = "training"
    if loader.num_workers:
        is_thread = isinstance(loader, ResumableDataLoader) and loader.worker_kind == "thread"
        making = "thread" if is_thread else "worker"
    rows = []
    if stages is not None:
        measured = {
            "read and collate" if stages.together else "read": stages.read,
            "seed": stages.seed,
            "collate": stages.collate,
            "convert": stages.convert,
        }
        rows = [
            Stage(name, making, *_middle(values), len(values))
            for name, values in measured.items()
            if any(values)
        ]
    if handover:
        # Of a worker that the loader has not got, for comparison.
        name = "hand over" if loader.num_workers else "(hand over)"
        rows.append(Stage(name, "training", *_middle(handover), len(handover)))
    waits = timings.waits or timings.firsts
    return [*rows, Stage("wait", "training", *_middle(waits), len(waits))]


def _middle(values: Sequence[float]) -> tuple[float, float]:
    p50, p90 = np.percentile(values, [50, 90])
    return float(p50), float(p90)


def _cores() -> int:
    # Windows and macOS have no affinity.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _notes_on_machine(cores: int) -> list[str]:
    if not hasattr(os, "getloadavg"):
        return []
    load = os.getloadavg()[0]
    if load < cores / 2:
        return []
    return [
        f"the machine was busy before this began (load {load:.1f} on {cores} cores), so that the "
        "loader may be faster than it seems"
    ]
