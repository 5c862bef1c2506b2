"""Stages: what making a batch takes, apart: read, seed, collate, convert; measured in this process.

The fetch is that of the loader itself, with a clock around what it collates with. Nothing of the
loader moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from dataporter.convert import Conversion, converter_for, new
from dataporter.engines import InlineEngine
from dataporter.fetch.collate import collate_of
from dataporter.fetch.fetch import Fetch, SampleFetch, WholeFetch
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.loader.indexed import IndexedFlow
from dataporter.loader.loader import ResumableDataLoader
from dataporter.seeding.generators import isolated_generators, seed_generators
from dataporter.seeding.hashing import sample_keys
from dataporter.tools.bench.copies import is_stream

__all__ = ["Stages", "measure_stages"]

_SEEDED = 200


@dataclass
class Stages:
    """Seconds of each batch.

    Attributes:
        read: reading samples, without what follows.
        seed: putting the random generators to each sample's own state; measured by itself.
        collate: making a batch of samples.
        convert: to the converter's dtypes.
        together: the samples are read and collated in one go, which ``read`` stands for.
    """

    read: list[float] = field(default_factory=list)
    seed: list[float] = field(default_factory=list)
    collate: list[float] = field(default_factory=list)
    convert: list[float] = field(default_factory=list)
    together: bool = False


def measure_stages(loader: DataLoader[Any], seconds: float) -> Stages:
    """Make batches in this process for about so long, from where the loader stands on.

    Raises:
        What the dataset raises.
    """
    with isolated_generators(), _threads_of(loader):
        if isinstance(loader, ResumableDataLoader) and loader._flow is not None:
            return _of_flow(loader, seconds)
        return _of_plain(loader, seconds)


@contextmanager
def _threads_of(loader: DataLoader[Any]) -> Iterator[None]:
    """As many of torch's threads as there are where the loader makes its batches."""
    before = torch.get_num_threads()
    if loader.num_workers:
        torch.set_num_threads(1)  # as torch's workers and ours do
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def timed(value: Any) -> Any:
            before = perf_counter()
            try:
                return function(value)
            finally:
                self.seconds += perf_counter() - before

        return timed

    def taken(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _of_flow(loader: ResumableDataLoader[Any], seconds: float) -> Stages:
    flow = loader._resumable()
    collating, fetching = _Clock(), _Clock()
    stages = Stages()
    fetch, seeds = _fetch_of(loader, collating)
    stages.together = isinstance(fetch, WholeFetch)
    seeding = _seconds_to_seed() if seeds else 0.0
    converter = converter_for(loader.converter)
    conversion = None if converter is None else converter.conversion
    timed = fetching.around(fetch)
    engine = InlineEngine(lambda: timed, lambda batch: batch)
    end = perf_counter() + seconds
    progress = loader._cursor.progress
    for _ in range(2):  # what is left of an epoch may be nothing
        for reply in flow.serve(engine, progress, loader.seed):
            if reply.failure is not None:
                raise reply.failure
            assert reply.fetched is not None
            seeded = seeding * seeds(reply.request) if seeds else 0.0
            collated = collating.taken()
            stages.collate.append(collated)
            stages.seed.append(seeded)
            stages.read.append(max(0.0, fetching.taken() - collated - seeded))
            stages.convert.append(_seconds_to_convert(reply.fetched, conversion))
            if perf_counter() >= end:
                return stages
        progress = flow.beginning(progress.epoch + 1)
    return stages


def _fetch_of(
    loader: ResumableDataLoader[Any], clock: _Clock
) -> tuple[Fetch, Callable[[Any], int] | None]:
    """The loader's fetch with a clock in it, and how often it seeds for a request, if it does."""
    flow = loader._resumable()
    batched = loader.batch_sampler is not None
    each = loader.strategy.seeds_each
    in_threads = loader.worker_kind == "thread" and loader.num_workers > 0
    collate = loader.collate_fn
    if not isinstance(flow, IndexedFlow):
        known = batched and collate is default_collate
        collate = clock.around(collate_of(loader.dataset) if known else collate)
    fetch = flow.fetch_builder(
        collate,
        batched=batched,
        seeds_each="nothing" if in_threads else each,
        on_error=loader.on_error,
    )()
    once = each == "batch"
    if isinstance(fetch, WholeFetch):
        seeds = fetch.draws and not in_threads
        return fetch, (lambda _: 1) if seeds else None
    if isinstance(fetch, SampleFetch):
        once = once or fetch.offers_batches
        fetch = replace(fetch, collate=clock.around(fetch.collate))
    if in_threads:
        return fetch, None
    if once:
        return fetch, lambda _: 1
    return fetch, _samples_asked_for


def _samples_asked_for(request: Any) -> int:
    # A stream's request says how many, an index's which.
    length = getattr(request, "length", None)
    return len(request.indices) if length is None else int(length)


def _seconds_to_seed() -> float:
    """Of one sample."""
    keys = sample_keys(0, 0, np.arange(_SEEDED)).tolist()
    before = perf_counter()
    for key in keys:
        seed_generators(key)
    return (perf_counter() - before) / _SEEDED


def _seconds_to_convert(fetched: Fetched, conversion: Conversion | None) -> float:
    if conversion is None or fetched.batch is NO_BATCH:
        return 0.0
    before = perf_counter()
    conversion.batch(fetched.batch, new)
    return perf_counter() - before


# ---- torch's own loader


def _of_plain(loader: DataLoader[Any], seconds: float) -> Stages:
    stages = Stages()
    end = perf_counter() + seconds
    samples = _samples_of_stream(loader) if is_stream(loader) else _samples_by_index(loader)
    collate: Any = loader.collate_fn
    while True:
        before = perf_counter()
        try:
            read = next(samples)
        except StopIteration:
            return stages
        between = perf_counter()
        collate(read)
        now = perf_counter()
        stages.read.append(between - before)
        stages.collate.append(now - between)
        if now >= end:
            return stages


def _samples_by_index(loader: DataLoader[Any]) -> Iterator[Any]:
    dataset: Any = loader.dataset
    if loader.batch_sampler is None:
        yield from (dataset[index] for index in loader.sampler)
        return
    for indices in loader.batch_sampler:
        if callable(getattr(dataset, "__getitems__", None)):
            yield dataset.__getitems__(indices)
        else:
            yield [dataset[index] for index in indices]


def _samples_of_stream(loader: DataLoader[Any]) -> Iterator[Any]:
    samples = iter(loader.dataset)
    if loader.batch_sampler is None or loader.batch_size is None:
        yield from samples
        return
    while batch := list(islice(samples, loader.batch_size)):
        yield batch
