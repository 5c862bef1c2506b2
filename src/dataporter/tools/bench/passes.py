"""Passes: a training loop that does nothing but take batches and sleep, and what it waited for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter, sleep
from typing import Any

import torch
from torch.utils.data import DataLoader

from dataporter.convert import leaves_of
from dataporter.errors import ConfigurationError

__all__ = ["Timings", "run"]


@dataclass
class Timings:
    """What a loop has measured, in seconds.

    Attributes:
        firsts: the wait for the first batch of each pass, in which workers start.
        waits: that for each other one.
        steady_samples, steady_seconds: of the batches behind those that were prefetched while the
            workers started; of all where a pass has no others.
        waited, stepped: in the steady part.
        batch_bytes: of the tensors of a pass's first batch, which is a whole one.
    """

    firsts: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    steady_samples: int = 0
    steady_batches: int = 0
    waited: float = 0.0
    stepped: float = 0.0
    batch_bytes: int = 0

    @property
    def steady_seconds(self) -> float:
        return self.waited + self.stepped

    @property
    def samples_per_second(self) -> float:
        return self.steady_samples / max(self.steady_seconds, 1e-9)

    @property
    def batches_per_second(self) -> float:
        return self.steady_batches / max(self.steady_seconds, 1e-9)


def run(loader: Iterable[Any], seconds: float, *, step: float = 0.0) -> Timings:
    """Take batches for about so long, over as many passes as that is.

    Args:
        loader: torch's or ours, or any other iterable of batches.
        seconds: counted from the first batch on. What is under way then is waited for.
        step: how long the loop sleeps after each batch, as a training does whose device computes.

    Raises:
        ConfigurationError: the loader gives no batch.
    """
    timings = Timings()
    end: float | None = None
    # A copy may stand at the very end of an epoch, whose pass is empty.
    for passes in count():
        rows = list[tuple[float, float, int]]()
        for wait, batch in _waits(iter(loader)):
            end = perf_counter() + seconds if end is None else end
            (timings.waits if rows else timings.firsts).append(wait)
            if not rows:
                # Not the batch itself, which would keep its place in the workers' shared memory.
                timings.batch_bytes = sum(leaf.nbytes for _, leaf in leaves_of(batch))
            rows.append((wait, _slept(step), samples_of(batch, loader)))
            if perf_counter() >= end:
                break
        _count(timings, rows, warm_up_of(loader))
        if end is not None and perf_counter() >= end:
            return timings
        if not rows and passes:
            raise ConfigurationError("the loader gave no batch: there is nothing to measure")
    raise AssertionError("unreachable")


def _waits(batches: Iterator[Any]) -> Iterator[tuple[float, Any]]:
    while True:
        before = perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            return
        yield perf_counter() - before, batch


def _slept(step: float) -> float:
    if step <= 0:
        return 0.0
    before = perf_counter()
    sleep(step)
    return perf_counter() - before


def _count(timings: Timings, rows: list[tuple[float, float, int]], warm_up: int) -> None:
    steady = rows[warm_up:] if len(rows) > 2 * warm_up else rows
    for wait, stepped, samples in steady:
        timings.waited += wait
        timings.stepped += stepped
        timings.steady_samples += samples
        timings.steady_batches += 1


def warm_up_of(loader: Iterable[Any]) -> int:
    """The first batch, and as many as are prefetched while it is waited for."""
    if not isinstance(loader, DataLoader):
        return 1
    return 1 + loader.num_workers * (loader.prefetch_factor or 2)


def samples_of(batch: Any, loader: Iterable[Any]) -> int:
    """How many samples a batch has."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return 1
    for _, leaf in leaves_of(batch):
        if leaf.ndim:
            return len(leaf)
    if isinstance(batch, list) and not isinstance(batch[0] if batch else None, torch.Tensor):
        return len(batch)
    return loader.batch_size or 1
