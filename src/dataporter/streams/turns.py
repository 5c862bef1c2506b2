"""The requests of a pass over a stream, in their order, and their batches (C1, C10)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, cast

from tqdm import tqdm

from dataporter.engines import Reply
from dataporter.errors import warn
from dataporter.fetch.failure import Failure
from dataporter.fetch.fetched import NO_BATCH
from dataporter.schedule.request import Scheduled
from dataporter.streams.request import StreamProgress, StreamRequest
from dataporter.streams.shard import ShardState

__all__ = ["Turns", "next_shard"]

# Samples of a shard per replay request: few enough for the bar to move and for `timeout=`.
_REPLAYED_AT_ONCE = 4096
_SHOWS_AFTER = 1.0  # s


class Turns:
    """The requests of a pass: the shards take turns, one batch each, until all have ended.

    The next batch is always from the shard with the fewest batches so far, the first of these by
    number. So the order follows from the states of the shards, whatever the workers and ranks.
    """

    def __init__(
        self,
        progress: StreamProgress,
        starts: dict[int, ShardState],
        seed: int,
        pass_id: str,
        batch_size: int,
    ) -> None:
        self.progress = progress
        self._starts = starts
        self._latest = dict(starts)
        self._readers = {shard: reader for reader, shard in enumerate(starts)}
        self._seed = seed
        self._pass_id = pass_id
        self._batch_size = batch_size
        self._limit: int | None = None

    def __iter__(self) -> Iterator[Scheduled]:
        yield from self._replays()
        turns = _turns(self._starts.values())
        heapq.heapify(turns)
        step = self.progress.step
        while turns:
            batches, shard = turns[0]
            if self._latest[shard].ended:
                heapq.heappop(turns)
                continue
            heapq.heapreplace(turns, (batches + 1, shard))
            start = self._starts[shard]
            yield self._request(
                self._latest[shard],
                step,
                batches,
                start.offset + (batches - start.batches) * self._batch_size,
                self._batch_size,
            )
            step += 1

    def batches(self, replies: Iterator[Any]) -> Iterator[Any]:
        """The replies that hold a batch; the others report ends, replays and skipped samples."""
        return islice(_Batches(self, replies), self._limit)

    def limited(self, steps: int) -> Turns:
        # A request may turn out to hold no batch, so only the replies can be counted.
        self._limit = steps
        return self

    def note(self, state: ShardState) -> None:
        """Take note of the state in which a shard was left."""
        self._latest[state.shard] = state

    def warn_of_dropped_samples(self) -> None:
        """Warn that no shard has a whole batch, although all shards together do."""
        shards = self._latest.values()
        samples = sum(state.offset for state in shards)
        if len(shards) > 1 and samples >= self._batch_size:
            warn(
                f"drop_last dropped all {samples} samples of the epoch: they lie in {len(shards)} "
                f"shards, and none has a whole batch of {self._batch_size}; use a smaller batch, "
                "fewer shards (num_shards=) or drop_last=False",
                RuntimeWarning,
            )

    def to_replay(self) -> list[ShardState]:
        """The shards whose snapshot is behind their offset, so that samples are reread."""
        return [
            state
            for state in self._starts.values()
            if state.snapshot_offset < state.offset and not state.ended
        ]

    def _replays(self) -> Iterator[Scheduled]:
        # A part of each shard in turn, so that all workers take part and the bar moves.
        behind = [(state.snapshot_offset, state) for state in self.to_replay()]
        while behind:
            behind = [
                (min(offset + _REPLAYED_AT_ONCE, state.offset), state) for offset, state in behind
            ]
            for offset, state in behind:
                start = state._replace(offset=state.snapshot_offset)
                yield self._request(start, self.progress.step, state.batches, offset, 0)
            behind = [(offset, state) for offset, state in behind if offset < state.offset]

    def _request(
        self, start: ShardState, step: int, batches: int, offset: int, length: int
    ) -> Scheduled:
        request = StreamRequest(
            self._seed,
            self.progress.epoch,
            step,
            self._pass_id,
            self._readers[start.shard],
            batches,
            offset,
            length,
            start,
        )
        return Scheduled(request, None)


class _Batches(Iterator[Reply]):
    """The replies that hold a batch; the others report ends, replays and skipped samples.

    Its ``StopIteration`` has the failures that no batch reports: of samples after the last batches
    of their shards.
    """

    def __init__(self, turns: Turns, replies: Iterator[Reply]) -> None:
        self._turns = turns
        self._replies = replies
        self._step = turns.progress.step
        self._replayed = {state.shard: state.snapshot_offset for state in turns.to_replay()}
        self._bar = _bar(turns.to_replay())
        # By shard, the failures that no batch of the shard has followed yet: a state that is saved
        # now resumes before them.
        self._failures: dict[int, tuple[Failure, ...]] = {}

    def __next__(self) -> Reply:
        for reply in self._replies:
            if reply.failure is not None:
                # The samples of a shard are read in order, so none can follow a failure.
                raise reply.failure
            assert reply.fetched is not None
            state = reply.fetched.shard
            assert state is not None
            self._turns.note(state)
            failures = self._failures.pop(state.shard, ()) + reply.fetched.failures
            if reply.fetched.batch is NO_BATCH:
                self._failures[state.shard] = failures
                self._show_replayed(state)
                continue
            self._close_bar()
            request = cast("StreamRequest", reply.request)._replace(step=self._step)
            failures = tuple(replace(failure, step=self._step) for failure in failures)
            self._step += 1
            fetched = reply.fetched._replace(failures=failures)
            return reply._replace(request=request, delivers=state, fetched=fetched)
        self._close_bar()
        if self._step == 0:
            self._turns.warn_of_dropped_samples()
        left = [failure for failures in self._failures.values() for failure in failures]
        self._failures.clear()
        raise StopIteration(tuple(replace(failure, step=self._step) for failure in left))

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _show_replayed(self, state: ShardState) -> None:
        before = self._replayed.get(state.shard, state.offset)
        if self._bar is not None and state.offset > before:
            self._replayed[state.shard] = state.offset
            self._bar.update(state.offset - before)


def next_shard(states: Iterable[ShardState]) -> ShardState | None:
    """The shard whose turn it is; None once all of them have ended."""
    by_number = {state.shard: state for state in states}
    turns = _turns(by_number.values())
    return by_number[min(turns)[1]] if turns else None


def _turns(states: Iterable[ShardState]) -> list[tuple[int, int]]:
    """Batches and number of each shard that has not ended; the smallest pair has its turn."""
    return [(state.batches, state.shard) for state in states if not state.ended]


def _bar(to_replay: list[ShardState]) -> tqdm[Any] | None:
    """A progress bar for a replay, with a warning if it starts at the first sample."""
    from_start = sum(state.offset for state in to_replay if state.snapshot is None)
    if from_start:
        warn(
            "the stream has no exact state to resume from, so the workers reread and discard "
            f"{from_start:,} delivered samples first; state_dict and load_state_dict on the "
            "dataset or on its iterator avoid this",
            RuntimeWarning,
        )
    total = sum(state.offset - state.snapshot_offset for state in to_replay)
    if not total:
        return None
    return tqdm(
        total=total,
        desc="replaying the stream",
        unit="sample",
        unit_scale=True,
        leave=False,
        delay=_SHOWS_AFTER,
    )
