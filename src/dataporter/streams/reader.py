"""A reader: reads one shard sample by sample, from a state on (C8, C10, C12)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import repeat
from typing import Any, Literal, NamedTuple

from dataporter.datasets.names import stream_name
from dataporter.errors import DatasetChangedError, SampleError, StateMismatchError
from dataporter.fetch.failure import Failure, failure_of
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.schedule import snapshot
from dataporter.seeding.generators import (
    isolated_generators,
    restore_generators,
    saved_generators,
    seed_generators,
)
from dataporter.seeding.hashing import STREAM_OPENING, STREAM_SHARD, fold, sample_key
from dataporter.seeding.keyed import Seeds
from dataporter.seeding.samples import CurrentSamples, reading
from dataporter.streams.digest import FAILED, digested, digested_offsets, is_digested
from dataporter.streams.refusals import other_samples, raise_unless_tolerated
from dataporter.streams.shard import ShardState, draws_in_threads
from dataporter.streams.sharding import Sharding
from dataporter.streams.source import Source

__all__ = ["Bookmark", "ReadOptions", "Reader", "seed_at"]

# So many samples of a batch are read again after a resume from a snapshot: few enough to cost
# nothing, and enough that a wrong order does not show the same ones.
_COMPARED = 2
# How many samples of a replay are in memory at once.
_REPLAYED_AT_ONCE = 32
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
        seeds_each: read as if the global generators were seeded before each sample, or before each
            batch, or do not seed them.
        on_error: what to do with a sample that raises.
        carries: the next epoch reads the same dataset, as it is left.
    """

    batch_size: int
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError
    carries: bool


class Bookmark(NamedTuple):
    """Where a reader is between two batches, for :meth:`Reader.reopened`."""

    state: ShardState
    drawn: bool
    failures: int
    notice: str | None
    delivered: tuple[int, int]


def seed_at(seed: int, shard: int, epoch: int, offset: int) -> None:
    """Seed the global generators as for the sample at an offset of a shard."""
    seed_generators(sample_key(fold(seed, shard, STREAM_SHARD), epoch, offset))


