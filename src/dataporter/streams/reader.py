"""A reader: reads one shard sample by sample, from a state on (C8, C10, C12)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from inspect import isgenerator
from typing import Any, Literal, NamedTuple

import numpy as np

from dataporter.datasets.names import stream_name
from dataporter.errors import DatasetChangedError, SampleError, StateMismatchError, add_note
from dataporter.fetch.failure import Failure, failure_of
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.schedule import snapshot
from dataporter.seeding.generators import (
    global_state,
    isolated_generators,
    restore_generators,
    saved_generators,
    seed_generators,
)
from dataporter.seeding.hashing import STREAM_OPENING, STREAM_SHARD, fold, sample_key, sample_keys
from dataporter.seeding.samples import CurrentSamples, reading
from dataporter.streams.digest import FAILED, digested, is_digested
from dataporter.streams.shard import ShardState, draws_in_threads
from dataporter.streams.sharding import Sharding
from dataporter.streams.source import Source

__all__ = ["ReadOptions", "Reader", "seed_at"]

# How many replayed samples are seeded and read at a time.
_REPLAYED_AT_ONCE = 1024
# So many samples of a batch are read again after a resume from a snapshot: few enough to cost
# nothing, and enough that a wrong order does not show the same ones.
_COMPARED = 4
# After so many failures without a sample between them, the stream is broken, not a sample.
_MOST_FAILURES = 100


_DRAWN_IN_THREADS = (
    "this stream draws random numbers in a step before shuffle() or interleave_datasets(), whose "
    "threads run beside the loader: it cannot seed them for each sample, so a resume is not exact. "
    "Write that step after it, as in stream.shuffle(seed=0).map(function), or pass "
    "shuffle(max_buffer_input_shards=1)"
)


class ReadOptions(NamedTuple):
    """The options for reading a stream, the same for all its shards.

    Attributes:
        batch_size: samples per batch.
        seeds_each: seed the global generators before each sample, before each batch, or never.
        on_error: what to do with a sample that raises.
        carries: the next epoch reads the same dataset, as it is left.
    """

    batch_size: int
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError
    carries: bool


def seed_at(seed: int, shard: int, epoch: int, offset: int) -> None:
    """Seed the global generators as for the sample at an offset of a shard."""
    seed_generators(sample_key(fold(seed, shard, STREAM_SHARD), epoch, offset))


class Reader:
    """Reads a shard from a state on.

    Args:
        sharding: opens the shard.
        start: the state of the shard.
        seed, epoch: of the loader.
        options: how to read it.

    Attributes:
        offset: number of samples of the shard that were read, or failed.
        ended: whether the shard has no more samples.
        notice: a warning that is to be shown once.
    """

    def __init__(
        self, sharding: Sharding, start: ShardState, seed: int, epoch: int, options: ReadOptions
    ) -> None:
        self.offset = start.snapshot_offset
        self.ended = False
        self.notice: str | None = None
        self._sharding = sharding
        self._shard = start.shard
        self._epoch = epoch
        self._key = fold(seed, start.shard, STREAM_SHARD)
        self._options = options
        on_error = options.on_error
        self._substitute = substitute_of(on_error) if callable(on_error) else None
        self._drawn = False
        self._failures = 0
        self._step = 0
        self._snapshot_offset, self._snapshot = start.snapshot_offset, start.snapshot
        self._digest = 0
        # With one seed per batch: the generators where reading stopped within a batch.
        self._generators: tuple[Any, ...] | None = None
        # Of the samples that were delivered after the snapshot, which are now read once more.
        self._delivered = (start.digest, start.digest_offset)
        self._source = self._opened(start)
        self.return_to(start.offset)

    def _opened(self, start: ShardState) -> Source:
        states = None if start.snapshot is None else snapshot.decode(start.snapshot)
        with self._sharding.reading(), self._opening():
            self._seed_opening()
            opened = self._sharding.open(start, self._epoch)
            self._beginning = opened.beginning
            return Source(opened.samples, states, self._seed_opening)

    def _opened_again(self) -> Source | None:
        """The shard once more, if it has yielded nothing because of where its dataset was."""
        with self._opening():
            self._seed_opening()
            again = self._sharding.begin_again(self._epoch)
            return again and Source(again.samples, None, self._seed_opening)

    def _opening(self) -> AbstractContextManager[Any]:
        return reading(fold(self._key, STREAM_OPENING), self._epoch, range(1))

    def _seed_opening(self) -> None:
        # A dataset may shuffle its files, or all its samples, before it yields the first: in any
        # of the calls that open it, some even when they are asked for their state.
        if self._options.seeds_each != "nothing":
            seed_generators(sample_key(fold(self._key, STREAM_OPENING), self._epoch, 0))

    def return_to(self, offset: int) -> None:
        """Reread samples that were read before, up to an offset.

        Raises:
            DatasetChangedError: the shard ends before this offset.
        """
        self.advance(offset)
        if self.offset < offset:
            raise DatasetChangedError(
                f"shard {self._shard} of the stream ended at sample {self.offset} (epoch "
                f"{self._epoch}), but the state counts {offset} delivered samples of it: resume on "
                "the data that the state was saved with"
            )

    def is_at(self, offset: int) -> bool:
        """Whether the sample at this offset is next, or the shard has ended before it."""
        return self.offset == offset or (self.ended and self.offset < offset)

    def advance(self, offset: int) -> None:
        """Read and discard samples up to an offset, or up to the end of the shard."""
        nothing: deque[Any] = deque(maxlen=0)
        digest, until = self._delivered
        while self.offset < offset and not self.ended:
            stop = min(offset, self.offset + _REPLAYED_AT_ONCE)
            if self.offset < until:
                stop = min(stop, until)
            self._read(stop - self.offset, nothing, None)
            if self.offset == until and self._digest != digest:
                raise StateMismatchError(self._other_samples())

    def read(
        self, count: int, step: int, *, captures: bool
    ) -> tuple[list[Any], tuple[Failure, ...]]:
        """The next ``count`` samples, fewer at the end of the shard, and those that failed.

        Args:
            step: of the batch that they are for.
            captures: take a snapshot, if the dataset offers exact ones. It is taken before the last
                samples, so that a resume reads these again and compares them; where the generators
                are seeded once a batch, before the first. None is taken at the start of the shard,
                where many datasets have no state, or that of the last pass: a resume rereads.
        """
        samples: list[Any] = []
        failures: list[Failure] = []
        first = self.offset
        self._step = step
        before = 0 if self._options.seeds_each == "batch" else max(0, count - _COMPARED)
        lags = self._source.samples_since_state is not None
        captures = captures and not lags and self._keeps_snapshots
        if captures and self.offset + before > 0 and not self.ended:
            self._read(before, samples, failures)
            self._capture()
            count -= before
        if not self.ended:
            self._read(count, samples, failures)
        if lags:
            self._capture_start(first, samples, failures)
        self._failures = 0 if samples else self._failures + len(failures)
        if self._failures >= _MOST_FAILURES:
            raise SampleError(
                f"on_error='skip' leaves nothing of the stream: {self._failures} consecutive "
                f"samples of shard {self._shard} up to offset {self.offset} failed (epoch "
                f"{self._epoch}), the last with {failures[-1].error}: {failures[-1].message}: mend "
                "the dataset"
            )
        return samples, tuple(failures)

    def state(self, batches: int) -> ShardState:
        """The state of the shard, after so many batches of it."""
        return ShardState(
            self._shard,
            batches,
            self.offset,
            self.ended,
            self._snapshot_offset,
            self._snapshot,
            self._digest,
            self.offset,
            self._beginning if self._options.carries else None,
        )

    @property
    def _keeps_snapshots(self) -> bool:
        # Random values already drawn may belong to later samples, and no state holds them.
        return self._sharding.snapshots and not self._drawn and self._source.keeps_state

    def _capture(self) -> None:
        if self.ended or not self._keeps_snapshots:
            return
        if self._snapshot is not None and self._snapshot_offset == self.offset:
            return  # loaded, and no sample read since
        with self._sharding.reading():
            self._snapshot = snapshot.encode(self._source.states())
        self._snapshot_offset, self._digest = self.offset, 0

    def _capture_start(self, first: int, samples: list[Any], failures: Sequence[Failure]) -> None:
        """Take the snapshot of a stream that has begun again within a batch, at that sample.

        Args:
            first: offset of the batch.
            samples, failures: the batch.
        """
        start = self.offset - (self._source.samples_since_state or 0)
        has_begun = first <= start != self._snapshot_offset
        if self.ended or not (has_begun and self._keeps_snapshots):
            return
        with self._sharding.reading():
            self._snapshot = snapshot.encode(self._source.states())
        self._snapshot_offset, self._digest = start, 0
        failed, left = {failure.position for failure in failures}, iter(samples)
        for offset in range(first, self.offset):
            is_there = offset not in failed or self._substitute is not None
            sample = next(left) if is_there else None
            if offset >= start and (is_digested(offset) or offset - start < _COMPARED):
                self._digest = digested(FAILED if offset in failed else sample, self._digest)

    def _other_samples(self) -> str:
        where = (
            f"shard {self._shard} of the stream (epoch {self._epoch}) does not repeat its samples "
            f"{self._snapshot_offset} to {self.offset - 1}, which were delivered before"
        )
        if self._snapshot is None:
            return (
                f"{where}, so reading them again does not lead to the next one: a "
                f"{type(self._sharding.dataset).__name__} probably draws from its own "
                "generator, or reads data in no fixed order. Draw from dataporter.sample_rng(), or "
                "from Python's, NumPy's or torch's global generator, which the loader seeds; or "
                "seed the generator in set_epoch(epoch); or pass seed= to a Hugging Face "
                "shuffle(); or give the dataset state_dict and load_state_dict. Or the data have "
                "changed. load_state_dict(state, on_mismatch='warn') resumes without this "
                "comparison"
            )
        return (
            f"{where}, after its own state was loaded: state_dict() leaves out something that the "
            "samples depend on, such as a generator or a shuffled list, or load_state_dict() does "
            "not restore it, or the data have changed. load_state_dict(state, on_mismatch='warn') "
            "on the loader resumes without this comparison"
        )

    def _read(
        self, count: int, samples: list[Any] | deque[Any], failures: list[Failure] | None
    ) -> None:
        """Read ``count`` samples; without ``failures``, as a replay that reports nothing."""
        first, size = self.offset, self._options.batch_size
        offsets = range(first, first + count)
        each_sample, each_batch = (self._options.seeds_each == each for each in ("sample", "batch"))
        keys: list[int] = []
        if each_sample:
            keys = sample_keys(self._key, self._epoch, np.asarray(offsets)).tolist()
        # With one seed per batch, reading stops at the start of each batch.
        stops = [*range(-first % size, count, size), count] if each_batch else [count]
        index, iterator, take = 0, self._source.iterator, samples.append
        digests = {
            index
            for index, offset in enumerate(offsets)
            if is_digested(offset) or 0 <= offset - self._snapshot_offset < _COMPARED
        }
        with self._sharding.reading(), reading(self._key, self._epoch, offsets) as current:
            watched = self._sharding.reads_ahead and not self._drawn
            read = partial(self._watched, current) if watched else next
            if self._generators is not None:
                restore_generators(self._generators)
                self._generators = None
            while index < count:
                if each_batch and (first + index) % size == 0:
                    seed_generators(sample_key(self._key, self._epoch, offsets[index]))
                stop = next(stop for stop in stops if stop > index)
                try:
                    # A loop that is entered anew after a failure keeps the usual case short.
                    for index in range(index, stop):  # noqa: B020  # entered anew
                        current.offset = index
                        if each_sample:
                            seed_generators(keys[index])
                        sample = read(iterator)
                        if index in digests:
                            self._digest = digested(sample, self._digest)
                        take(sample)
                except StopIteration:
                    if first + index == 0 and (again := self._opened_again()) is not None:
                        self._source, iterator = again, again.iterator
                        continue
                    self.offset, self.ended = first + index, True
                    self._beginning = self._sharding.end()
                    return
                except Exception as error:
                    self.offset = first + index
                    self._take_failure(error, samples, failures)
                    if index in digests:
                        self._digest = digested(FAILED, self._digest)
                index += 1
            if each_batch and (first + count) % size:
                self._generators = saved_generators()
        self.offset = first + count

    def _watched(self, current: CurrentSamples, iterator: Iterator[Any]) -> Any:
        """The next sample, noting whether the stream draws random values for it."""
        before = global_state()
        try:
            return next(iterator)
        finally:
            if current.generators or global_state() != before:
                self._drawn = True
                if draws_in_threads(self._sharding.dataset):
                    self.notice = _DRAWN_IN_THREADS

    def close(self) -> None:
        """Release the files and iterators of a shard that has ended."""
        self._source = Source(())

    def _take_failure(
        self, error: Exception, samples: list[Any] | deque[Any], failures: list[Failure] | None
    ) -> None:
        shown = f"sample {self.offset} of shard {self._shard} of the stream (epoch {self._epoch})"
        if self._options.on_error == "raise":
            add_note(error, f"while reading {shown}")
            raise error
        if isgenerator(self._source.iterator):
            raise SampleError(
                f"{shown} raised {error!r}, and a generator cannot continue after an exception, so "
                "on_error= does not apply: catch the exception inside the generator, or make the "
                "stream an iterator with __next__"
            ) from error
        if failures is None:
            return
        index = (self._shard, self.offset)
        failure = failure_of(
            error,
            index,
            stream_name(self._sharding.dataset, index),
            epoch=self._epoch,
            step=self._step,
            position=self.offset,
        )
        failures.append(failure)
        if self._substitute is not None:
            if self._options.seeds_each != "batch":
                samples.append(self._substitute(error, index, failure))
                return
            # A replay does not call it, so what it draws must not shift the rest of the batch.
            with isolated_generators():
                samples.append(self._substitute(error, index, failure))
