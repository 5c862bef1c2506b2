"""Fetch for streams: reads a request's batch with the reader that has its shard open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.utils.data import default_collate

from dataporter.errors import add_note
from dataporter.fetch.collate import collate_of
from dataporter.fetch.failure import Failure
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.streams.leftovers import Bundle, Leftover
from dataporter.streams.reader import Reader, ReadOptions, seed_at
from dataporter.streams.request import JoinRequest, StreamRequest
from dataporter.streams.sharding import Sharding

__all__ = ["StreamFetch"]


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
        self._pass: str | None = None
        self._open: dict[int, Reader] = {}

    def __call__(self, request: StreamRequest | JoinRequest) -> Fetched:
        if isinstance(request, JoinRequest):
            return self._joined(request)
        reader = self._take_reader(request)
        before = reader.state(request.batches)
        captures = request.length > 0 and (request.batches + 1) % self._snapshot_every == 0
        samples, failures = reader.read(request.length, request.step, captures=captures)
        left_out = failures if self._options.on_error == "skip" else ()
        found = len(samples) + len(left_out)
        if self._joins and 0 < found < request.length:
            reader.close()
            held = before._replace(offset=request.offset)
            self._open[held.shard] = reader
            leftover = _leftover(request, samples, failures, left_out)
            return Fetched(NO_BATCH, shard=held, leftover=leftover)
        counts = found == request.length if self._drop_last else found > 0
        state = reader.state(request.batches + (counts and request.length > 0))
        if reader.ended:
            reader.close()
        self._open[state.shard] = reader
        if not samples or not counts:
            return Fetched(NO_BATCH, failures, shard=state)
        notice, reader.notice = reader.notice, None
        batch = self._collated(samples, request)
        return Fetched(batch, failures, shard=state, notice=notice)

    def _joined(self, request: JoinRequest) -> Fetched:
        samples = [sample for leftover in request.leftovers for sample in leftover.samples()]
        if not samples:
            return Fetched(NO_BATCH)
        if self._options.seeds_each != "nothing":
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
            reader = Reader(
                self._sharding, request.start, request.seed, request.epoch, self._options
            )
        if request.length:
            # If this worker replaces another, batches were delivered since ``start``.
            reader.advance(request.offset)
        else:
            reader.return_to(request.offset)
        return reader


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