class Reader:
    """Reads a shard from a state on.

    Opening it seeds the global generators, and returns them to their states.

    Args:
        sharding: opens the shard.
        start: the state of the shard. The reader begins at its snapshot: :meth:`return_to` rereads
            the samples up to its offset.
        seed, epoch: of the loader.
        options: how to read it.

    Attributes:
        offset: number of samples of the shard that were read, or failed.
        ended: whether the shard has no more samples.
        read_since_opened: number of samples that this reader has read.
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
        self._seed = seed
        self._epoch = epoch
        self._key = fold(seed, start.shard, STREAM_SHARD)
        self._options = options
        on_error = options.on_error
        self._substitute = substitute_of(on_error) if callable(on_error) else None
        self._by_sample = options.seeds_each == "sample"
        self._drawn = False
        self._failures = 0
        self._step = 0
        self._snapshot_offset, self._snapshot = start.snapshot_offset, start.snapshot
        self._digest = 0
        # With one seed per batch: the generators where reading stopped within a batch.
        self._generators: tuple[Any, ...] | None = None
        # Of the samples that were delivered after the snapshot, which are now read once more.
        self._delivered = (start.digest, start.digest_offset)
        self._opened_at = self.offset
        self._source = self._opened(start)
        if self._snapshot is None and getattr(self._source.iterator, "records_its_start", False):
            self._snapshot = snapshot.encode(self._source.states())

    def _opened(self, start: ShardState) -> Source:
        states = None if start.snapshot is None else snapshot.decode(start.snapshot)
        with isolated_generators(), self._sharding.reading(), self._opening():
            self._seed_opening()
            opened = self._sharding.open(start, self._epoch)
            self._beginning = opened.beginning
            return Source(opened.samples, states, self._seed_opening)

    def _opened_again(self) -> Source | None:
        """The shard once more, if it has yielded nothing because of where its dataset was."""
        with isolated_generators(), self._opening():
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

    @property
    def read_since_opened(self) -> int:
        return self.offset - self._opened_at

    @property
    def never_begins_anew(self) -> bool:
        """Whether the dataset is its own iterator and has no state, so that it cannot be reopened
        where it was.
        """
        return self._source.iterator is self._sharding.dataset and not self._source.keeps_state

    def bookmark(self, batches: int) -> Bookmark:
        """Where this reader is, after so many batches of the shard."""
        state = self.state(batches)
        return Bookmark(state, self._drawn, self._failures, self.notice, self._delivered)

    def reopened(self, bookmark: Bookmark, seeds: Seeds) -> Reader:
        """Another reader of the shard, at a bookmark of this one, which is closed.

        Raises:
            StateMismatchError: the shard does not repeat its samples.
            DatasetChangedError: it ends before it comes to the bookmark.
        """
        self.close()
        state = bookmark.state
        reader = Reader(self._sharding, state, self._seed, self._epoch, self._options)
        reader.return_to(state.offset, seeds)
        reader._drawn, reader._failures, reader.notice = bookmark[1:4]
        reader._delivered = bookmark.delivered
        reader._opened_at = self._opened_at
        return reader

    def key_of_last(self) -> int:
        """The key of the sample that was requested last."""
        return sample_key(self._key, self._epoch, self.offset - (not self.ended))

    def return_to(self, offset: int, seeds: Seeds) -> None:
        """Reread samples that were read before, up to an offset.

        Raises:
            DatasetChangedError: the shard ends before this offset.
            StateMismatchError: the samples are others.
        """
        self.advance(offset, seeds)
        if self.offset < offset:
            raise DatasetChangedError(
                f"shard {self._shard} of the stream ended at sample {self.offset} (epoch "
                f"{self._epoch}), but the state counts {offset} delivered samples of it: resume on "
                "the data that the state was saved with"
            )

    def is_at(self, offset: int) -> bool:
        """Whether the sample at this offset is next, or the shard has ended before it."""
        return self.offset == offset or (self.ended and self.offset < offset)

    def advance(self, offset: int, seeds: Seeds) -> None:
        """Read and discard samples up to an offset, or up to the end of the shard."""
        digest, until = self._delivered
        while self.offset < offset and not self.ended:
            stop = min(offset, until) if self.offset < until else offset
            self._read(stop - self.offset, None, None, seeds)
            if self.offset == until and self._digest != digest:
                raise StateMismatchError(self._other_samples())

    def read(
        self, count: int, step: int, seeds: Seeds, *, captures: bool
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
        if self.ended:
            return samples, ()
        at = first + before
        captures = captures and not lags and at > 0 and self._keeps_snapshots
        self._read(count, samples, failures, seeds, at if captures else None)
        if self._source.samples_since_state is not None:
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
            0 if getattr(self._source.iterator, "has_gaps", False) else self.offset,
            self._beginning if self._options.carries else None,
        )

    @property
    def _keeps_snapshots(self) -> bool:
        # Random values already drawn may belong to later samples, and no state holds them.
        return self._sharding.snapshots and not self._drawn and self._source.keeps_state

    def _capture(self) -> None:
        if not self._keeps_snapshots:
            return
        if self._snapshot is not None and self._snapshot_offset == self.offset:
            return  # loaded, and no sample read since
        if self._source.samples_since_state is not None:
            return  # a source of a mixture without a state was opened within the batch
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
        return other_samples(
            self._shard,
            self._epoch,
            self._snapshot_offset,
            self.offset,
            kind=type(self._sharding.dataset).__name__,
            has_snapshot=self._snapshot is not None,
        )

    def _read(
        self,
        count: int,
        samples: list[Any] | None,
        failures: list[Failure] | None,
        seeds: Seeds,
        captures_at: int | None = None,
    ) -> None:
        """Read ``count`` samples; without ``samples`` and ``failures``, as a replay.

        Args:
            captures_at: take a snapshot before the sample at this offset.
        """
        if count <= 0:
            return
        first, end = self.offset, self.offset + count
        with (
            self._sharding.reading(),
            reading(self._key, self._epoch, range(first, end)) as current,
        ):
            if self._generators is not None:
                restore_generators(self._generators)
                self._generators = None
            try:
                for stop in (end,) if captures_at is None else (captures_at, end):
                    due = digested_offsets(self.offset, stop, self._snapshot_offset, _COMPARED)
                    for offset in due:
                        last = self._read_up_to(offset + 1, samples, failures, seeds, current)
                        self._digest = digested(last, self._digest)
                    self._read_up_to(stop, samples, failures, seeds, current)
                    if stop == captures_at:
                        self._note_draws(current)
                        self._capture()
            except StopIteration:
                self.ended = True
                self._beginning = self._sharding.end()
            self._note_draws(current)
            within = self._options.seeds_each == "batch" and self.offset % self._options.batch_size
            if within and not self.ended:
                self._generators = saved_generators()

    def _note_draws(self, current: CurrentSamples) -> None:
        """Note whether a sample was read ahead with its own generator."""
        if current.generators and self._sharding.reads_ahead:
            self._drawn = True

    def _read_up_to(
        self,
        offset: int,
        samples: list[Any] | None,
        failures: list[Failure] | None,
        seeds: Seeds,
        current: CurrentSamples,
    ) -> Any:
        """Read up to an offset; returns the last sample, or ``FAILED``.

        Raises:
            StopIteration: there are no more samples.
        """
        last = None
        while self.offset < offset:
            try:
                last = self._read_run(offset, samples, seeds, current)
            except StopIteration:
                again = None if self.offset else self._opened_again()
                if again is None:
                    raise
                self._source = again
            except Exception as error:
                self._take_failure(error, samples, failures, seeds)
                self.offset += 1
                last = FAILED
        return last

    def _read_run(
        self, stop: int, samples: list[Any] | None, seeds: Seeds, current: CurrentSamples
    ) -> Any:
        """Read up to an offset, or less; returns the last sample.

        Raises:
            StopIteration: there are no more samples.
        """
        iterator, first = self._source.iterator, current.positions[0]
        each = current.seeding = seeds.each
        if each is None and self._by_sample:
            current.offset = self.offset - first
            if stop - self.offset == 1:
                sample = next(iterator)
                if samples is not None:
                    samples.append(sample)
                self.offset = stop
                return sample
            if samples is None:
                stop = min(stop, self.offset + _REPLAYED_AT_ONCE)
            taken: list[Any] = []
            current.taken = taken
            try:
                # An extended list holds what was read, also while it is, and after an exception.
                # islice() would ask the iterator for an iterator, at which some begin anew.
                taken.extend(map(next, repeat(iterator, stop - self.offset)))
            finally:
                current.taken = ()
                self.offset += len(taken)
                if samples is not None:
                    samples += taken
            if self.offset < stop:
                raise StopIteration
            return taken[-1]
        if not self._by_sample:
            current.seeding, size = seed_generators, self._options.batch_size
            if self._options.seeds_each == "batch":
                # Reading stops at the start of each batch.
                if self.offset % size == 0:
                    seed_generators(sample_key(self._key, self._epoch, self.offset))
                stop = min(stop, self.offset - self.offset % size + size)
        sample, watched = None, self._sharding.reads_ahead and not self._drawn
        offsets = range(self.offset, stop)
        for self.offset in offsets:
            current.offset = self.offset - first
            if each is not None:
                each(sample_key(self._key, self._epoch, self.offset))
            sample = self._watched(current, iterator) if watched else next(iterator)
            if samples is not None:
                samples.append(sample)
        self.offset = stop
        return sample

    def _watched(self, current: CurrentSamples, iterator: Iterator[Any]) -> Any:
        """The next sample, noting whether the stream draws random values for it."""
        before = saved_generators()
        try:
            return next(iterator)
        finally:
            if current.generators or saved_generators() != before:
                self._drawn = True
                if draws_in_threads(self._sharding.dataset):
                    self.notice = _DRAWN_IN_THREADS

    def close(self) -> None:
        """Release the files and iterators of a shard that has ended."""
        self._source = Source(())

    def _take_failure(
        self,
        error: Exception,
        samples: list[Any] | None,
        failures: list[Failure] | None,
        seeds: Seeds,
    ) -> None:
        where = f"sample {self.offset} of shard {self._shard} of the stream (epoch {self._epoch})"
        raise_unless_tolerated(error, where, self._options.on_error, self._source.iterator)
        seeds.failed(sample_key(self._key, self._epoch, self.offset))
        if failures is None or samples is None:
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
