"""The state of a stream: the state of each shard, on this rank or on all (C5, C6, C10)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dataporter.errors import InvalidStateError, RankMismatchError
from dataporter.state.ledger import NO_FAILURES, Ledger
from dataporter.state.schema import (
    DAMAGED,
    SCHEMA,
    SCHEMA_VERSION,
    check_numbers,
    check_schema,
    ledger_of,
    part_of,
    shown,
    types_of,
)
from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardState

__all__ = ["StreamIdentity", "StreamState", "build", "joined", "parse"]

_WAYS = ("shards", "snapshots", "replay")


@dataclass(frozen=True, slots=True)
class StreamIdentity:
    """The fields that determine a stream's batches, beside seed and progress.

    Attributes:
        sharding: ``"shards"`` if the dataset splits itself, ``"workers"`` if each worker iterates
            over the dataset.
        num_shards: number of shards; None with ``"workers"``.
        num_workers: number of workers on each rank; None with ``"shards"``, where it may change.
    """

    strategy: str
    sharding: Literal["shards", "workers"]
    num_shards: int | None
    num_workers: int | None
    dataset_fingerprint: str | None
    batch_size: int | None
    world_size: int
    tail: str


@dataclass(frozen=True, slots=True)
class StreamState:
    """The state of a stream as its parts.

    Attributes:
        rank: the rank that reads these shards; None for the shards of all ranks.
    """

    identity: StreamIdentity
    seed: int
    rank: int | None
    progress: StreamProgress
    ledger: Ledger = NO_FAILURES


_FIELDS = {
    SCHEMA: (int,),
    "stream": (str,),
    **types_of(StreamIdentity),
    **types_of(StreamState),
    **types_of(StreamProgress),
    "shards": (list, tuple),
    "failures": (list, tuple),
}
# "stream" names the sharding; a limit is the loader's, and a pass is of this process.
for other in ("identity", "progress", "ledger", "sharding", "limit", "pass_id"):
    del _FIELDS[other]
_SHARD_TYPES = tuple(types_of(ShardState).values())
# Of schema 1; later releases added fields at the end.
_FEWEST_FIELDS = 6


def build(state: StreamState) -> dict[str, Any]:
    """The state as a flat dict of JSON types, always with all keys."""
    identity, progress = state.identity, state.progress
    shards = sorted(progress.shards.values())
    way: str = identity.sharding
    if identity.sharding == "workers":
        way = "replay" if all(shard.snapshot is None for shard in shards) else "snapshots"
    return {
        SCHEMA: SCHEMA_VERSION,
        "stream": way,
        "strategy": identity.strategy,
        "seed": state.seed,
        "epoch": progress.epoch,
        "step": progress.step,
        "continued": progress.continued,
        "earlier": progress.earlier,
        "rank": state.rank,
        "shards": [list(shard) for shard in shards],
        "num_shards": identity.num_shards,
        "num_workers": identity.num_workers,
        "dataset_fingerprint": identity.dataset_fingerprint,
        "batch_size": identity.batch_size,
        "world_size": identity.world_size,
        "tail": identity.tail,
        "failures": state.ledger.to_json(progress.epoch),
    }


def parse(state: Mapping[str, Any]) -> StreamState:
    """Read a stream's state. Nothing in it is executed or imported.

    Raises:
        InvalidStateError: the dict is not a state, is of a map-style dataset or of a newer schema,
            or a field is missing or wrong.
    """
    state = check_schema(state, _FIELDS)
    check_numbers(state, ("seed", "epoch", "step", "earlier"), lowest=0)
    check_numbers(state, ("batch_size", "world_size", "num_shards", "num_workers"), lowest=1)
    way, rank = state["stream"], state["rank"]
    if way not in _WAYS:
        raise InvalidStateError(
            f"the state's field 'stream' is {way!r}, expected one of {_WAYS}: {DAMAGED}"
        )
    if rank is not None and not 0 <= rank < state["world_size"]:
        raise InvalidStateError(
            f"the state's field 'rank' is {rank}, expected 0 to {state['world_size'] - 1}: "
            f"{DAMAGED}"
        )
    sharding: Literal["shards", "workers"] = "shards" if way == "shards" else "workers"
    present = "num_shards" if sharding == "shards" else "num_workers"
    absent = "num_workers" if sharding == "shards" else "num_shards"
    if state[present] is None or state[absent] is not None:
        raise InvalidStateError(
            f"the state's fields {present!r} ({state[present]}) and {absent!r} ({state[absent]}) "
            f"do not fit 'stream' ({way!r}): {DAMAGED}"
        )
    total = state["num_shards"] or state["num_workers"] * state["world_size"]
    shards: dict[int, ShardState] = {}
    for entry in state["shards"]:
        shard = _shard(entry, total)
        if shard.shard in shards:
            raise InvalidStateError(
                f"the state's field 'shards' holds shard {shard.shard} more than once: {DAMAGED}"
            )
        shards[shard.shard] = shard
    identity = part_of(state, StreamIdentity, sharding=sharding)
    continued: int = state["continued"]
    if not 0 <= continued <= state["epoch"]:
        raise InvalidStateError(
            f"the state's field 'continued' is {continued}, expected 0 to {state['epoch']}, the "
            f"epoch: {DAMAGED}"
        )
    progress = part_of(
        state, StreamProgress, shards=shards, limit=None, pass_id=StreamProgress().pass_id
    )
    return StreamState(identity, state["seed"], rank, progress, ledger_of(state))


def joined(parts: Sequence[StreamState], shards_of: Callable[[int], Iterable[int]]) -> StreamState:
    """One state of the states of all ranks, given in the order of the ranks.

    A rank may have finished an epoch that others are still in: its shards have ended.

    Args:
        shards_of: the shards of a rank.

    Raises:
        RankMismatchError: a rank is further ahead than that.
    """
    last = min(parts, key=lambda part: (part.progress.epoch, -part.progress.step))
    epoch, continued = last.progress.epoch, last.progress.continued
    shards: dict[int, ShardState] = {}
    for rank, part in enumerate(parts):
        progress = part.progress
        follows = progress.continued == continued + progress.epoch - epoch
        at_start = (progress.epoch, progress.step) == (epoch + 1, 0)
        if follows and (progress.epoch == epoch or at_start):
            # Also one whose epoch has just been ended by a limit of steps.
            shards.update(progress.shards)
        elif at_start and not progress.continued:
            own = {shard: ShardState(shard) for shard in shards_of(rank)} | dict(progress.shards)
            shards.update({shard: own[shard]._replace(ended=True) for shard in own})
        elif progress.epoch == epoch:
            raise RankMismatchError(
                f"rank {rank} has begun its data in epoch {progress.opened_in}, and rank "
                f"{parts.index(last)} in epoch {last.progress.opened_in}, which steps_per_epoch= "
                "has ended since; a state has one of both: write stop_together=True, or repeat "
                "the stream by dataporter.StreamRepeat"
            )
        else:
            raise RankMismatchError(
                f"rank {rank} is at step {progress.step} of epoch {progress.epoch} of the stream, "
                f"but rank {parts.index(last)} is still in epoch {epoch}, and a state has one "
                "epoch: start each epoch on all ranks together or, if the ranks do not wait for "
                "each other, use an endless stream"
            )
    # Where epochs continue the stream, the ranks have shared the earlier ones evenly.
    earlier = last.progress.earlier * len(parts)
    return replace(last, rank=None, progress=replace(last.progress, shards=shards, earlier=earlier))


def _shard(entry: object, total: int) -> ShardState:
    sound = (
        isinstance(entry, list | tuple)
        and _FEWEST_FIELDS <= len(entry) <= len(_SHARD_TYPES)
        and all(type(value) in types for value, types in zip(entry, _SHARD_TYPES))
    )
    if sound:
        state = ShardState(*entry)  # type: ignore[misc]  # checked above
        if (
            0 <= state.shard < total
            and state.batches >= 0
            and 0 <= state.snapshot_offset <= state.offset
            and 0 <= state.digest_offset <= state.offset
        ):
            return state
    raise InvalidStateError(
        f"the state's field 'shards' holds {shown(entry)}, expected "
        f"[{', '.join(ShardState._fields)}] with 0 <= shard < {total} and "
        f"0 <= snapshot_offset, digest_offset <= offset: {DAMAGED}"
    )
