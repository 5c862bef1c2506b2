"""Fetch for streams: reads a request's batch with the reader that has its shard open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch.utils.data import default_collate

from dataporter.errors import DatasetChangedError, StateMismatchError, add_note
from dataporter.fetch.collate import collate, collate_of
from dataporter.fetch.failure import Failure
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.seeding.generators import GENERATORS, isolated_generators
from dataporter.seeding.keyed import UNSEEDED, DrawnFrom, Seeds, keyed
from dataporter.streams.leftovers import Bundle, Leftover
from dataporter.streams.reader import Bookmark, Reader, ReadOptions, seed_at
from dataporter.streams.refusals import unrepeatable
from dataporter.streams.request import JoinRequest, StreamRequest
from dataporter.streams.shard import always_draws
from dataporter.streams.sharding import Sharding

__all__ = ["StreamFetch"]

T = TypeVar("T")
# So many samples of a shard are looked at, one by one, after it is opened; at least a batch.
_LOOKED_AT = 64
# How many samples are replayed at a time.
_REPLAYED_AT_ONCE = 1024


class StreamFetch:
    """Reads the batches of a stream. Unlike a map-style fetch, it keeps the open shards.

    Keeping them saves time and changes no batch: a request determines its samples, and a worker
    that does not have the shard open at the right offset opens it there.

    Args:
        sharding: opens the shards.
        collate_fn: makes a batch from a list of samples, or converts a single sample
            (``batched=False``).
        options: how to read samples.
        batched: whether a request is for a batch; otherwise it is for one sample.
        joins: return the last samples of a shard, if they are no whole batch, as a leftover.
        drop_last: drop them, if they are not joined.
        snapshot_every: take a snapshot after this many batches of a shard.
        whole: a context for collating a batch; samples are read outside it.

    Attributes:
        drawn_from: the global generators that the stream draws from, as far as is known.
    """

    def __init__(
        self,
        sharding: Sharding,
        collate_fn: Callable[[Any], Any],
        options: ReadOptions,
        *,
        batched: bool,
        joins: bool,
        drop_last: bool,
        snapshot_every: int,
        whole: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._sharding = sharding
        # Our collation makes the same batches as default_collate, so it replaces only that.
        known = batched and collate_fn is default_collate
        self._collate = collate_of(sharding.dataset) if known else collate_fn
        self._options = options
        self._batched = batched
        self._joins = joins
        self._drop_last = drop_last
        self._snapshot_every = snapshot_every
        self._whole = whole or nullcontext()
        self._always_seeds = always_draws(sharding.dataset)
        self.drawn_from = DrawnFrom()
        self._pass: str | None = None
        self._open: dict[int, Reader] = {}

    def __call__(self, request: StreamRequest | JoinRequest) -> Fetched:
        if isinstance(request, JoinRequest):
            return self._joined(request)
        reader = self._take_reader(request)
        fetched, reader = self._attempted(reader, self._fetched, request)
        self._open[request.start.shard] = reader
        return fetched

    def _attempted(
        self,
        reader: Reader,
        read: Callable[[StreamRequest, Reader, Seeds], T],
        request: StreamRequest,
    ) -> tuple[T, Reader]:
        """What ``read`` returns with a reader and the seeds of this fetch; and the reader, which is
        another one where something had to be read again.
        """
        if self._options.seeds_each == "nothing":
            return read(request, reader, UNSEEDED), reader
        if self._options.seeds_each == "batch":
            with isolated_generators():
                return read(request, reader, UNSEEDED), reader
        if reader.read_since_opened < _LOOKED_AT:
            # All generators are seeded, so nothing is read twice before enough samples were
            # delivered to show whether the stream repeats them.
            self.drawn_from.is_known = False
            if self._always_seeds or reader.never_begins_anew:
                self.drawn_from.add_of_samples(GENERATORS)
        bookmark: Bookmark | None = None

        def attempt(seeds: Seeds) -> T:
            nonlocal reader, bookmark
            if bookmark is None:
                bookmark = reader.bookmark(request.batches)
            else:
                reader = self._reopened(reader, bookmark, seeds)
            return read(request, reader, seeds)

        return keyed(self.drawn_from, attempt), reader

    def _reopened(self, reader: Reader, bookmark: Bookmark, seeds: Seeds) -> Reader:
        try:
            return reader.reopened(bookmark, seeds)
        except (StateMismatchError, DatasetChangedError) as error:
            kind, state = type(self._sharding.dataset).__name__, bookmark.state
            raise unrepeatable(kind, state.shard, state.offset, error) from error

    def _fetched(self, request: StreamRequest, reader: Reader, seeds: Seeds) -> Fetched:
        captures = request.length > 0 and (request.batches + 1) % self._snapshot_every == 0
        held = reader.state(request.batches) if self._joins else None
        if reader.offset == 0:
            seeds = _BehindFirst(seeds, self.drawn_from)
        samples, failures = reader.read(request.length, request.step, seeds, captures=captures)
        left_out = failures if self._options.on_error == "skip" else ()
        found = len(samples) + len(left_out)
        if self._joins and 0 < found < request.length:
            reader.close()
            leftover = _leftover(request, samples, failures, left_out)
            assert held is not None
            return Fetched(NO_BATCH, shard=held._replace(offset=request.offset), leftover=leftover)
        counts = found == request.length if self._drop_last else found > 0
        state = reader.state(request.batches + (counts and request.length > 0))
        if not samples or not counts:
            if reader.ended:
                reader.close()
            return Fetched(NO_BATCH, failures, shard=state)
        if self._options.seeds_each == "sample" and self._collate is not collate:
            seeds.collating(reader.key_of_last())
        batch = self._collated(samples, request)
        if reader.ended:
            reader.close()
        notice, reader.notice = reader.notice, None
        return Fetched(batch, failures, shard=state, notice=notice)

    def _joined(self, request: JoinRequest) -> Fetched:
        samples = [sample for leftover in request.leftovers for sample in leftover.samples()]
        if not samples:
            return Fetched(NO_BATCH)
        if self._options.seeds_each == "nothing":
            return Fetched(self._collated(samples, request))
        with isolated_generators():
            # As after reading the last sample, although another worker may have read that.
            last = request.leftovers[-1]
            seed_at(request.seed, last.shard, request.epoch, last.stop - 1)
            return Fetched(self._collated(samples, request))

    def _collated(self, samples: list[Any], request: StreamRequest | JoinRequest) -> Any:
        try:
            with self._whole:
                return self._collate(samples if self._batched else samples[0])
        except Exception as error:
            add_note(error, f"while collating {request.described()}")
            raise

    def _take_reader(self, request: StreamRequest) -> Reader:
        """Take out the shard's reader, at the request's offset.

        The caller puts it back once it has succeeded: the offset of a reader that failed is
        wrong.
        """
        if request.pass_id != self._pass:
            self._open.clear()
            self._pass = request.pass_id
        reader = self._open.pop(request.start.shard, None)
        # An earlier epoch that this one continues may have read ahead.
        ahead = reader is not None and reader.offset > request.offset
        if reader is None or ahead or (request.length and not reader.is_at(request.offset)):
            del reader
            start = request.start
            reader = Reader(self._sharding, start, request.seed, request.epoch, self._options)
            reader = self._returned(reader, start.offset, request)
        if not request.length:
            return self._returned(reader, request.offset, request)
        # If this worker replaces another, batches were delivered since ``start``.
        return self._advanced(reader, request.offset, request)

    def _returned(self, reader: Reader, offset: int, request: StreamRequest) -> Reader:
        """The reader, where the shard must not end before."""
        reader = self._advanced(reader, offset, request)
        reader.return_to(offset, UNSEEDED)  # reads nothing any more
        return reader

    def _advanced(self, reader: Reader, offset: int, request: StreamRequest) -> Reader:
        while reader.offset < offset and not reader.ended:
            at_once = _LOOKED_AT if reader.read_since_opened < _LOOKED_AT else _REPLAYED_AT_ONCE
            to = min(offset, reader.offset + at_once)

            def advance(_: StreamRequest, reader: Reader, seeds: Seeds, to: int = to) -> None:
                reader.advance(to, seeds)

            _, reader = self._attempted(reader, advance, request)
        return reader


class _BehindFirst:
    """Seeds for a batch with the first sample of a shard.

    What that draws does not count: many streams shuffle their files before they yield it, and the
    others need no seed for that. It is always seeded itself.
    """

    def __init__(self, seeds: Seeds, drawn_from: DrawnFrom) -> None:
        self._seeds = seeds
        self._drawn_from = drawn_from
        self._known = drawn_from.samples
        self._count = 0
        self.each: Callable[[int], None] | None = seeds.each and self._first_each

    def _first_each(self, key: int) -> None:
        assert self._seeds.each is not None
        self._seeds.each(key)
        self._count += 1
        if self._count == 2:
            self._drawn_from.samples, self.each = self._known, self._seeds.each

    def failed(self, key: int) -> None:
        self._seeds.failed(key)
        self.each = self._seeds.each

    def collating(self, key: int) -> None:
        self._seeds.collating(key)


def _leftover(
    request: StreamRequest,
    samples: list[Any],
    failures: tuple[Failure, ...],
    left_out: tuple[Failure, ...],
) -> Leftover:
    return Leftover(
        request.start.shard,
        request.offset,
        len(samples) + len(left_out),
        tuple(failure.position for failure in left_out),
        failures,
        ends=True,
        bundle=Bundle(samples),
    )
