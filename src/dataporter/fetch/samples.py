"""Samples: the samples of a request are read, each with its seed, and collated (C8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypeVar

from numpy.random import Generator
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

__all__ = [
    "Read",
    "Replacement",
    "SampleFetch",
    "key_of",
    "nothing_left",
    "reads_together",
    "seed_once",
    "stopped",
]

T = TypeVar("T")

# How many samples on_error="replace" tries in the place of one that fails.
_MOST_REPLACEMENTS = 10


class Replacement(Protocol):
    """Chooses the sample that takes the place of a failed one."""

    def replacement(self, seed: int, epoch: int, position: int, attempt: int) -> Any:
        """The index of a sample: a pure function, different in each attempt."""


class Read(NamedTuple):
    """The samples of a request, before they are made a batch.

    Attributes:
        samples: those that were read, in order.
        failures: of those that failed.
        left_out: offsets in the request of samples that have no place in ``samples``.
        generators: those that :func:`sample_rng` handed out, by offset.
    """

    samples: list[Any]
    failures: tuple[Failure, ...]
    left_out: list[int]
    generators: dict[int, Generator]


@dataclass(frozen=True, slots=True)
class SampleFetch:
    """Reads sample by sample, or batch by batch where the dataset has ``__getitems__``.

    Attributes:
        source: the name of the mixture's source that the dataset is; None if it is none.
        finish: done to each sample that ``__getitems__`` returns, with the seed of that sample;
            None if nothing is.
    """

    dataset: Any
    collate: Callable[[Any], Any]
    batched: bool
    offers_batches: bool
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError
    substitute: Substitute | None
    replacement: Replacement | None
    whole: AbstractContextManager[Any]
    source: str | None = None
    finish: Callable[[Any], Any] | None = None
    drawn_from: DrawnFrom = field(default_factory=DrawnFrom)

    def __call__(self, request: Request) -> Fetched:
        return self.keyed(partial(self._make, request))

    def read(self, request: Request) -> Read:
        """The samples of a request, which are made a batch together with others."""
        return self.keyed(partial(self._read, request))

    def named(self, request: Request) -> Request:
        """The request for people, who know a sample of a mixture by its source and its index."""
        if self.source is None:
            return request
        return request._replace(indices=list(map(self._shown, request.plain_indices)))

    def keyed(self, make: Callable[[Seeds], T]) -> T:
        """What ``make`` returns with the seeds of this fetch."""
        return make(UNSEEDED) if self.seeds_each == "nothing" else keyed(self.drawn_from, make)

    def _make(self, request: Request, seeds: Seeds) -> Fetched:
        with reading(request.seed, request.epoch, request.positions) as current:
            samples, failures, _, _ = self._samples(request, seeds, current)
            if failures and not samples:
                raise nothing_left(request, failures)
            # Our own collation draws nothing.
            if self.seeds_each == "sample" and self.collate is not collate and len(request.indices):
                seeds.collating(key_of(request, -1))
            try:
                with self.whole:
                    batch = self.collate(samples if self.batched else samples[0])
            except Exception as error:
                add_note(error, f"while collating the batch of {request.described()}")
                raise
            return Fetched(batch, failures)

    def _read(self, request: Request, seeds: Seeds) -> Read:
        with reading(request.seed, request.epoch, request.positions) as current:
            return self._samples(request, seeds, current)

    def _samples(self, request: Request, seeds: Seeds, current: CurrentSamples) -> Read:
        indices = request.plain_indices
        if not (self.offers_batches and self.on_error == "raise"):
            if self.seeds_each == "batch":
                seed_once(seeds, request)
            read = self._read_each(request, indices, seeds, current)
            current.offset = None
            return read
        if self.seeds_each != "nothing":
            seed_once(seeds, request)
        samples = self._read_together(request, indices)
        if self.finish is not None:
            samples = self._finished(request, indices, samples, seeds, current)
        return Read(samples, (), [], current.generators)

    def _read_together(self, request: Request, indices: list[Any]) -> Any:
        try:
            with self.whole:
                return self.dataset.__getitems__(indices)
        except Exception as error:
            what = f"the batch of {self.named(request).described()}"
            if isinstance(error, StopIteration):
                raise stopped(error, what) from error
            add_note(error, f"while reading {what}")
            raise

    def _finished(
        self,
        request: Request,
        indices: list[Any],
        together: list[Any],
        seeds: Seeds,
        current: CurrentSamples,
    ) -> list[Any]:
        assert self.finish is not None
        samples: list[Any] = []
        current.offset, current.taken = 0, samples
        keys: Iterable[int] = repeat(0)
        if (seed := seeds.each if self.seeds_each == "sample" else None) is not None:
            keys = sample_keys(request.seed, request.epoch, request.positions).tolist()
        try:
            for key, sample in zip(keys, together):
                if seed is not None:
                    seed(key)
                samples.append(self.finish(sample))
        except Exception as error:
            self._raise(error, request, indices, len(samples))
        current.offset, current.taken = None, ()
        return samples

    def _read_each(
        self, request: Request, indices: list[Any], seeds: Seeds, current: CurrentSamples
    ) -> Read:
        samples: list[Any] = []
        failures: list[Failure] = []
        left_out: list[int] = []
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
                    self._raise(error, request, indices, failed)
                seeds.failed(key_of(request, failed if self.seeds_each == "sample" else 0))
                failures.append(self._failure(error, request, indices[failed], failed))
                if self.substitute is not None:
                    take(self.substitute(error, self._shown(indices[failed]), failures[-1]))
                elif self.on_error == "replace":
                    take(self._replaced(request, indices, current, seeds, failures))
                else:
                    left_out.append(failed)
        return Read(samples, tuple(failures), left_out, current.generators)

    def _shown(self, index: Any) -> Any:
        """An index for people, who know a mixture's samples by their source."""
        return index if self.source is None else (self.source, index)

    def _failure(self, error: Exception, request: Request, index: Any, offset: int) -> Failure:
        return failure_of(
            error,
            self._shown(index),
            name_of(self.dataset, index),
            epoch=request.epoch,
            step=request.step,
            position=int(request.positions[offset]),
        )

    def _raise(
        self, error: Exception, request: Request, indices: list[Any], offset: int
    ) -> NoReturn:
        shown = (
            f"sample index {self._shown(indices[offset])!r} (epoch {request.epoch}, step "
            f"{request.step}, position {int(request.positions[offset])})"
        )
        if isinstance(error, StopIteration):
            raise stopped(error, shown) from error
        add_note(error, f"while reading {shown}")
        try:
            raise error
        finally:
            del error  # its traceback holds this frame, and would form a cycle with it

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


def nothing_left(request: Request, failures: Sequence[Failure]) -> SampleError:
    """What is raised where every sample of a batch was left out."""
    return SampleError(
        f"on_error='skip' left nothing of the batch of {request.described()}: every sample "
        f"failed, the first: {failures[0]}"
    )


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
