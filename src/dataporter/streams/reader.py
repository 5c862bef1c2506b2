"""A reader: reads one shard sample by sample, from a state on (C8, C10, C12)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from inspect import isgenerator
from typing import Any, Literal, NamedTuple

import numpy as np

from dataporter.datasets.names import stream_name
from dataporter.errors import DatasetChangedError, SampleError, add_note
from dataporter.fetch.failure import Failure, failure_of
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.schedule import snapshot
from dataporter.seeding.generators import global_state, seed_generators
from dataporter.seeding.hashing import STREAM_SHARD, fold, sample_key, sample_keys
from dataporter.seeding.samples import CurrentSamples, reading
from dataporter.streams.shard import ShardState
from dataporter.streams.sharding import Sharding
from dataporter.streams.source import Source

__all__ = ["ReadOptions", "Reader", "seed_at"]

# How many replayed samples are seeded and read at a time.
_REPLAYED_AT_ONCE = 1024
# After so many failures without a sample between them, the stream is broken, not a sample.
_MOST_FAILURES = 100


class ReadOptions(NamedTuple):
    """The options for reading a stream, the same for all its shards.

    Attributes:
        batch_size: samples per batch.
        seeds_each: seed the global generators before each sample, before each batch, or never.
        on_error: what to do with a sample that raises.
    """

    batch_size: int
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError


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
    """

    def __init__(
        self, sharding: Sharding, start: ShardState, seed: int, epoch: int, options: ReadOptions
    ) -> None:
        self.offset = start.snapshot_offset
        self.ended = False
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
        with sharding.reading():
            states = None if start.snapshot is None else snapshot.decode(start.snapshot)
            self._source = Source(sharding.open(start.shard, epoch), states)
        self.return_to(start.offset)

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
        while self.offset < offset and not self.ended:
            self._read(min(offset - self.offset, _REPLAYED_AT_ONCE), nothing, None)

    def read(self, count: int, step: int) -> tuple[list[Any], tuple[Failure, ...]]:
        """The next ``count`` samples, fewer at the end of the shard, and those that failed.

        Args:
            step: of the batch that they are for.
        """
        samples: list[Any] = []
        failures: list[Failure] = []
        if not self.ended:
            self._step = step
            self._read(count, samples, failures)
        self._failures = 0 if samples else self._failures + len(failures)
        if self._failures >= _MOST_FAILURES:
            raise SampleError(
                f"on_error='skip' leaves nothing of the stream: {self._failures} consecutive "
                f"samples of shard {self._shard} up to offset {self.offset} failed (epoch "
                f"{self._epoch}), the last with {failures[-1].error}: {failures[-1].message}: mend "
                "the dataset"
            )
        return samples, tuple(failures)

    def capture(self) -> str | None:
        """A snapshot of the shard, if the dataset offers exact ones."""
        # Random values already drawn may belong to later samples, and no state holds them.
        if not self._sharding.snapshots or self._drawn:
            return None
        with self._sharding.reading():
            states = self._source.states()
            return None if states is None else snapshot.encode(states)

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
        with self._sharding.reading(), reading(self._key, self._epoch, offsets) as current:
            watched = self._sharding.reads_ahead and not self._drawn
            read = partial(self._watched, current) if watched else next
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
                        take(read(iterator))
                except StopIteration:
                    self.offset, self.ended = first + index, True
                    return
                except Exception as error:
                    self.offset = first + index
                    self._take_failure(error, samples, failures)
                index += 1
        self.offset = first + count

    def _watched(self, current: CurrentSamples, iterator: Iterator[Any]) -> Any:
        """The next sample, noting whether the stream draws random values for it."""
        before = global_state()
        try:
            return next(iterator)
        finally:
            if current.generators or global_state() != before:
                self._drawn = True

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
            samples.append(self._substitute(error, index, failure))
