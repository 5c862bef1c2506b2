"""A reader: one shard, read sample by sample from where a state says (C8, C10, C12)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from inspect import isgenerator
from typing import Any, Literal, NamedTuple

import numpy as np

from dataporter.errors import DatasetChangedError, SampleError, add_note
from dataporter.fetch.fetch import OnError
from dataporter.fetch.fetched import Skipped
from dataporter.seeding.generators import global_state, seed_generators
from dataporter.seeding.hashing import STREAM_SHARD, fold, sample_key, sample_keys
from dataporter.seeding.samples import CurrentSamples, reading
from dataporter.streams import snapshot
from dataporter.streams.shard import Sharding, ShardState
from dataporter.streams.source import Source

__all__ = ["ReadOptions", "Reader"]

# Replayed samples are seeded and read so many at a time.
_REPLAYED_AT_ONCE = 1024
# A stream that fails so often, and gives nothing between, is not one that has a broken sample.
_MOST_FAILURES = 100


class ReadOptions(NamedTuple):
    """How a stream is read; the same for all its shards.

    Attributes:
        batch_size: samples of a batch.
        seeds_each: seed the global generators before each sample, once a batch, or never.
        on_error: what becomes of a sample that raises.
    """

    batch_size: int
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError


class Reader:
    """Reads a shard from a state on.

    Args:
        sharding: gives the shard.
        start: where it was left.
        seed, epoch: the loader's.
        options: how it is read.

    Attributes:
        offset: how many samples of the shard were read, or failed.
        ended: there are no more.
    """

    def __init__(
        self, sharding: Sharding, start: ShardState, seed: int, epoch: int, options: ReadOptions
    ) -> None:
        self.offset = start.marked
        self.ended = False
        self._sharding = sharding
        self._shard = start.shard
        self._epoch = epoch
        self._key = fold(seed, start.shard, STREAM_SHARD)
        self._options = options
        self._drawn = False
        self._failures = 0
        with sharding.reading():
            states = None if start.snapshot is None else snapshot.decode(start.snapshot)
            self._source = Source(sharding.open(start.shard, epoch), states)
        self.return_to(start.offset)

    def return_to(self, offset: int) -> None:
        """Read again what was read before, up to an offset.

        Raises:
            DatasetChangedError: the shard ends before it.
        """
        self.advance(offset)
        if self.offset < offset:
            raise DatasetChangedError(
                f"shard {self._shard} of the stream ended at sample {self.offset} (epoch "
                f"{self._epoch}), and {offset} samples of it had been delivered when the state was "
                "saved: resume on the data that the state was saved with"
            )

    def is_at(self, offset: int) -> bool:
        """Whether the sample at this offset comes next, or the shard has ended before it."""
        return self.offset == offset or (self.ended and self.offset < offset)

    def advance(self, offset: int) -> None:
        """Read up to an offset and throw it away; less where the shard ends before."""
        nothing: deque[Any] = deque(maxlen=0)
        while self.offset < offset and not self.ended:
            self._read(min(offset - self.offset, _REPLAYED_AT_ONCE), nothing, None)

    def read(self, count: int) -> tuple[list[Any], tuple[Skipped, ...]]:
        """The next so many samples, less where the shard ends, and those that were left out."""
        samples: list[Any] = []
        skipped: list[Skipped] = []
        if not self.ended:
            self._read(count, samples, skipped)
        self._failures = 0 if samples else self._failures + len(skipped)
        if self._failures >= _MOST_FAILURES:
            raise SampleError(
                f"on_error='skip' leaves nothing of the stream: {self._failures} samples of shard "
                f"{self._shard} up to offset {self.offset} failed one after the other (epoch "
                f"{self._epoch}), the last with {skipped[-1].error}"
            )
        return samples, tuple(skipped)

    def capture(self) -> str | None:
        """A snapshot of where the shard stands, if the dataset offers any that can be relied on."""
        # What was drawn may be part of samples that are yet to come, and of no state.
        if not self._sharding.snapshots or self._drawn:
            return None
        with self._sharding.reading():
            states = self._source.states()
            return None if states is None else snapshot.encode(states)

    def _read(
        self, count: int, samples: list[Any] | deque[Any], skipped: list[Skipped] | None
    ) -> None:
        """Read so many samples; without ``skipped``, as one who has read them before."""
        first, size = self.offset, self._options.batch_size
        offsets = range(first, first + count)
        each_sample, each_batch = (self._options.seeds_each == each for each in ("sample", "batch"))
        keys: list[int] = []
        if each_sample:
            keys = sample_keys(self._key, self._epoch, np.asarray(offsets)).tolist()
        # Seeded once a batch, they are read from one batch's beginning to the next.
        stops = [*range(-first % size, count, size), count] if each_batch else [count]
        index, iterator, take = 0, self._source.iterator, samples.append
        with self._sharding.reading(), reading(self._key, self._epoch, offsets) as current:
            watched = self._sharding.reads_ahead and not self._drawn
            read = partial(self._watched, current) if watched else next
            while index < count:
                if each_batch and (first + index) % size == 0:
                    seed_generators(sample_key(self._key, self._epoch, offsets[index]))
                stop = next(stop for stop in stops if stop > index)
                try:
                    # Entered again behind a failure, so that there is nothing to do but read.
                    for index in range(index, stop):  # noqa: B020  # entered anew
                        current.offset = index
                        if each_sample:
                            seed_generators(keys[index])
                        take(read(iterator))
                except StopIteration:
                    self.offset, self.ended = first + index, True
                    return
                except Exception as error:
                    self.offset = first + index
                    self._take_failure(error, samples, skipped)
                index += 1
        self.offset = first + count

    def _watched(self, current: CurrentSamples, iterator: Iterator[Any]) -> Any:
        """The next sample, where it matters whether anybody draws."""
        before = global_state()
        try:
            return next(iterator)
        finally:
            if current.generators or global_state() != before:
                self._drawn = True

    def close(self) -> None:
        """Let go of what is open, once the shard has ended."""
        self._source = Source(())

    def _take_failure(
        self, error: Exception, samples: list[Any] | deque[Any], skipped: list[Skipped] | None
    ) -> None:
        on_error = self._options.on_error
        shown = f"sample {self.offset} of shard {self._shard} of the stream (epoch {self._epoch})"
        if on_error == "raise":
            add_note(error, f"while reading {shown}")
            raise error
        if isgenerator(self._source.iterator):
            raise SampleError(
                f"{shown} raised {error!r}, and a generator cannot go on behind that, so on_error= "
                "cannot leave it out: catch the exception inside the generator, or make the stream "
                "an iterator with __next__"
            ) from error
        if skipped is None:
            return
        index = (self._shard, self.offset)
        if on_error == "skip":
            skipped.append(Skipped(index, self.offset, repr(error)))
        else:
            samples.append(on_error(error, index))
