"""Where a loader over a stream resumes from a state, or why it refuses the state (C6, C10)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from dataporter.errors import StateMismatchError, warn
from dataporter.state.consequences import UNKNOWN
from dataporter.state.resume import OnMismatch, on_mismatch_checked
from dataporter.state.schema import Mismatch
from dataporter.state.strategies import ResumptionStrategy, explain
from dataporter.streams.request import StreamProgress
from dataporter.streams.state import StreamIdentity, StreamState

__all__ = ["resume_at"]


def resume_at(
    saved: StreamState,
    present: StreamIdentity,
    strategy: ResumptionStrategy,
    rank: int,
    shards: Container[int],
    given_seed: int | None,
    on_mismatch: OnMismatch,
) -> tuple[int, StreamProgress]:
    """Seed and progress at which a loader with the identity ``present`` resumes.

    Args:
        rank: of the loader.
        shards: the shards that the loader reads.
        given_seed: the seed that the loader was built with; None takes the state's.

    Raises:
        StateMismatchError: the state belongs to another loader, or is another rank's part.
    """
    on_mismatch_checked("on_mismatch", on_mismatch)
    before, identity = saved.progress, saved.identity
    if saved.rank is not None and (saved.rank, identity.world_size) != (
        rank,
        present.world_size,
    ):
        raise StateMismatchError(
            f"the state is rank {saved.rank}'s part of a stream read by {identity.world_size} "
            f"ranks, without the shards of the others, but this is rank {rank} of "
            f"{present.world_size}: save state_dict(gather=True), which all ranks call together "
            "and any number of ranks can load, or load each part on the rank that saved it"
        )
    seed = saved.seed if given_seed is None else given_seed
    mismatches = strategy.mismatches(identity, present)
    if present.sharding == "workers" and identity.world_size != present.world_size:
        mismatches = [one for one in mismatches if one.field != "world_size"]
        mismatches.append(
            Mismatch("world_size", identity.world_size, present.world_size, _NOT_ELASTIC)
        )
    mismatches = [
        replace(one, advice=f"write num_shards={one.saved}, as it was")
        if one.field == "num_shards" and one.saved is not None
        else one
        for one in mismatches
    ]
    if seed != saved.seed:
        mismatches.append(Mismatch("seed", saved.seed, seed))
    if mismatches and on_mismatch == "error":
        raise StateMismatchError(explain(mismatches))
    if mismatches:
        warn(explain(mismatches, UNKNOWN), RuntimeWarning)
    moved = {"sharding", "num_shards", "num_workers"}
    if present.sharding == "workers":
        moved.add("world_size")
    if any(mismatch.field in moved for mismatch in mismatches):
        # The shards are different ones now, so the nearest position is the start of the epoch.
        return seed, StreamProgress(before.epoch)
    step = before.step
    if identity.world_size != present.world_size:
        batches = sum(state.batches for state in before.shards.values())
        if before.continued:  # they are of several epochs, which all ranks have shared evenly
            batches = before.step * identity.world_size
        step = batches // present.world_size
    own = {shard: state for shard, state in before.shards.items() if shard in shards}
    if on_mismatch == "warn":
        own = {shard: state.without_digest for shard, state in own.items()}
    earlier = before.earlier // (present.world_size if saved.rank is None else 1)
    return seed, replace(before, step=step, shards=own, earlier=earlier)


_NOT_ELASTIC = (
    "each worker of each rank iterates over this stream; to change it, give the dataset num_shards "
    "and shard(), see dataporter.ShardedStream"
)
