"""Fetch for streams: reads a request's batch with the reader that has its shard open."""

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
from dataporter.streams.shard import ShardState
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
        drop_last: drop the last batch of a shard if it is incomplete.
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
        self._drop_last = drop_last
        self._snapshot_every = snapshot_every
        self._whole = whole or nullcontext()
        self._pass: str | None = None
        self._open: dict[int, tuple[Reader, ShardState]] = {}

    def __call__(self, request: StreamRequest) -> Fetched:
        reader, latest = self._take_reader(request)
        samples, failures = reader.read(request.length, request.step)
        left_out = len(failures) if self._options.on_error == "skip" else 0
        found = len(samples) + left_out
        counts = found == request.length if self._drop_last else found > 0
        state = self._state_after(request, reader, latest, counts=counts and bool(request.length))
        if reader.ended:
            reader.close()
        self._open[state.shard] = reader, state
        if not samples or not counts:
            return Fetched(NO_BATCH, failures, shard=state)
        try:
            with self._whole:
                batch = self._collate(samples if self._batched else samples[0])
        except Exception as error:
            add_note(error, f"while collating {request.described()}")
            raise
        return Fetched(batch, failures, shard=state)

    def _take_reader(self, request: StreamRequest) -> tuple[Reader, ShardState]:
        """Take out the shard's reader, at the request's offset, and the state of its last snapshot.

        The caller puts them back once it has succeeded: the offset of a reader that failed is
        wrong.
        """
        if request.pass_id != self._pass:
            self._open.clear()
            self._pass = request.pass_id
        reader, latest = self._open.pop(request.start.shard, (None, request.start))
        if reader is None or (request.length and not reader.is_at(request.offset)):
            latest = request.start
            reader = Reader(self._sharding, latest, request.seed, request.epoch, self._options)
        if request.length:
            # If this worker replaces another, batches were delivered since ``start``.
            reader.advance(request.offset)
        else:
            reader.return_to(request.offset)
        return reader, latest

    def _state_after(
        self, request: StreamRequest, reader: Reader, latest: ShardState, *, counts: bool
    ) -> ShardState:
        batches = request.batches + counts
        after = latest._replace(batches=batches, offset=reader.offset, ended=reader.ended)
        if not counts or (batches % self._snapshot_every and not reader.ended):
            return after
        captured = reader.capture()
        if captured is None:
            return after
        return after._replace(snapshot_offset=reader.offset, snapshot=captured)
