"""Facts of map-style datasets: what their states say, and what comes next, without the dataset."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from dataporter.errors import InvalidStateError
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
from dataporter.state.strategies import ResumptionStrategy, strategy_named
from dataporter.tools.inspection.changes import sorted_out, strategy_of
from dataporter.tools.inspection.report import Next, StateReport

__all__ = ["index_facts"]

# torch's order can only be run forward: so many samples take about two seconds, and 8 bytes each.
_TORCH_SAMPLES = 30_000_000
# Positions of a batch are listed; one of more samples than this is no batch that anybody loads.
_LARGEST_BATCH = 1 << 22
_BLOCKS = re.compile(r"blocks\(block=(\d{1,18}), buffer=(\d{1,18})\)")


def index_facts(
    where: str, raw: Mapping[str, Any], saved: State, ranks: int, indices: int
) -> StateReport:
    """The report of one state of a map-style loader."""
    identity, progress = saved.identity, saved.progress
    if identity.tail not in get_args(Tail):
        raise InvalidStateError(
            f"the state's field 'tail' is {identity.tail!r}, expected one of {get_args(Tail)}"
        )
    strategy, notes = strategy_of(identity.strategy)
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
        following = _nextindex_facts(
            saved, order, source.plan, min(ranks, plan.world_size), indices
        )
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


def _nextindex_facts(
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
    return sorted_out(free, fixed, strategy, identity.batch_size, identity.world_size)


# Checks the numbers of a state as every strategy that counts samples does.
_COUNTING = strategy_named("advanced")
_NOT_COMPUTED = "no next batch: the epochs of this state have none"
