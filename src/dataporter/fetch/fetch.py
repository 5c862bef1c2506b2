"""Fetch: a request becomes a batch: its samples are read, collated and converted (C8, C11, C12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import default_collate

from dataporter.convert import Conversion, Empty
from dataporter.datasets.batches import batches_of
from dataporter.datasets.columns import columns_of, gather
from dataporter.datasets.mixture_rows import MixtureRows
from dataporter.errors import LossyConversionError, add_note
from dataporter.fetch.collate import collate_of
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.fetch.mixed import MixedFetch, mixed_fetch, whole_mixed
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.fetch.samples import (
    Replacement,
    SampleFetch,
    reads_together,
    seed_once,
    stopped,
)
from dataporter.schedule.request import Request
from dataporter.seeding.keyed import Seeds
from dataporter.seeding.samples import reading

__all__ = [
    "Fetch",
    "WholeFetch",
    "converting",
    "fetch_for",
]

# A pure function of the dataset and the request; sent to workers once, so it can be pickled if the
# dataset can. Raises what the dataset or the collate function raised, with a note that names
# index, epoch, step and position; or SampleError.
Fetch = Callable[[Any], Fetched]


def fetch_for(
    dataset: Any,
    collate_fn: Callable[[Any], Any],
    *,
    batched: bool,
    seeds_each: Literal["sample", "batch", "nothing"],
    on_error: OnError,
    replacement: Replacement | None = None,
    whole: AbstractContextManager[Any] | None = None,
) -> Fetch:
    """The fastest fetch that a dataset allows.

    Args:
        dataset: map-style; the requests' indices index it.
        collate_fn: makes a batch of a list of samples; converts a single sample
            (``batched=False``).
        batched: whether a request is a batch, or one sample that is delivered by itself.
        seeds_each: make batches as if the global random generators were seeded before each
            sample, or once a batch, and leave the generators as they are; or, where several threads
            would share them, do neither.
        on_error: the reaction to a sample that raises: raise its exception, leave the sample out,
            replace it by another sample, or by the result of a function.
        replacement: chooses the other sample; None chooses among those of the batch. In a mixture,
            another sample of the same source takes the place.
        whole: entered while a batch is made as a whole (``__getitems__``, a gather, collation), and
            not while single samples are read.
    """
    if isinstance(dataset, MixtureRows):
        mixed = mixed_fetch(
            dataset,
            collate_fn,
            batched=batched,
            seeds_each=seeds_each,
            on_error=on_error,
            whole=whole,
        )
        read = whole_mixed(dataset, on_error) if mixed.is_known else None
        return mixed if read is None else WholeFetch(read, mixed, draws=False)
    offers_batches = batched and reads_together(dataset)
    if offers_batches and seeds_each == "sample":
        seeds_each = "batch"
    # A gather gives what default_collate makes of the rows; of other functions that is unknown.
    known = batched and collate_fn is default_collate
    collating = collate_of(dataset) if known else collate_fn
    by_sample = SampleFetch(
        dataset,
        collating,
        batched,
        offers_batches,
        seeds_each,
        on_error,
        substitute_of(on_error) if callable(on_error) else None,
        replacement,
        whole or nullcontext(),
    )
    if not known:
        return by_sample
    if (columns := columns_of(dataset)) is not None:
        return WholeFetch(partial(gather, columns), by_sample, draws=False)
    # A sample that is to be left out has to be read by itself.
    batches = batches_of(dataset) if on_error == "raise" else None
    if batches is None:
        return by_sample
    return WholeFetch(batches.__getbatch__, by_sample, draws=batches.draws)


def converting(fetch: Fetch, conversion: Conversion, empty: Empty) -> Fetch:
    """``fetch`` with its batches converted, into tensors that ``empty`` makes."""
    return _Converting(fetch, conversion, empty)


@dataclass(frozen=True, slots=True)
class _Converting:
    fetch: Fetch
    conversion: Conversion
    empty: Empty

    def __call__(self, request: Request) -> Fetched:
        fetched = self.fetch(request)
        if fetched.batch is NO_BATCH:
            return fetched
        try:
            batch, originals = self.conversion.batch(fetched.batch, self.empty)
        except Exception as error:
            sample = error.sample if isinstance(error, LossyConversionError) else None
            # Which sample of the dataset it is, where the batch has a row for each, and no other.
            if sample is not None and not fetched.failures and sample < len(request.indices):
                index = request.plain_indices[sample]
                add_note(error, f"sample {sample} of the batch has index {index!r} in the dataset")
            add_note(error, f"while converting the batch of {request.described()}")
            raise
        return fetched._replace(batch=batch, originals=originals)


@dataclass(frozen=True, slots=True)
class WholeFetch:
    """Reads a batch in one go: gathers columns, or asks a dataset that makes its own batches.

    Where nothing can draw (``draws=False``), nothing is seeded. Where ``read`` returns
    ``NotImplemented``, the samples are read.
    """

    read: Callable[[NDArray[np.int64]], Any]
    otherwise: SampleFetch | MixedFetch
    draws: bool

    def __call__(self, request: Request) -> Fetched:
        indices = request.indices
        if not isinstance(indices, np.ndarray):
            rows = _row_numbers(indices)
            if rows is None:
                return self.otherwise(request)
            indices = rows
        if not self.draws:
            return self._read(request, indices)

        def make(seeds: Seeds) -> Fetched:
            with reading(request.seed, request.epoch, request.positions):
                seed_once(seeds, request)
                return self._read(request, indices)

        return self.otherwise.keyed(make)

    def _read(self, request: Request, indices: NDArray[np.int64]) -> Fetched:
        try:
            with self.otherwise.whole:
                batch = self.read(indices)
        except Exception as error:
            shown = self.otherwise.named(request).described()
            if isinstance(error, StopIteration):
                raise stopped(error, f"the batch of {shown}") from error
            add_note(error, f"while reading the batch of {shown}")
            raise
        return self.otherwise(request) if batch is NotImplemented else Fetched(batch)


def _row_numbers(indices: Sequence[Any]) -> NDArray[np.int64] | None:
    """Indices of a user's sampler as an array, if they can only mean row numbers."""
    if not all(type(index) is int and index >= 0 for index in indices) or not indices:
        return None
    return np.array(indices, dtype=np.int64)
