"""Fetch: a request becomes a batch: its samples are read, collated and converted (C8, C11, C12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import StackDataset, Subset, default_collate

from dataporter.convert import Conversion, Empty
from dataporter.datasets.batches import batches_of
from dataporter.datasets.columns import columns_of, gather
from dataporter.datasets.names import name_of
from dataporter.errors import LossyConversionError, SampleError, add_note
from dataporter.fetch.collate import collate, collate_of
from dataporter.fetch.failure import Failure, failure_of
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.fetch.on_error import OnError, Substitute, substitute_of
from dataporter.schedule.request import Request
from dataporter.seeding.hashing import STREAM_REPLACEMENT, fold, sample_key, sample_keys
from dataporter.seeding.keyed import UNSEEDED, DrawnFrom, Seeds, keyed
from dataporter.seeding.samples import CurrentSamples, reading

__all__ = [
    "Fetch",
    "Replacement",
    "converting",
    "fetch_for",
]
# How many samples on_error="replace" tries in the place of one that fails.
_MOST_REPLACEMENTS = 10


class Replacement(Protocol):
    """Chooses the sample that takes the place of a failed one."""

    def replacement(self, seed: int, epoch: int, position: int, attempt: int) -> Any:
        """The index of a sample: a pure function, different in each attempt."""


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
        replacement: chooses the other sample; None chooses among those of the batch.
        whole: entered while a batch is made as a whole (``__getitems__``, a gather, collation), and
            not while single samples are read.
    """
    offers_batches = batched and _offers_batches(dataset)
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

    Where nothing can draw (``draws=False``), nothing is seeded.
    """

    read: Callable[[NDArray[np.int64]], Any]
    otherwise: SampleFetch
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
                _seed_once(seeds, request)
                return self._read(request, indices)

        return self.otherwise.keyed(make)

    def _read(self, request: Request, indices: NDArray[np.int64]) -> Fetched:
        try:
            with self.otherwise.whole:
                return Fetched(self.read(indices))
        except Exception as error:
            if isinstance(error, StopIteration):
                raise _stopped(error, f"the batch of {request.described()}") from error
            add_note(error, f"while reading the batch of {request.described()}")
            raise


@dataclass(frozen=True, slots=True)
class SampleFetch:
    """Reads sample by sample, or batch by batch where the dataset has ``__getitems__``."""

    dataset: Any
    collate: Callable[[Any], Any]
    batched: bool
    offers_batches: bool
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError
    substitute: Substitute | None
    replacement: Replacement | None
    whole: AbstractContextManager[Any]
    drawn_from: DrawnFrom = field(default_factory=DrawnFrom)

    def __call__(self, request: Request) -> Fetched:
        return self.keyed(partial(self._make, request))

    def keyed(self, make: Callable[[Seeds], Fetched]) -> Fetched:
        """What ``make`` returns with the seeds of this fetch."""
        return make(UNSEEDED) if self.seeds_each == "nothing" else keyed(self.drawn_from, make)

    def _make(self, request: Request, seeds: Seeds) -> Fetched:
        with reading(request.seed, request.epoch, request.positions) as current:
            if self.seeds_each == "batch":
                _seed_once(seeds, request)
            indices = request.plain_indices
            failures: tuple[Failure, ...] = ()
            if self.offers_batches and self.on_error == "raise":
                samples = self._read_together(request, indices)
            else:
                samples, failures = self._read_each(request, indices, seeds, current)
                current.offset = None
            # Our own collation draws nothing.
            if self.seeds_each == "sample" and self.collate is not collate and len(indices):
                seeds.collating(_key(request, -1))
            try:
                with self.whole:
                    batch = self.collate(samples if self.batched else samples[0])
            except Exception as error:
                add_note(error, f"while collating the batch of {request.described()}")
                raise
            return Fetched(batch, failures)

    def _read_together(self, request: Request, indices: list[Any]) -> Any:
        try:
            with self.whole:
                return self.dataset.__getitems__(indices)
        except Exception as error:
            what = f"the batch of {request.described()}"
            if isinstance(error, StopIteration):
                raise _stopped(error, what) from error
            add_note(error, f"while reading {what}")
            raise

    def _read_each(
        self, request: Request, indices: list[Any], seeds: Seeds, current: CurrentSamples
    ) -> tuple[list[Any], tuple[Failure, ...]]:
        samples: list[Any] = []
        failures: list[Failure] = []
        dataset, take, upcoming, offset = self.dataset, samples.append, iter(indices), 0
        keys: list[int] = []
        current.taken = samples
        # Entered again behind a failed sample, so that the loop has nothing to do but read.
        while True:
            current.offset = offset - len(samples)
            seed = seeds.each if self.seeds_each == "sample" else None
            if seed is not None and not keys:
                keys = sample_keys(request.seed, request.epoch, request.positions).tolist()
            try:
                if seed is None:
                    for index in upcoming:
                        take(dataset[index])
                else:
                    for key, index in zip(keys[offset:], upcoming):
                        seed(key)
                        take(dataset[index])
                break
            except Exception as error:
                failed = current.sample
                assert failed is not None
                offset = failed + 1
                if self.on_error == "raise":
                    _raise(error, request, indices[failed], failed)
                seeds.failed(_key(request, failed if self.seeds_each == "sample" else 0))
                failures.append(self._failure(error, request, indices[failed], failed))
                if self.substitute is not None:
                    take(self.substitute(error, indices[failed], failures[-1]))
                elif self.on_error == "replace":
                    take(self._replaced(request, indices, current, seeds, failures))
        if indices and not samples:
            raise SampleError(
                f"on_error='skip' left nothing of the batch of {request.described()}: every sample "
                f"failed, the first: {failures[0]}"
            )
        return samples, tuple(failures)

    def _failure(self, error: Exception, request: Request, index: Any, offset: int) -> Failure:
        return failure_of(
            error,
            index,
            name_of(self.dataset, index),
            epoch=request.epoch,
            step=request.step,
            position=int(request.positions[offset]),
        )

    def _replaced(
        self,
        request: Request,
        indices: list[Any],
        current: CurrentSamples,
        seeds: Seeds,
        failures: list[Failure],
    ) -> Any:
        """Another sample in the place of the failed one, drawing what the place draws."""
        offset = current.sample
        assert offset is not None
        first = failures[-1]
        for index in self._replacements(request, indices, offset):
            current.generators.pop(offset, None)
            if seeds.each is not None and self.seeds_each == "sample":
                seeds.each(_key(request, offset))
            try:
                return self.dataset[index]
            except Exception as error:
                failures.append(self._failure(error, request, index, offset))
        tried = len(failures) - failures.index(first) - 1
        others = f", and so did {tried} in its place, the last: {failures[-1]}" if tried else ""
        none = "" if tried else "; the batch has no other sample to take its place"
        raise SampleError(
            f"on_error='replace' found no sample that can be read: {first} failed{others}{none}. "
            "Mend the dataset, or write on_error='skip'"
        )

    def _replacements(self, request: Request, indices: list[Any], offset: int) -> Iterator[Any]:
        seed, epoch, position = request.seed, request.epoch, int(request.positions[offset])
        if self.replacement is None:
            # A custom sampler may have left samples out on purpose, so only its own will do.
            others = [index for at, index in enumerate(indices) if at != offset]
            for attempt in range(min(_MOST_REPLACEMENTS, len(others))):
                chosen = fold(seed, epoch, position, attempt, STREAM_REPLACEMENT) % len(others)
                yield others.pop(chosen)
            return
        tried = [indices[offset]]
        for attempt in range(_MOST_REPLACEMENTS):
            index = self.replacement.replacement(seed, epoch, position, attempt)
            if index not in tried:
                tried.append(index)
                yield index


def _raise(error: Exception, request: Request, index: Any, offset: int) -> NoReturn:
    shown = (
        f"sample index {index!r} (epoch {request.epoch}, step {request.step}, "
        f"position {int(request.positions[offset])})"
    )
    if isinstance(error, StopIteration):
        raise _stopped(error, shown) from error
    add_note(error, f"while reading {shown}")
    try:
        raise error
    finally:
        del error  # its traceback holds this frame, and would form a cycle with it


def _seed_once(seeds: Seeds, request: Request) -> None:
    if seeds.each is not None and len(request.positions):
        seeds.each(_key(request, 0))


def _key(request: Request, offset: int) -> int:
    return sample_key(request.seed, request.epoch, int(request.positions[offset]))


def _offers_batches(dataset: Any) -> bool:
    """Whether ``__getitems__`` reads a batch at once.

    torch's wrappers always have it: they pass the call on, or loop over the samples. Where they
    would loop, each sample is better read, and seeded, by itself.
    """
    if type(dataset) is Subset:
        return _offers_batches(dataset.dataset)
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        values = parts.values() if isinstance(parts, dict) else parts
        return any(_offers_batches(part) for part in values)
    return callable(getattr(dataset, "__getitems__", None))


def _row_numbers(indices: Sequence[Any]) -> NDArray[np.int64] | None:
    """Indices of a user's sampler as an array, if they can only mean row numbers."""
    if not all(type(index) is int and index >= 0 for index in indices) or not indices:
        return None
    return np.array(indices, dtype=np.int64)


def _stopped(error: StopIteration, what: str) -> SampleError:
    return SampleError(
        f"the dataset raised {error!r} for {what}; a StopIteration would end the epoch silently, "
        "so raise an IndexError or a RuntimeError there"
    )
