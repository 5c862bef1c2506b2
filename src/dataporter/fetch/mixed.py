"""Mixed: the batch of a mixture, of which each source's part is read as if it were alone (C14)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import default_collate

from dataporter.datasets.batches import JoinsBatches, joining_of
from dataporter.datasets.mixed_columns import mixed_columns_of
from dataporter.datasets.mixture_rows import MixtureRows, Source
from dataporter.datasets.names import name_of
from dataporter.errors import ConfigurationError, SampleError, add_note
from dataporter.fetch.alike import difference
from dataporter.fetch.collate import collate, collate_of_sources
from dataporter.fetch.failure import Failure
from dataporter.fetch.fetched import Fetched
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.fetch.samples import SampleFetch, key_of, nothing_left, reads_together
from dataporter.schedule.request import Request
from dataporter.seeding.hashing import STREAM_MIXTURE, STREAM_REPLACEMENT, fold
from dataporter.seeding.keyed import UNSEEDED, DrawnFrom, Seeds, keyed
from dataporter.seeding.samples import reading

__all__ = ["MixedFetch", "mixed_fetch", "whole_mixed"]

# Stands for a sample that is not there (yet); a sample may be None.
_MISSING: Any = object()


def mixed_fetch(
    rows: MixtureRows,
    collate_fn: Callable[[Any], Any],
    *,
    batched: bool,
    seeds_each: Literal["sample", "batch", "nothing"],
    on_error: OnError,
    whole: AbstractContextManager[Any] | None = None,
) -> MixedFetch:
    """The fetch of a mixture sample by sample; the arguments are those of ``fetch_for``."""
    known = batched and collate_fn is default_collate
    collating = collate_fn
    if known:
        collating = collate_of_sources({source.name: source.rows for source in rows.sources})
    return MixedFetch(
        rows,
        tuple(
            _source_fetch(rows, source, batched=batched, seeds_each=seeds_each, on_error=on_error)
            for source in rows.sources
        ),
        collating,
        batched,
        known,
        seeds_each,
        whole or nullcontext(),
    )


def whole_mixed(rows: MixtureRows, on_error: OnError) -> Callable[[NDArray[np.int64]], Any] | None:
    """What reads a whole batch of a mixture, one call a source; None if samples must be read.

    It returns ``NotImplemented`` for a batch whose samples must be.
    """
    if any(source.transform or source.converter for source in rows.sources):
        return None
    if (columns := mixed_columns_of(rows)) is not None:
        return columns.gather
    # A sample that is to be left out has to be read by itself.
    if on_error != "raise":
        return None
    joining = [joining_of(source.rows) for source in rows.sources]
    found = [each for each in joining if each is not None]
    if len(found) < len(joining) or any(dataset.draws for dataset, _ in found):
        return None
    return _Joining(rows, tuple(found)).batch


@dataclass(frozen=True, slots=True)
class _Joining:
    """Lets datasets that make batches themselves make one together."""

    rows: MixtureRows
    sources: tuple[tuple[JoinsBatches, NDArray[np.int64] | None], ...]

    def batch(self, indices: NDArray[np.int64]) -> Any:
        """The batch of these rows of the mixture."""
        parts = []
        for number, places, within in self.rows.parts(indices):
            dataset, chosen = self.sources[number]
            parts.append((dataset, places, within if chosen is None else chosen[within]))
        batch = parts[0][0].__joinbatch__(parts)
        key = self.rows.source_key
        if key is None or batch is NotImplemented:
            return batch
        if not isinstance(batch, dict) or key in batch:
            return NotImplemented  # the samples' error says what to do
        return {**batch, key: [name for name, _ in self.rows.named(indices)]}


def _source_fetch(
    rows: MixtureRows,
    source: Source,
    *,
    batched: bool,
    seeds_each: Literal["sample", "batch", "nothing"],
    on_error: OnError,
) -> SampleFetch:
    together = batched and reads_together(source.rows)
    finishes = rows.finishes(source)
    # Samples that are finished one by one have a seed each, even if they are read together.
    if together and seeds_each == "sample" and not finishes:
        seeds_each = "batch"
    return SampleFetch(
        _Finished(rows, source) if finishes else source.rows,
        list,
        True,
        together,
        seeds_each,
        on_error,
        substitute_of(on_error) if callable(on_error) else None,
        _OfSource(source.length) if on_error == "replace" else None,
        nullcontext(),
        source.name,
        _Finish(rows, source) if finishes else None,
    )


@dataclass(frozen=True, slots=True)
class MixedFetch:
    """Reads the samples of each source together, and collates all of a batch at once.

    Attributes:
        fetches: of each source.
        is_known: whether the collation is that of torch or of the sources, and no ``collate_fn``.
        drawn_from: what the collation draws from.
    """

    rows: MixtureRows
    fetches: tuple[SampleFetch, ...]
    collate: Callable[[Any], Any]
    batched: bool
    is_known: bool
    seeds_each: Literal["sample", "batch", "nothing"]
    whole: AbstractContextManager[Any]
    drawn_from: DrawnFrom = field(default_factory=DrawnFrom)

    def __call__(self, request: Request) -> Fetched:
        positions = np.asarray(request.positions)
        samples = [_MISSING] * len(request.indices)
        failures: list[Failure] = []
        generators: dict[int, Generator] = {}
        firsts: dict[str, int] = {}
        for part in self.rows.parts(request.indices):
            fetch = self.fetches[part.source]
            asked = request._replace(positions=positions[part.places], indices=part.indices)
            read = fetch.read(asked)
            places = part.places.tolist()
            if read.generators:
                generators.update((places[n], each) for n, each in read.generators.items())
            if read.left_out:
                gone = set(read.left_out)
                places = [place for n, place in enumerate(places) if n not in gone]
            if len(read.samples) != len(places):
                raise SampleError(
                    f"source {fetch.source!r} returned {len(read.samples)} samples for "
                    f"{len(places)} indices: let its __getitems__ return one for each"
                )
            if places:
                firsts[self.rows.sources[part.source].name] = places[0]
            for place, sample in zip(places, read.samples):
                samples[place] = sample
            failures += read.failures
        failures.sort(key=lambda failure: failure.position)
        if failures:
            samples = [sample for sample in samples if sample is not _MISSING]
            if not samples:
                raise nothing_left(self.named(request), failures)
            firsts = {}
        return Fetched(self._collated(request, samples, generators, firsts), tuple(failures))

    def named(self, request: Request) -> Request:
        """The request for people, who know a sample by its source and its index there."""
        return request._replace(indices=self.rows.named(request.indices))

    def keyed(self, make: Callable[[Seeds], Fetched]) -> Fetched:
        """What ``make`` returns without seeds: what is read whole draws nothing."""
        return make(UNSEEDED)

    def _collated(
        self,
        request: Request,
        samples: list[Any],
        generators: dict[int, Generator],
        firsts: dict[str, int],
    ) -> Any:
        if self.is_known and len(firsts) > 1:
            self._check({name: samples[place] for name, place in firsts.items()})
        try:
            if self.collate is collate:  # it draws nothing
                with self.whole:
                    return collate(samples)
            return self._drawing(request, samples, generators)
        except Exception as error:
            if found := self._difference({n: samples[p] for n, p in firsts.items()}, shapes=True):
                add_note(error, found)
            add_note(error, f"while collating the batch of {self.named(request).described()}")
            raise

    def _drawing(
        self, request: Request, samples: list[Any], generators: dict[int, Generator]
    ) -> Any:
        """The batch that a collation makes which may draw."""

        def make(seeds: Seeds) -> Any:
            with reading(request.seed, request.epoch, request.positions) as current:
                # Copies, for another attempt begins with the same.
                current.generators.update(deepcopy(generators))
                if seeds.each is not None and len(request.positions):
                    # Not the key of a sample, which has drawn by it.
                    seeds.each(fold(key_of(request, -1), STREAM_MIXTURE))
                with self.whole:
                    return self.collate(samples if self.batched else samples[0])

        return make(UNSEEDED) if self.seeds_each == "nothing" else keyed(self.drawn_from, make)

    def _check(self, samples: dict[str, Any]) -> None:
        """Refuse samples of several sources that torch would cut or convert without a word."""
        if found := self._difference(samples, shapes=False):
            raise ConfigurationError(found)

    def _difference(self, samples: dict[str, Any], *, shapes: bool) -> str | None:
        strict = self.collate is collate or not self.is_known
        return difference(samples, shapes=shapes, strict=strict)


@dataclass(frozen=True, slots=True)
class _OfSource:
    """Chooses another sample of a source in the place of one that failed."""

    length: int

    def replacement(self, seed: int, epoch: int, position: int, attempt: int) -> int:
        """The index of a sample of the source, drawn by a keyed hash for a position."""
        return fold(seed, epoch, position, attempt, STREAM_REPLACEMENT) % self.length


@dataclass(frozen=True, slots=True)
class _Finish:
    """What a mixture does to each sample of a source."""

    rows: MixtureRows
    source: Source

    def __call__(self, sample: Any) -> Any:
        return self.rows.finished(self.source, sample)


@dataclass(frozen=True, slots=True)
class _Finished:
    """A source with its samples finished, but for those that are read together.

    These are finished once they are read, each with its own seed.
    """

    rows: MixtureRows
    source: Source

    def __getitem__(self, index: int) -> Any:
        return self.rows.finished(self.source, self.source.rows[index])

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.source.rows.__getitems__(indices)

    def sample_name(self, index: int) -> str | None:
        """The name that the source has for a sample."""
        return name_of(self.source.rows, index)
