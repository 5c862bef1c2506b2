"""A pass over a stream: what is asked for, in which sequence, and what comes of that (C1, C10)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, cast

from tqdm import tqdm

from dataporter.engines import Reply
from dataporter.errors import warn
from dataporter.fetch.fetched import NO_BATCH, warn_of_skipped
from dataporter.schedule.request import Scheduled
from dataporter.streams.request import StreamProgress, StreamRequest
from dataporter.streams.shard import ShardState

__all__ = ["Turns", "next_shard"]

# Samples of a shard that one request replays: few enough for the bar to move, and for a timeout.
_REPLAYED_AT_ONCE = 4096
_SHOWS_AFTER = 1.0  # s


class Turns:
    """What a pass asks for: the shards take turns, a batch each, until every one has ended.

    The next is always the shard of which fewest batches came, and among these the first. So the
    sequence follows from how far the shards are, and neither workers nor ranks have part in it.
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
        return _Batches(self, replies)

    def note(self, state: ShardState) -> None:
        """A shard has come so far."""
        self._latest[state.shard] = state

    def warn_of_samples_left_out(self) -> None:
        """Nothing came of the epoch, though a batch of it would, were it not for the shards."""
        shards = self._latest.values()
        samples = sum(state.offset for state in shards)
        if len(shards) > 1 and samples >= self._batch_size:
            warn(
                f"drop_last has left out all {samples} samples of an epoch: they lie in "
                f"{len(shards)} shards, of which none has a whole batch of {self._batch_size}; "
                "take a smaller batch or fewer shards (num_shards=), or leave drop_last out",
                RuntimeWarning,
            )

    def to_replay(self) -> list[ShardState]:
        """The shards that are read again from an offset before their own."""
        return [
            state
            for state in self._starts.values()
            if state.marked < state.offset and not state.ended
        ]

    def _replays(self) -> Iterator[Scheduled]:
        # By steps, and in turns, so that all workers are at it and the bar moves.
        behind = [(state.marked, state) for state in self.to_replay()]
        while behind:
            behind = [
                (min(offset + _REPLAYED_AT_ONCE, state.offset), state) for offset, state in behind
            ]
            for offset, state in behind:
                start = state._replace(offset=state.marked)
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
    """The replies that hold a batch; the others tell of ends, replays and samples that were left
    out, and are heard here.
    """

    def __init__(self, asking: Turns, replies: Iterator[Reply]) -> None:
        self._asking = asking
        self._replies = replies
        self._step = asking.progress.step
        self._replayed = {state.shard: state.marked for state in asking.to_replay()}
        self._bar = _bar(asking.to_replay())

    def __next__(self) -> Reply:
        for reply in self._replies:
            if reply.failure is not None:
                # What is read one after another cannot be gone on with behind a failure.
                raise reply.failure
            assert reply.fetched is not None
            state = reply.fetched.shard
            assert state is not None
            self._asking.note(state)
            if reply.fetched.batch is NO_BATCH:
                warn_of_skipped(reply.request, reply.fetched)
                self._show_replayed(state)
                continue
            self._close_bar()
            request = cast("StreamRequest", reply.request)._replace(step=self._step)
            self._step += 1
            return reply._replace(request=request, delivers=state)
        self._close_bar()
        if self._step == 0:
            self._asking.warn_of_samples_left_out()
        raise StopIteration

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
    """A progress bar, and a warning where a replay begins at the front of a stream."""
    unmarked = sum(state.offset for state in to_replay if state.snapshot is None)
    if unmarked:
        warn(
            f"the stream gives no exact state to go on from, so {unmarked:,} samples that were "
            "delivered are read again by the workers, and thrown away, before the next one comes; "
            "state_dict and load_state_dict on the dataset or on its iterator make that needless",
            RuntimeWarning,
        )
    total = sum(state.offset - state.marked for state in to_replay)
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
