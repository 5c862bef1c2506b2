"""`measure`: runs a loader, its stages, and other numbers of workers, for a number of seconds."""

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
# The hand-over is the median of at least so many waits.
_FEWEST = 5
# The loop sleeps so many times as long as the workers need for a batch: one is always ready.
_SLACK = 2.0
_MANY = 100
_MUCH_SEEDING = 0.3
_UNEXPLAINED = 1.5
_TOO_SHORT_TO_TELL = 20e-6


def measure(
    loader: Any, *, seconds: float = 10.0, workers: Sequence[int] = (), step: float = 0.0
) -> BenchReport:
    """Measure how fast a loader is, and why.

    Args:
        loader: a ``torch.utils.data.DataLoader`` or a ``ResumableDataLoader``, which stays as it
            is: copies of it run.
        seconds: for the whole measurement, except for starting workers and finishing batches.
        workers: other numbers of workers to try.
        step: seconds the loop sleeps after each batch.

    Raises:
        UnsupportedDatasetError: (a ``TypeError``) ``loader`` is not a ``DataLoader``.
        ConfigurationError: (a ``ValueError``) the loader gives no batch, or cannot have other
            numbers of workers.
    """
    if not isinstance(loader, DataLoader):
        raise UnsupportedDatasetError(
            f"{type(loader).__name__} is not a DataLoader: name a function that returns a "
            "torch.utils.data.DataLoader or a ResumableDataLoader"
        )
    # First, so that a number that cannot be had is refused before the measuring.
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
        notes += _notes_on_waiting(loader, timings, _work(stages), handover, cores)
    trials = _trials(contestants, share, step)
    if len(timings.waits) < _MANY:
        notes.append(
            f"the percentiles are those of only {len(timings.waits)} batches; --seconds measures "
            "more"
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
        latency=Latency.measured(timings.firsts, timings.waits),
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
        # The dataset may rely on worker_init_fn.
        notes.append(
            "the stages were not measured: the dataset could not be read in this process, outside "
            f"of its workers ({in_one_line(error)})"
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
    """Time of ``next()`` in a loop so slow that a batch is always ready: the hand-over alone.

    A loader without workers is measured with one.
    """
    workers = max(1, loader.num_workers)
    step = max(1e-3, _SLACK * median(work) / min(workers, cores))
    if step * _FEWEST > seconds:
        notes.append(
            "the hand-over was not measured: it needs a loop slower than the workers, and so "
            f"--seconds {step * _FEWEST * 5:.0f}"
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
            "the hand-over was not measured: there were too few batches; --seconds measures more"
        )
        return []
    return waits


def _notes_on_seeding(stages: Stages) -> list[str]:
    share = sum(stages.seed) / max(sum(_work(stages)), 1e-9)
    if share < _MUCH_SEEDING:
        return []
    return [
        f"{share:.0%} of the work is seeding the global generators that each sample draws from, "
        "which makes random augmentation exact: draw from dataporter.sample_rng(), or from one of "
        'them alone; strategy="simple" seeds once a batch, and so does a dataset that reads whole '
        "batches (__getitems__)"
    ]


def _notes_on_waiting(
    loader: DataLoader[Any],
    timings: Timings,
    work: list[float],
    handover: list[float],
    cores: int,
) -> list[str]:
    """A note if the loop waits longer than the stages explain."""
    if timings.counts_start:
        return [
            "the rate and the waits include the start of the workers, since no pass has enough "
            "batches to leave it out; persistent_workers=True starts them once"
        ]
    batches = max(1, timings.steady_batches)
    waited, slept = timings.waited / batches, timings.stepped / batches
    explained = median(work)
    if loader.num_workers:
        # While the loop sleeps, the workers make the next batch.
        made = explained / min(loader.num_workers, cores) - slept
        explained = max(made, median(handover) if handover else 0.0)
    if waited < max(_UNEXPLAINED * explained, explained + _TOO_SHORT_TO_TELL):
        return []
    where = "packing batches in the workers" if loader.num_workers else "the loader's own work"
    whom = "the loop and other programs" if loader.num_workers else "other programs"
    return [
        f"the loop waited {duration(waited)} for a batch, and the stages explain "
        f"{duration(explained)}: the rest is {where}, and sharing {cores} cores and the memory "
        f"with {whom}"
    ]


def _trials(
    contestants: dict[int, DataLoader[Any]], seconds: float, step: float
) -> tuple[Trial, ...]:
    """Try the numbers of workers in alternation, so that noise affects all of them alike."""
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
            Stage(name, making, *_percentiles(values), len(values))
            for name, values in measured.items()
            if any(values)
        ]
    if handover:
        # In brackets, for comparison, if the loader has no workers.
        name = "hand over" if loader.num_workers else "(hand over)"
        rows.append(Stage(name, "training", *_percentiles(handover), len(handover)))
    waits = timings.waits or timings.firsts
    return [*rows, Stage("wait", "training", *_percentiles(waits), len(waits))]


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
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
        f"the machine was busy before the measurement (load {load:.1f} on {cores} cores), so the "
        "loader may be faster than it seems"
    ]
