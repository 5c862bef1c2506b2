"""Fetch for streams: a request becomes a batch, read by the reader that has its shard open."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.utils.data import default_collate

from dataporter.errors import add_note
from dataporter.fetch.collate import collate_of
from dataporter.fetch.fetched import NO_BATCH, Fetched
from dataporter.streams.reader import Reader, ReadOptions
from dataporter.streams.request import StreamRequest
from dataporter.streams.shard import Sharding, ShardState

__all__ = ["StreamFetch"]


class StreamFetch:
    """Reads streams. Unlike a map-style fetch it keeps something: which shards are open, and where.

    That saves time and changes nothing: what a request asks for follows from the dataset and the
    request, and whoever has not got its shard open at its offset opens it there.

    Args:
        sharding: gives the shards.
        collate_fn: makes a batch of a list of samples; converts a single sample
            (``batched=False``).
        options: how samples are read.
        batched: whether a request is a batch, or one sample that is handed out as it is.
        drop_last: leave out a shard's last batch where it is incomplete.
        snapshot_every: how many batches of a shard come with one snapshot.
        whole: entered while a batch is collated, and not while samples are read.
    """

    def __init__(
        self,
        sharding: Sharding,
        collate_fn: Callable[[Any], Any],
        options: ReadOptions,
        *,
        batched: bool,
        drop_last: bool,
        snapshot_every: int,
        whole: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._sharding = sharding
        # Only default_collate is known to make what ours makes.
        known = batched and collate_fn is default_collate
        self._collate = collate_of(sharding.dataset) if known else collate_fn
        self._options = options
        self._batched = batched
        self._drop_last = drop_last
        self._snapshot_every = snapshot_every
        self._whole = whole or nullcontext()
        self._pass: str | None = None
        self._open: dict[int, tuple[Reader, ShardState]] = {}

    def __call__(self, request: StreamRequest) -> Fetched:
        reader, marked = self._taken(request)
        samples, skipped = reader.read(request.length)
        found = len(samples) + len(skipped)
        counts = found == request.length if self._drop_last else found > 0
        state = self._state_after(request, reader, marked, counts=counts and bool(request.length))
        if reader.ended:
            reader.close()
        self._open[state.shard] = reader, state
        if not samples or not counts:
            return Fetched(NO_BATCH, skipped, shard=state)
        try:
            with self._whole:
                batch = self._collate(samples if self._batched else samples[0])
        except Exception as error:
            add_note(error, f"while collating {request.described()}")
            raise
        return Fetched(batch, skipped, shard=state)

    def _taken(self, request: StreamRequest) -> tuple[Reader, ShardState]:
        """The shard's reader at the request's offset, and the state with the last snapshot.

        They are this call's until it has succeeded: a reader that failed is not where it seems.
        """
        if request.pass_id != self._pass:
            self._open.clear()
            self._pass = request.pass_id
        reader, marked = self._open.pop(request.start.shard, (None, request.start))
        if reader is None or (request.length and not reader.is_at(request.offset)):
            marked = request.start
            reader = Reader(self._sharding, marked, request.seed, request.epoch, self._options)
        if request.length:
            # Where this worker has taken another's place, batches have come since ``start``.
            reader.advance(request.offset)
        else:
            reader.return_to(request.offset)
        return reader, marked

    def _state_after(
        self, request: StreamRequest, reader: Reader, marked: ShardState, *, counts: bool
    ) -> ShardState:
        batches = request.batches + counts
        after = marked._replace(batches=batches, offset=reader.offset, ended=reader.ended)
        if not counts or (batches % self._snapshot_every and not reader.ended):
            return after
        captured = reader.capture()
        if captured is None:
            return after
        return after._replace(marked=reader.offset, snapshot=captured)
