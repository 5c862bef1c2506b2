"""Facts: what a loader's state says, and what comes next, computed without the dataset (C5-C9)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import numpy as np

from dataporter.errors import ConfigurationError, InvalidStateError
from dataporter.orders import (
    BlockShuffledOrder,
    Order,
    SequentialOrder,
    ShuffledOrder,
    TorchOrder,
)
from dataporter.schedule.plan import Plan, Tail
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.resume import place_of
from dataporter.state.schema import Identity, State
from dataporter.state.schema import parse as parse_indexed
from dataporter.state.strategies import ResumptionStrategy, strategy_named
from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardState
from dataporter.streams.state import StreamIdentity, StreamState
from dataporter.streams.state import parse as parse_stream
from dataporter.tools.inspection.report import Next, StateReport
from dataporter.tools.target import in_one_line

__all__ = ["facts_of"]

# torch's order can only be run forward: so many samples take about two seconds, and 8 bytes each.
_TORCH_SAMPLES = 30_000_000
# Positions of a batch are listed; one of more samples than this is no batch that anybody loads.
_LARGEST_BATCH = 1 << 22
_BLOCKS = re.compile(r"blocks\(block=(\d{1,18}), buffer=(\d{1,18})\)")


def facts_of(where: str, state: Mapping[str, Any], *, ranks: int, indices: int) -> StateReport:
    """What there is to say of a state.

    Args:
        where: it lies.
        ranks: of how many ranks the next batch is told.
        indices: of how many of its samples.
    """
    try:
        if "stream" in state:
            return _of_stream(where, state, parse_stream(state), ranks)
        return _of_index(where, state, parse_indexed(state), ranks, indices)
    except InvalidStateError as error:
        return StateReport(where, dict(state), fault=in_one_line(error))


# ---- datasets with an index


def _of_index(
    where: str, raw: Mapping[str, Any], saved: State, ranks: int, indices: int
) -> StateReport:
    identity, progress = saved.identity, saved.progress
    if identity.tail not in get_args(Tail):
        raise InvalidStateError(
            f"the state's field 'tail' is {identity.tail!r}, expected one of {get_args(Tail)}"
        )
    strategy, notes = _strategy(identity.strategy)
    order, unknown = _order(identity)
    may_change, must_stay = _words_of_index(identity, strategy)
    length: int | None = None
    following: tuple[Next, ...] = ()
    if order is None or identity.dataset_length is None:
        notes.append(unknown)
    else:
        source = PlannedSchedule.of(
            order,
            identity.dataset_length,
            identity.batch_size or 1,
            0,
            identity.world_size,
            identity.tail,  # type: ignore[arg-type]  # checked above
        )
        place_of(saved, identity, strategy or _COUNTING, source, None, "error")
        plan = source.plan.resumed(progress.step, progress.position, progress.done)
        dropped = plan.left % plan.global_batch_size if plan.tail == "drop" else 0
        length = plan.length - dropped
        following = _next_of_index(saved, order, source.plan, min(ranks, plan.world_size), indices)
        if not following:
            notes.append(unknown or _NOT_COMPUTED)
        elif following[0].epoch != progress.epoch:
            notes.append(
                f"epoch {progress.epoch} is delivered to its end and not yet finished: the pass "
                "after a resume has no batch, and the one after it is the next epoch"
            )
    if progress.early:
        count = sum(stretch.stop - stretch.start for stretch in progress.early)
        notes.append(f"{count:,} samples came ahead of their turn (in_order=False)")
    return StateReport(
        where,
        dict(raw),
        reads="index",
        position=progress.delivered,
        length=length,
        may_change=may_change,
        must_stay=must_stay,
        next=following,
        notes=tuple(notes),
    )


def _next_of_index(
    saved: State, order: Order, whole: Plan, ranks: int, indices: int
) -> tuple[Next, ...]:
    """The next batch of the first ranks, in this epoch or, where none is left, in the next."""
    progress, length = saved.progress, saved.identity.dataset_length
    assert length is not None
    if whole.length == 0 or whole.batch_size > _LARGEST_BATCH:
        return ()
    plan = whole.resumed(progress.step, progress.position, progress.done)
    if plan.end(rank=0) <= progress.step:
        progress, plan = Progress(progress.epoch + 1), whole
        if plan.end(rank=0) == 0:
            return ()
    if isinstance(order, TorchOrder) and (progress.epoch + 1) * length > _TORCH_SAMPLES:
        return ()
    following = []
    for rank in range(ranks):
        positions = np.empty(0, dtype=np.int64)
        if progress.step < plan.end(rank):
            positions = plan.positions(progress.step, rank)
        shown = order.indices(
            positions[:indices], seed=saved.seed, epoch=progress.epoch, dataset_length=length
        )
        following.append(
            Next(rank, progress.epoch, progress.step, len(positions), tuple(shown.tolist()))
        )
    return tuple(following)


def _order(identity: Identity) -> tuple[Order | None, str]:
    """The order of this name, if it is one of ours, and why nothing can be known of it if not."""
    name = identity.order
    if name.startswith("sampler "):
        return None, (
            f"the next indices come from a sampler of your own ({name.removeprefix('sampler ')}), "
            "and only the program that has it can tell them, and how long an epoch is"
        )
    known: dict[str, Order] = {
        order.name: order for order in (ShuffledOrder(), SequentialOrder(), TorchOrder())
    }
    order = known.get(name)
    if (blocks := _BLOCKS.fullmatch(name)) and all(map(int, blocks.groups())):
        order = BlockShuffledOrder(*map(int, blocks.groups()))
    if order is None:
        return None, (
            f"{name!r} is an order of your own, or of a later release: only the program that has "
            "it can tell the next indices, and how long an epoch is"
        )
    if order.version != identity.order_version:
        return None, (
            f"the state has version {identity.order_version} of order {name!r}, and this release "
            f"has version {order.version}: the next indices are known to the release that saved it"
        )
    if isinstance(order, TorchOrder):
        return order, (
            "the next indices are not shown: order 'torch' can only be run forward from epoch 0, "
            "which takes long for so many samples; loader.samples_at(epoch, step) does it"
        )
    return order, ""


def _words_of_index(
    identity: Identity, strategy: ResumptionStrategy | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    fingerprint = identity.dataset_fingerprint
    length = identity.dataset_length
    dataset = "the dataset" if length is None else f"the dataset ({length:,} samples)"
    fixed = [
        dataset
        if fingerprint is None
        else f"{dataset[:-1]}, fingerprint {fingerprint})"
        if length is not None
        else f"{dataset} (fingerprint {fingerprint})",
        f"order {identity.order!r}, version {identity.order_version}"
        if not identity.order.startswith("sampler ")
        else f"the {identity.order} and what it yields",
        f"tail {identity.tail!r}",
    ]
    free = ["the number of workers, prefetching and pinning"]
    return _sorted_out(free, fixed, strategy, identity.batch_size, identity.world_size)


# ---- streams


def _of_stream(where: str, raw: Mapping[str, Any], saved: StreamState, ranks: int) -> StateReport:
    identity, progress = saved.identity, saved.progress
    strategy, notes = _strategy(identity.strategy)
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
    words = _sorted_out(
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


# ---- both


def _strategy(name: str) -> tuple[ResumptionStrategy | None, list[str]]:
    try:
        return strategy_named(name), []
    except ConfigurationError:
        return None, [f"strategy {name!r} is one of your own: what else may change only it can say"]


def _sorted_out(
    free: list[str],
    fixed: list[str],
    strategy: ResumptionStrategy | None,
    batch_size: int | None,
    world_size: int,
    *,
    is_elastic: bool = True,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What may change, and what must stay, by the strategy."""
    may_change = frozenset[str]()
    if strategy is not None:
        may_change = strategy.may_change.union(
            *(strategy_named(kin).may_change for kin in strategy.kin)
        )
    size = "no batching" if batch_size is None else f"the batch size ({batch_size:,})"
    (free if "batch_size" in may_change else fixed).append(size)
    world = f"the number of ranks ({world_size:,})"
    (free if "world_size" in may_change and is_elastic else fixed).append(world)
    return tuple(free), (*fixed, "a seed, if one is given")


# Checks the numbers of a state as every strategy that counts samples does.
_COUNTING = strategy_named("advanced")
_NOT_COMPUTED = "no next batch: the epochs of this state have none"
