"""Passes: a loop that takes batches from a loader, and the time it spends waiting for them.

Verification measures its throughput with the same loop.
"""

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
    """Times measured by :func:`run`, in seconds.

    The steady part leaves out the first batches of each pass: the one that waits for the workers
    to start, and those prefetched meanwhile. A pass with too few batches counts as a whole.

    Attributes:
        firsts: wait for the first batch of each pass, during which workers start.
        waits: wait for each other batch.
        steady_samples, steady_batches: numbers of samples and batches in the steady part.
        waited: time the steady part waited for batches.
        stepped: time the steady part slept after batches.
        batch_bytes: bytes of the tensors and arrays in a pass's first batch, which is a full one.
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
        """Duration of the steady part."""
        return self.waited + self.stepped

    @property
    def samples_per_second(self) -> float:
        """Rate of the steady part."""
        return self.steady_samples / max(self.steady_seconds, 1e-9)

    @property
    def batches_per_second(self) -> float:
        """Rate of the steady part."""
        return self.steady_batches / max(self.steady_seconds, 1e-9)


def run(loader: Iterable[Any], seconds: float, *, step: float = 0.0) -> Timings:
    """Take batches for about ``seconds``, over as many passes as fit.

    Args:
        loader: a ``torch.utils.data.DataLoader``, a ``ResumableDataLoader``, or any other iterable
            of batches, each of which then counts as one sample.
        seconds: counted from the first batch. A batch begun in this time is still waited for.
        step: seconds to sleep after each batch, like a training whose device computes.

    Raises:
        ConfigurationError: (a ``ValueError``) the loader gives no batch.
    """
    timings = Timings()
    end: float | None = None
    # The first pass of a copy is empty if it stands at the very end of an epoch.
    for passes in count():
        rows = list[tuple[float, float, int]]()
        for wait, batch in _waits(iter(loader)):
            end = perf_counter() + seconds if end is None else end
            (timings.waits if rows else timings.firsts).append(wait)
            if not rows:
                # Not the batch itself, which would keep its slot of the workers' shared memory.
                timings.batch_bytes = sum(leaf.nbytes for _, leaf in leaves_of(batch))
            rows.append((wait, _slept(step), _samples_in(batch, loader)))
            if perf_counter() >= end:
                break
        _count(timings, rows, _warm_up(loader))
        if end is not None and perf_counter() >= end:
            return timings
        if not rows and passes:
            raise ConfigurationError(
                "the loader gave no batch, so there is nothing to measure: give it more samples, a "
                "smaller batch_size, or drop_last=False"
            )
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


def _warm_up(loader: Iterable[Any]) -> int:
    """How many batches are made while workers start: the first, and the prefetched ones."""
    if not isinstance(loader, DataLoader):
        return 1
    return 1 + loader.num_workers * (loader.prefetch_factor or 2)


def _samples_in(batch: Any, loader: Iterable[Any]) -> int:
    """Number of samples in a batch."""
    if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
        return 1
    for _, leaf in leaves_of(batch):
        if leaf.ndim:
            return len(leaf)
    if isinstance(batch, list) and not isinstance(batch[0] if batch else None, torch.Tensor):
        return len(batch)
    return loader.batch_size or 1
