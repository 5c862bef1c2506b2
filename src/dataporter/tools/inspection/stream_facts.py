"""Facts of streams: what their states say, and which shard comes next, without the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dataporter.state.strategies import ResumptionStrategy
from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardState
from dataporter.streams.state import StreamIdentity, StreamState
from dataporter.tools.inspection.changes import sorted_out, strategy_of
from dataporter.tools.inspection.report import Next, StateReport

__all__ = ["stream_facts"]


def stream_facts(where: str, raw: Mapping[str, Any], saved: StreamState, ranks: int) -> StateReport:
    """The report of one state of a stream's loader."""
    identity, progress = saved.identity, saved.progress
    strategy, notes = strategy_of(identity.strategy)
    may_change, must_stay = _words_of_stream(saved, strategy)
    shown = range(min(ranks, identity.world_size)) if saved.rank is None else [saved.rank]
    following = tuple(
        coming
        for rank in shown
        if (coming := _next_of_shards(rank, progress, _shards_of(rank, identity))) is not None
    )
    total = identity.num_shards or (identity.num_workers or 1) * identity.world_size
    states = progress.shards.values()
    ended = sum(state.ended for state in states)
    notes.append(
        f"shards: {total} in all, {len(states)} begun, {ended} ended; how many samples a stream "
        "has is seen at its end, so there is no percentage"
    )
    notes.append(_WAYS[raw["stream"]])
    if saved.rank is not None:
        notes.append(
            f"this is rank {saved.rank}'s part of {identity.world_size}: the shards of the others "
            "are in their own parts; state_dict(gather=True) brings all together"
        )
    if not following:
        notes.append(
            f"all shards have ended: the next batch is the first one of epoch {progress.epoch + 1}"
        )
    return StateReport(
        where,
        dict(raw),
        reads="stream",
        position=progress.delivered,
        may_change=may_change,
        must_stay=must_stay,
        next=following,
        notes=tuple(notes),
    )


def _shards_of(rank: int, identity: StreamIdentity) -> range:
    # As ByShards and ByWorkers share them out.
    if identity.num_shards is not None:
        return range(rank, identity.num_shards, identity.world_size)
    workers = identity.num_workers or 1
    return range(rank * workers, (rank + 1) * workers)


def _next_of_shards(rank: int, progress: StreamProgress, shards: Iterable[int]) -> Next | None:
    """The shard whose turn it is: that of which fewest batches came, and of these the first."""
    states = [progress.shards.get(shard, ShardState(shard)) for shard in shards]
    waiting = [state for state in states if not state.ended]
    if not waiting:
        return None
    state = min(waiting, key=lambda state: (state.batches, state.shard))
    return Next(rank, progress.epoch, progress.step, shard=state.shard, place=state.offset)


def _words_of_stream(
    saved: StreamState, strategy: ResumptionStrategy | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    identity = saved.identity
    data = "the data"
    if identity.dataset_fingerprint is not None:
        data += f" (fingerprint {identity.dataset_fingerprint})"
    fixed = [data, f"tail {identity.tail!r}"]
    free = []
    if identity.sharding == "shards":
        free.append("the number of workers, prefetching and pinning")
        fixed.append(f"num_shards ({identity.num_shards})")
    else:
        free.append("prefetching and pinning")
        fixed.append(f"the number of workers ({identity.num_workers})")
    is_elastic = saved.rank is None and identity.sharding == "shards"
    words = sorted_out(
        free, fixed, strategy, identity.batch_size, identity.world_size, is_elastic=is_elastic
    )
    if saved.rank is not None:
        return words[0], (*words[1], f"the rank ({saved.rank})")
    return words


_WAYS = {
    "shards": "the dataset cuts itself into shards, each of which goes on from its own state",
    "snapshots": "goes on from the snapshots of the dataset that came with the last batches",
    "replay": "the dataset has no state of its own: the samples above are read again, by the "
    "workers, before the next one comes",
}
