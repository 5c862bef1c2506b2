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

_END = object()


# Of a batch: seconds waited, seconds slept, number of samples.
_Row = tuple[float, float, int]


@dataclass
class Timings:
    """Times measured by :func:`run`, in seconds.

    The steady part leaves out what workers make while they start: the batch that waits for them,
    and those prefetched meanwhile. A pass in which no worker starts counts as a whole.

    Attributes:
        firsts: wait for the first batch of each pass, during which workers start, and since the
            last batch of the pass before, whose workers end.
        waits: wait for each other batch.
        steady_samples, steady_batches: numbers of samples and batches in the steady part.
        waited: time the steady part waited for batches.
        stepped: time the steady part slept after batches.
        counts_start: whether the steady part includes the start of workers, since no pass has
            enough batches to leave it out.
        batch_bytes: bytes of the tensors and arrays in a pass's first batch, which is a full one.
    """

    firsts: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    steady_samples: int = 0
    steady_batches: int = 0
    waited: float = 0.0
    stepped: float = 0.0
    counts_start: bool = False
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


def run(
    loader: Iterable[Any], seconds: float, *, step: float = 0.0, patience: float = 0.0
) -> Timings:
    """Take batches for about ``seconds``, over as many passes as fit.

    Args:
        loader: a ``torch.utils.data.DataLoader``, a ``ResumableDataLoader``, or any other iterable
            of batches, each of which then counts as one sample.
        seconds: counted from the first batch. A batch begun in this time is still waited for.
        step: seconds to sleep after each batch, like a training whose device computes.
        patience: seconds more to wait for enough batches to leave out the start of workers.

    Raises:
        ConfigurationError: (a ``ValueError``) the loader gives no batch.
    """
    timings = Timings()
    short: list[_Row] = []  # of passes that have nothing but the start of workers
    end: float | None = None
    between = 0.0
    workers = loader.num_workers if isinstance(loader, DataLoader) else 0
    # The first pass of a copy is empty if it stands at the very end of an epoch.
    for passes in count():
        rows: list[_Row] = []
        warm_up = _warm_up(loader, is_first=not timings.firsts)
        for wait, batch in _waits(loader):
            if batch is _END:
                between = wait  # before the next pass, whose first batch comes so much later
                break
            wait, between = wait + between, 0.0
            end = perf_counter() + seconds if end is None else end
            (timings.waits if rows else timings.firsts).append(wait)
            if not rows:
                # Not the batch itself, which would keep its slot of the workers' shared memory.
                timings.batch_bytes = sum(leaf.nbytes for _, leaf in leaves_of(batch))
            rows.append((wait, _slept(step), _samples_in(batch, loader)))
            lacks = not timings.steady_batches and len(rows) <= 2 * warm_up
            if perf_counter() >= end + (patience if lacks else 0.0):
                break
        is_cut = batch is not _END and len(timings.firsts) == 1
        if steady := _steady(rows, warm_up, workers, is_cut=is_cut):
            _count(timings, steady)
        else:
            short += rows
        left = patience if not timings.steady_batches else 0.0
        if end is not None and perf_counter() >= end + left:
            if not timings.steady_batches:
                timings.counts_start = workers > 0
                _count(timings, short)
            return timings
        if not rows and passes:
            raise ConfigurationError(
                "the loader gave no batch, so there is nothing to measure: give it more samples, a "
                "smaller batch_size, or drop_last=False"
            )
    raise AssertionError("unreachable")


def _waits(loader: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    """Each batch of a pass with the wait for it, and at last the wait for the end."""
    before = perf_counter()
    batches = iter(loader)  # torch's loader starts its workers here
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            yield perf_counter() - before, _END
            return
        yield perf_counter() - before, batch
        before = perf_counter()


def _slept(step: float) -> float:
    if step <= 0:
        return 0.0
    before = perf_counter()
    sleep(step)
    return perf_counter() - before


def _steady(rows: list[_Row], warm_up: int, workers: int, *, is_cut: bool) -> list[_Row]:
    """Those of a pass that came after the start of workers; empty: it has too few to tell.

    Args:
        is_cut: the time was over before the first pass. Of a later one, that says nothing: the
            time may end anywhere in it.
    """
    if len(rows) > 2 * warm_up:
        return rows[warm_up:]
    # So slow a loader has hardly prefetched more than a batch per worker.
    each = max(1, workers)
    return rows[each:] if is_cut and len(rows) > 2 * each else []


def _count(timings: Timings, rows: list[_Row]) -> None:
    for wait, stepped, samples in rows:
        timings.waited += wait
        timings.stepped += stepped
        timings.steady_samples += samples
        timings.steady_batches += 1


def _warm_up(loader: Iterable[Any], *, is_first: bool) -> int:
    """How many batches are made while workers start: the first, and the prefetched ones."""
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return 1 if is_first else 0
    if loader.persistent_workers and not is_first:
        return 0
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
