"""The requests of a pass over a stream, in their order, and their batches (C1, C10)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from typing import Any, cast

from dataporter.engines import Reply
from dataporter.errors import warn
from dataporter.fetch.failure import Failure
from dataporter.fetch.fetched import NO_BATCH, PassEnd
from dataporter.schedule.request import Scheduled
from dataporter.streams.leftovers import Leftover, Leftovers
from dataporter.streams.replay_bar import ReplayBar
from dataporter.streams.request import JoinRequest, StreamProgress, StreamRequest
from dataporter.streams.shard import ShardState

__all__ = ["TurnOptions", "Turns", "next_shard"]

# Samples of a shard per replay request: few enough for the bar to move and for `timeout=`.
_REPLAYED_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """How the shards of a rank take turns.

    Attributes:
        batch_size: samples per request.
        joins: the leftovers of the shards are joined into batches.
        drop_last: drop the last joined batch if it is incomplete.
        in_order: the turns depend on the shards alone. Otherwise the worker with the fewest
            outstanding requests comes first, so that a slow one delays only its own shards.
        num_workers: number of workers, which share the shards.
    """

    batch_size: int
    joins: bool
    drop_last: bool
    in_order: bool
    num_workers: int


class Turns:
    """The requests of a pass: the shards take turns, one batch each, until all have ended.

    The next batch is always from the shard with the fewest batches so far, the first of these by
    number. So the order follows from the states of the shards, whatever the workers and ranks.
    As soon as the leftovers of shards that have ended make a batch, that is the next one.
    """

    def __init__(
        self,
        progress: StreamProgress,
        starts: dict[int, ShardState],
        seed: int,
        options: TurnOptions,
    ) -> None:
        self.progress = progress
        self.options = options
        self._starts = starts
        self._latest = dict(starts)
        self._readers = {shard: reader for reader, shard in enumerate(starts)}
        self._seed = seed
        self._ended = {shard for shard, state in starts.items() if state.ended}
        self._leftovers = Leftovers()
        self._joins: deque[JoinRequest] = deque()
        self._outstanding = [0] * options.num_workers
        self._limit: int | None = None

    def __iter__(self) -> Iterator[Scheduled]:
        yield from self._replays()
        turns = self._in_order() if self.options.in_order else self._by_worker()
        requested: StreamRequest | JoinRequest
        for step in count(self.progress.step):
            if self._joins:
                requested = self._joins.popleft()
            elif (turn := next(turns, None)) is not None:
                requested = self._request_of(*turn, step)
            else:
                return
            self._outstanding[requested.reader % len(self._outstanding)] += 1
            yield Scheduled(requested, None)

    def batches(self, replies: Iterator[Any]) -> Iterator[Any]:
        """The replies that hold a batch; the others report ends, replays and skipped samples."""
        return islice(_Batches(self, replies), self._limit)

    def limited(self, steps: int) -> Turns:
        # A request may turn out to hold no batch, so only the replies can be counted.
        self._limit = steps
        return self

    def arrived(self, request: StreamRequest | JoinRequest) -> None:
        """Take note that a request is answered."""
        self._outstanding[request.reader % len(self._outstanding)] -= 1

    def worker_of(self, shard: int) -> int:
        """The number of the worker that reads a shard."""
        return self._readers[shard] % len(self._outstanding)

    def has_ended(self, shard: int) -> bool:
        """Whether a shard is known to have no more samples, but perhaps a leftover."""
        return shard in self._ended

    def note(self, state: ShardState) -> None:
        """Take note of the state in which a shard was left."""
        self._latest[state.shard] = state
        if state.ended:
            self._ended.add(state.shard)

    def keep(self, leftover: Leftover) -> None:
        """Keep the leftover of a shard, which has ended, until it is joined."""
        self._ended.add(leftover.shard)
        self._leftovers.add(leftover)

    def join(self) -> int:
        """Request the batches that the leftovers make by now; returns how many."""
        size, before = self.options.batch_size, len(self._joins)
        while self._leftovers.count >= size:
            self._request_join(size)
        if len(self._ended) == len(self._starts) and not self.options.drop_last:
            self._request_join(size)
        return len(self._joins) - before

    def after(self, leftovers: Sequence[Leftover]) -> list[ShardState]:
        """The states in which a joined batch leaves the shards of its leftovers."""
        states = [
            # The first leftover is the end of its shard, which has no more turns to count.
            self._latest[leftover.shard]._replace(
                batches=self._latest[leftover.shard].batches + (number == 0),
                offset=leftover.stop,
                ended=leftover.ends,
            )
            for number, leftover in enumerate(leftovers)
        ]
        for state in states:
            self.note(state)
        return states

    def carried(self) -> list[ShardState]:
        """The states of shards that have ended and carry something to the next epoch."""
        return [
            state for state in self._latest.values() if state.ended and state.beginning is not None
        ]

    def warn_of_dropped_samples(self) -> None:
        """Warn that no worker has a whole batch, although all workers together do."""
        shards = self._latest.values()
        samples = sum(state.offset for state in shards)
        if len(shards) > 1 and samples >= self.options.batch_size:
            warn(
                f"drop_last dropped all {samples} samples of the epoch: {len(shards)} workers "
                f"share them, and none has a whole batch of {self.options.batch_size}; use a "
                "smaller batch, fewer workers or drop_last=False",
                RuntimeWarning,
            )

    def to_replay(self) -> list[ShardState]:
        """The shards whose snapshot is behind their offset, so that samples are reread."""
        return [
            state
            for state in self._starts.values()
            if state.snapshot_offset < state.offset and not state.ended
        ]

    def _in_order(self) -> Iterator[tuple[int, int]]:
        """The turns, as (batches before, shard), by the states of the shards alone."""
        turns = _turns(self._starts.values())
        heapq.heapify(turns)
        while turns:
            batches, shard = turns[0]
            if shard in self._ended:
                heapq.heappop(turns)
                continue
            heapq.heapreplace(turns, (batches + 1, shard))
            yield batches, shard

    def _by_worker(self) -> Iterator[tuple[int, int]]:
        """The turns, as (batches before, shard), by what the workers have to do."""
        turns = {shard: batches for batches, shard in _turns(self._starts.values())}
        workers = len(self._outstanding)
        while left := [shard for shard in turns if shard not in self._ended]:
            shard = min(
                left,
                key=lambda one: (self._outstanding[self._readers[one] % workers], turns[one], one),
            )
            turns[shard] += 1
            yield turns[shard] - 1, shard

    def _request_of(self, batches: int, shard: int, step: int) -> StreamRequest:
        start, size = self._starts[shard], self.options.batch_size
        offset = start.offset + (batches - start.batches) * size
        return self._request(self._latest[shard], step, batches, offset, size)

    def _request_join(self, size: int) -> None:
        if leftovers := self._leftovers.take(size):
            reader = self._readers[leftovers[0].shard]
            epoch, step = self.progress.opened_in, self.progress.step
            self._joins.append(JoinRequest(self._seed, epoch, step, reader, leftovers))

    def _replays(self) -> Iterator[Scheduled]:
        # A part of each shard in turn, so that all workers take part and the bar moves.
        # In whole batches: where the generators are seeded once a batch, a part of one, read by
        # itself, would draw other values.
        size = self.options.batch_size
        at_once = -(-_REPLAYED_AT_ONCE // size) * size
        behind = [(state.snapshot_offset, state) for state in self.to_replay()]
        while behind:
            behind = [(min(offset + at_once, state.offset), state) for offset, state in behind]
            for offset, state in behind:
                start = state._replace(offset=state.snapshot_offset)
                request = self._request(start, self.progress.step, state.batches, offset, 0)
                self._outstanding[request.reader % len(self._outstanding)] += 1
                yield Scheduled(request, None)
            behind = [(offset, state) for offset, state in behind if offset < state.offset]

    def _request(
        self, start: ShardState, step: int, batches: int, offset: int, length: int
    ) -> StreamRequest:
        return StreamRequest(
            self._seed,
            self.progress.opened_in,
            step,
            self.progress.pass_id,
            self._readers[start.shard],
            batches,
            offset,
            length,
            start,
        )


class _Batches(Iterator[Reply]):
    """The replies that hold a batch; the others report ends, replays and skipped samples.

    Its ``StopIteration`` has a :class:`PassEnd`, with the failures that no batch reports: of
    samples after the last batches of their shards.
    """

    def __init__(self, turns: Turns, replies: Iterator[Reply]) -> None:
        self._turns = turns
        self._replies = replies
        self._step = turns.progress.step
        follows = turns.progress.continued > 0 and turns.progress.step == 0
        self._bar = ReplayBar(turns.to_replay(), warns=not follows)
        # By shard, the failures that no batch of the shard has followed yet: a state that is saved
        # now resumes before them.
        self._failures: dict[int, tuple[Failure, ...]] = {}
        # After the first batch of each worker, what tells whether two of them read the same.
        self._firsts: dict[tuple[int, ...], int] = {}
        self._noticed = False
        # The states of shards of which no more batch comes, for the next batch to deliver.
        self._ended: list[ShardState] = []
        # Joined batches that come next; and the replies that came before theirs, in their order.
        self._awaited = 0
        self._set_aside: deque[Reply] = deque()

    def __next__(self) -> Reply:
        while (reply := self._upcoming()) is not None:
            if reply.failure is not None:
                # The samples of a shard are read in order, so none can follow a failure.
                raise reply.failure
            joined = isinstance(reply.request, JoinRequest)
            batch = self._of_leftovers(reply) if joined else self._of_shard(reply)
            if batch is not None:
                self._bar.close()
                return batch
        self._bar.close()
        if self._step == 0 and not self._turns.progress.continued:
            self._turns.warn_of_dropped_samples()
        left = [failure for failures in self._failures.values() for failure in failures]
        self._failures.clear()
        raise StopIteration(PassEnd(self._placed(left), self._turns.carried() or None))

    def _upcoming(self) -> Reply | None:
        if not self._awaited and self._set_aside:
            return self._set_aside.popleft()
        for reply in self._replies:
            request = cast("StreamRequest | JoinRequest", reply.request)
            self._turns.arrived(request)
            if not self._awaited:
                return reply
            if isinstance(request, JoinRequest):
                self._awaited -= 1
                return reply
            # Where a joined batch comes must not depend on how far the workers are ahead.
            self._set_aside.append(reply)
        return None

    def _of_shard(self, reply: Reply) -> Reply | None:
        fetched = reply.fetched
        assert fetched is not None
        state: ShardState = fetched.shard
        if self._turns.has_ended(state.shard):
            return None
        failures = fetched.failures
        if self._failures:
            failures = self._failures.pop(state.shard, ()) + failures
        if fetched.leftover is not None:
            self._turns.keep(fetched.leftover)
        else:
            self._turns.note(state)
        if self._turns.options.joins and self._turns.has_ended(state.shard):
            joins = self._turns.join()
            self._awaited += joins if self._turns.options.in_order else 0
        if fetched.batch is NO_BATCH:
            if failures:
                self._failures[state.shard] = failures
            if state.ended and self._turns.options.joins:
                self._ended.append(state)
            self._bar.show(state)
            return None
        if fetched.notice is not None and not self._noticed:
            self._noticed = True
            warn(fetched.notice, RuntimeWarning)
        if state.batches == 1 and not self._turns.options.joins:
            self._warn_of_repeats(state)
        return self._numbered(reply, [state], failures)

    def _warn_of_repeats(self, state: ShardState) -> None:
        """Warn of a worker whose first batch holds the same samples as that of another."""
        if state.digest_offset == state.snapshot_offset:
            return
        first = (state.offset, state.snapshot_offset, state.digest)
        other = self._firsts.setdefault(first, state.shard)
        if other != state.shard:
            warn(
                f"worker {self._turns.worker_of(state.shard)} has delivered the same samples as "
                f"worker {self._turns.worker_of(other)}: each worker iterates over this stream, as "
                "in torch, so an epoch holds its samples several times. Give the dataset "
                "num_shards and shard() (dataporter.ShardedStream), divide it in __iter__ by "
                "torch.utils.data.get_worker_info(), or pass num_workers=1",
                RuntimeWarning,
            )

    def _of_leftovers(self, reply: Reply) -> Reply | None:
        request = cast("JoinRequest", reply.request)
        states = self._turns.after(request.leftovers)
        failures = tuple(one for leftover in request.leftovers for one in leftover.failures)
        assert reply.fetched is not None
        if reply.fetched.batch is NO_BATCH:
            last = request.leftovers[-1].shard
            self._failures[last] = self._failures.get(last, ()) + failures
            return None
        return self._numbered(reply, states, failures)

    def _numbered(
        self, reply: Reply, states: list[ShardState], failures: tuple[Failure, ...]
    ) -> Reply:
        request = cast("StreamRequest", reply.request)
        if request.step != self._step:
            request = request._replace(step=self._step)
        delivers = states
        if self._ended:
            # A state that is saved now resumes after the shards that have ended.
            left = (self._failures.pop(state.shard, ()) for state in self._ended)
            failures = (*chain.from_iterable(left), *failures)
            delivers, self._ended = [*self._ended, *states], []
        fetched = reply.fetched
        assert fetched is not None
        if failures or fetched.failures or fetched.shard is not states[-1]:
            failures = self._placed(failures)
            fetched = fetched._replace(failures=failures, shard=states[-1])
        self._step += 1
        return Reply(request, delivers, fetched)

    def _placed(self, failures: Iterable[Failure]) -> tuple[Failure, ...]:
        """The failures, in the epoch and at the step of the batch that reports them."""
        epoch = self._turns.progress.epoch
        return tuple(replace(failure, epoch=epoch, step=self._step) for failure in failures)


def next_shard(states: Iterable[ShardState]) -> ShardState | None:
    """The shard whose turn it is; None once all of them have ended."""
    by_number = {state.shard: state for state in states}
    turns = _turns(by_number.values())
    return by_number[min(turns)[1]] if turns else None


def _turns(states: Iterable[ShardState]) -> list[tuple[int, int]]:
    """Batches and number of each shard that has not ended; the smallest pair has its turn."""
    return [(state.batches, state.shard) for state in states if not state.ended]
