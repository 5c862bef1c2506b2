"""Samples: the samples of a request are read, each with its seed, and collated (C8)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn, Protocol

from torch.utils.data import StackDataset, Subset

from dataporter.datasets.names import name_of
from dataporter.errors import SampleError, add_note
from dataporter.fetch.collate import collate
from dataporter.fetch.failure import Failure, failure_of
from dataporter.fetch.fetched import Fetched
from dataporter.fetch.on_error import OnError, Substitute
from dataporter.schedule.request import Request
from dataporter.seeding.hashing import STREAM_REPLACEMENT, fold, sample_key, sample_keys
from dataporter.seeding.keyed import UNSEEDED, DrawnFrom, Seeds, keyed
from dataporter.seeding.samples import CurrentSamples, reading

__all__ = ["Replacement", "SampleFetch", "key_of", "reads_together", "seed_once", "stopped"]

# How many samples on_error="replace" tries in the place of one that fails.
_MOST_REPLACEMENTS = 10


class Replacement(Protocol):
    """Chooses the sample that takes the place of a failed one."""

    def replacement(self, seed: int, epoch: int, position: int, attempt: int) -> Any:
        """The index of a sample: a pure function, different in each attempt."""


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
                seed_once(seeds, request)
            indices = request.plain_indices
            failures: tuple[Failure, ...] = ()
            if self.offers_batches and self.on_error == "raise":
                samples = self._read_together(request, indices)
            else:
                samples, failures = self._read_each(request, indices, seeds, current)
                current.offset = None
            # Our own collation draws nothing.
            if self.seeds_each == "sample" and self.collate is not collate and len(indices):
                seeds.collating(key_of(request, -1))
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
                raise stopped(error, what) from error
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
                seeds.failed(key_of(request, failed if self.seeds_each == "sample" else 0))
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
                seeds.each(key_of(request, offset))
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
        raise stopped(error, shown) from error
    add_note(error, f"while reading {shown}")
    try:
        raise error
    finally:
        del error  # its traceback holds this frame, and would form a cycle with it


def seed_once(seeds: Seeds, request: Request) -> None:
    """Seed for a whole request, by the key of its first sample."""
    if seeds.each is not None and len(request.positions):
        seeds.each(key_of(request, 0))


def key_of(request: Request, offset: int) -> int:
    """The key by which a sample of a request is seeded."""
    return sample_key(request.seed, request.epoch, int(request.positions[offset]))


def reads_together(dataset: Any) -> bool:
    """Whether ``__getitems__`` reads a batch at once.

    torch's wrappers always have it: they pass the call on, or loop over the samples. Where they
    would loop, each sample is better read, and seeded, by itself.
    """
    if type(dataset) is Subset:
        return reads_together(dataset.dataset)
    if type(dataset) is StackDataset:
        parts = dataset.datasets
        values = parts.values() if isinstance(parts, dict) else parts
        return any(reads_together(part) for part in values)
    return callable(getattr(dataset, "__getitems__", None))


def stopped(error: StopIteration, what: str) -> SampleError:
    """What is raised in the place of a ``StopIteration`` of the dataset."""
    return SampleError(
        f"the dataset raised {error!r} for {what}; a StopIteration would end the epoch silently, "
        "so raise an IndexError or a RuntimeError there"
    )
