"""Stages: the time of each stage of making a batch (read, seed, collate, convert).

The batches are made in this process, by the loader's own fetch with a clock around its collation.
The loader's position does not move.
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
from dataporter.fetch.fetch import Fetch, WholeFetch
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.fetch.samples import SampleFetch
from dataporter.loader.loader import ResumableDataLoader
from dataporter.seeding.generators import GENERATORS, GlobalGenerator, isolated_generators
from dataporter.seeding.hashing import sample_keys
from dataporter.streams.fetch import StreamFetch
from dataporter.tools.bench.copies import is_stream

__all__ = ["Stages", "measure_stages"]

_SEEDED = 200


@dataclass
class Stages:
    """Seconds that each batch takes, by stage.

    Attributes:
        read: reading the samples.
        seed: seeding the generators that the dataset draws from; measured separately.
        collate: collating the samples.
        convert: converting the batch to the converter's dtypes.
        together: reading and collating are one stage, whose time is in ``read``.
    """

    read: list[float] = field(default_factory=list)
    seed: list[float] = field(default_factory=list)
    collate: list[float] = field(default_factory=list)
    convert: list[float] = field(default_factory=list)
    together: bool = False


def measure_stages(loader: DataLoader[Any], seconds: float) -> Stages:
    """Make batches in this process for about ``seconds``, from the loader's position on.

    Raises:
        Exception: whatever the dataset raises.
    """
    with isolated_generators(), _threads_of(loader):
        if isinstance(loader, ResumableDataLoader):
            return _of_resumable(loader, seconds)
        return _of_plain(loader, seconds)


@contextmanager
def _threads_of(loader: DataLoader[Any]) -> Iterator[None]:
    """Use as many torch threads as the process that makes the loader's batches."""
    before = torch.get_num_threads()
    if loader.num_workers:
        torch.set_num_threads(1)  # as in torch's workers and ours
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


def _of_resumable(loader: ResumableDataLoader[Any], seconds: float) -> Stages:
    setup = loader.setup
    collating, fetching = _Clock(), _Clock()
    stages = Stages()
    fetch, seeds = _fetch_of(loader, collating)
    stages.together = isinstance(fetch, WholeFetch)
    seeding = _seconds_to_seed() if seeds else {}
    converter = converter_for(loader.converter)
    conversion = None if converter is None else converter.conversion
    timed = fetching.around(fetch)
    engine = InlineEngine(lambda: timed, lambda batch: batch)
    end = perf_counter() + seconds
    progress = loader.mark().progress
    for _ in range(2):  # the rest of the current epoch may have no batch
        requests = setup.schedule.requests(progress, loader.seed)
        for reply in requests.batches(engine.start(requests, None)):
            if reply.failure is not None:
                raise reply.failure
            assert reply.fetched is not None
            each = sum(seeding[generator] for generator in _drawn_from(fetch)) if seeds else 0.0
            seeded = each * seeds(reply.request) if seeds else 0.0
            collated = collating.taken()
            stages.collate.append(collated)
            stages.seed.append(seeded)
            stages.read.append(max(0.0, fetching.taken() - collated - seeded))
            stages.convert.append(_seconds_to_convert(reply.fetched, conversion))
            if perf_counter() >= end:
                return stages
        progress = setup.beginning(progress.epoch + 1)
    return stages


def _fetch_of(
    loader: ResumableDataLoader[Any], clock: _Clock
) -> tuple[Fetch, Callable[[Any], int] | None]:
    """The loader's fetch with a clock, and how often it seeds for a request; None if never."""
    setup = loader.setup
    batched = loader.batch_sampler is not None
    each = loader.strategy.seeds_each
    in_threads = loader.worker_kind == "thread" and loader.num_workers > 0
    collate = loader.collate_fn
    if setup.stream is not None:
        known = batched and collate is default_collate
        collate = clock.around(collate_of(loader.dataset) if known else collate)
    fetch = setup.fetch(
        collate,
        batched=batched,
        seeds_each="nothing" if in_threads else each,
        **setup.reacting(loader.on_error),
    )
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
    return fetch, _samples_requested


def _samples_requested(request: Any) -> int:
    # The request of a stream has their number, that of a map-style dataset their indices.
    length = getattr(request, "length", None)
    return len(request.indices) if length is None else int(length)


def _drawn_from(fetch: Fetch) -> tuple[GlobalGenerator, ...]:
    """The generators that a fetch seeds for each sample, as far as its batches have shown."""
    if isinstance(fetch, WholeFetch):
        fetch = fetch.otherwise
    return fetch.drawn_from.samples if isinstance(fetch, SampleFetch | StreamFetch) else ()


def _seconds_to_seed() -> dict[GlobalGenerator, float]:
    """Seconds for one sample, by generator."""
    keys = sample_keys(0, 0, np.arange(_SEEDED)).tolist()
    seconds = {}
    for generator in GENERATORS:
        before = perf_counter()
        for key in keys:
            generator.seed(key)
        seconds[generator] = (perf_counter() - before) / _SEEDED
    return seconds


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
