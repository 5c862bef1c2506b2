"""Facts of streams: what a state says and which shard is next, without the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataporter.streams.shard import ShardState
from dataporter.streams.sharding import shards_of_rank
from dataporter.streams.state import StreamState
from dataporter.streams.turns import next_shard
from dataporter.tools.inspection.changes import strategy_of, stream_changes
from dataporter.tools.inspection.report import Next, StateReport

__all__ = ["stream_facts"]


def stream_facts(
    where: str, raw: Mapping[str, Any], saved: StreamState, *, ranks: int
) -> StateReport:
    """The report of a state of a stream.

    Args:
        where: the path of the state in the checkpoint.
        raw: the state as it was found.
        saved: the state, parsed.
        ranks: for how many ranks to show the next shard.
    """
    identity, progress = saved.identity, saved.progress
    strategy, notes = strategy_of(identity.strategy)
    changes = stream_changes(saved, strategy)
    shown = range(min(ranks, identity.world_size)) if saved.rank is None else [saved.rank]
    batches = tuple(batch for rank in shown if (batch := _next_batch(saved, rank)) is not None)
    total = identity.num_shards or (identity.num_workers or 1) * identity.world_size
    states = progress.shards.values()
    ended = sum(state.ended for state in states)
    notes.append(
        f"{total} shards, {len(states)} begun, {ended} ended; the length of a stream is known only "
        "at its end, so no percentage is shown"
    )
    notes.append(_WAYS[raw["stream"]])
    if saved.rank is not None:
        notes.append(
            f"this is the part of rank {saved.rank} of {identity.world_size}: the shards of the "
            "other ranks are in their parts; state_dict(gather=True) joins all parts in one state"
        )
    if progress.continued:
        notes.append(
            f"the stream was opened in epoch {progress.opened_in}; steps_per_epoch= has ended "
            f"epochs since, and epoch {progress.epoch} continues it"
        )
    if not batches:
        notes.append(
            f"all shards have ended: the next batch is the first one of epoch {progress.epoch + 1}"
        )
    return StateReport(
        where,
        dict(raw),
        reads="stream",
        position=progress.delivered,
        may_change=changes.may_change,
        must_stay=changes.must_stay,
        failed=saved.ledger.total,
        failures=saved.ledger.records,
        next=batches,
        notes=tuple(notes),
    )


def _next_batch(saved: StreamState, rank: int) -> Next | None:
    identity, progress = saved.identity, saved.progress
    shards = shards_of_rank(
        rank,
        identity.world_size,
        num_shards=identity.num_shards,
        num_workers=identity.num_workers or 1,
    )
    state = next_shard(progress.shards.get(shard, ShardState(shard)) for shard in shards)
    if state is None:
        return None
    return Next(rank, progress.epoch, progress.step, shard=state.shard, offset=state.offset)


_WAYS = {
    "shards": "the dataset is sharded, and each shard resumes from its own state",
    "snapshots": "the dataset resumes from its own state_dict(), saved with the last batches",
    "replay": "the dataset has no state_dict(): at a resume, the workers read the delivered "
    "samples again and discard them",
}
