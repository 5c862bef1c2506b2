"""Facts of map-style datasets: what a state says and which batch is next, without the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from dataporter.errors import InvalidStateError
from dataporter.orders import Order, TorchOrder
from dataporter.orders.by_name import order_named, order_of_state, sampler_named
from dataporter.orders.mixture.order import inner_name, version_with
from dataporter.orders.weighted.order import is_weighted
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.plan import Tail
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.mixture_record import check_begin, read
from dataporter.state.resume import resume_at
from dataporter.state.schema import Identity, State
from dataporter.state.strategies import strategy_named
from dataporter.tools.inspection.changes import index_changes, mixture_changes, strategy_of
from dataporter.tools.inspection.mixture_facts import Mixed, mixed
from dataporter.tools.inspection.report import Next, StateReport

__all__ = ["index_facts"]

# Order "torch" is computed forward from epoch 0: so many samples take two seconds, 8 bytes each.
_TORCH_SAMPLES = 30_000_000
# The indices of a batch are computed to show the first few: so many take a fifth of a second.
_LARGEST_BATCH = 1 << 20


def index_facts(
    where: str, raw: Mapping[str, Any], saved: State, *, ranks: int, indices: int
) -> StateReport:
    """The report of a state of a map-style dataset.

    Args:
        where: the path of the state in the checkpoint.
        raw: the state as it was found.
        saved: the state, parsed.
        ranks: for how many ranks to show the next batch.
        indices: how many of its samples to show.

    Raises:
        InvalidStateError: the state's numbers contradict each other.
    """
    identity, early = saved.identity, saved.progress.early
    if identity.tail not in get_args(Tail):
        raise InvalidStateError(
            f"the state's field 'tail' is {identity.tail!r}, expected one of {get_args(Tail)}"
        )
    strategy, notes = strategy_of(identity.strategy)
    length: int | None = None
    batches: tuple[Next, ...] = ()
    record = None if saved.mixture is None else read(saved.mixture)
    changes = (index_changes if record is None else mixture_changes)(identity, strategy)
    order, unknown = _order(identity)
    mixture, report = None, None
    schedule: PlannedSchedule | MixedSchedule | None = None
    if order is not None and record is not None:
        mixture = mixed(record, order, identity)
        schedule = mixture.schedule
        saved = replace(saved, progress=saved.progress._replace(mixture=record.phases))
        check_begin(record, saved.progress.epoch, saved.progress.position)
        report = mixture.report(saved.progress, saved.seed)
    elif order is not None:
        schedule, unknown = _schedule(order, identity)
    if schedule is None:
        notes.append(unknown)
    else:
        _, progress = resume_at(saved, identity, strategy or _COUNTING, schedule, None, "error")
        length = schedule.progress_after(progress, schedule.steps(progress)).delivered
        batches, hidden = _next_batches(schedule, mixture, progress, saved.seed, ranks, indices)
        if hidden:
            notes.append(hidden)
        elif batches[0].epoch != progress.epoch:
            notes.append(
                f"epoch {progress.epoch} is delivered to its end, but its pass was not over: after "
                "a resume the first pass has no batch, and the second is the next epoch"
            )
    if early:
        count = sum(stretch.stop - stretch.start for stretch in early)
        notes.append(f"{count:,} samples past the position are delivered too (in_order=False)")
    return StateReport(
        where,
        dict(raw),
        reads="index",
        position=saved.progress.delivered,
        length=length,
        may_change=changes.may_change,
        must_stay=changes.must_stay,
        failed=saved.ledger.total,
        failures=saved.ledger.records,
        next=batches,
        mixture=report,
        notes=tuple(notes),
    )


def _next_batches(
    schedule: PlannedSchedule | MixedSchedule,
    mixture: Mixed | None,
    progress: Progress,
    seed: int,
    ranks: int,
    indices: int,
) -> tuple[tuple[Next, ...], str]:
    """The next batch of each rank, in this epoch or else the next one; or why none is shown."""
    if not schedule.steps(progress):
        progress = progress.start_of(progress.epoch + 1)
        if not schedule.steps(progress):
            return (), "there is no next batch: an epoch of this state has none"
    planned = schedule.of_epoch(progress)
    if planned.plan.batch_size > _LARGEST_BATCH:
        return (), f"the next indices are not shown: a batch has {planned.plan.batch_size:,}"
    torch_samples = 0
    if mixture is not None:
        torch_samples = mixture.torch_samples(progress, seed)
    elif isinstance(planned.order, TorchOrder):
        torch_samples = (progress.epoch + 1) * planned.dataset_length
    if torch_samples > _TORCH_SAMPLES:
        return (), (
            "the next indices are not shown: order 'torch' can only be run forward from epoch 0, "
            "which takes long for so many samples; loader.samples_at(epoch, step) computes them"
        )
    batches = []
    for rank in range(min(ranks, planned.plan.world_size)):
        of_rank = replace(planned, rank=rank)
        samples: list[int] = []
        if of_rank.steps(progress):  # with tail="uneven", a rank may have one step fewer
            samples = of_rank.samples_at(progress, progress.step, seed).tolist()
        first = samples[:indices]
        shown = tuple(first) if mixture is None else mixture.named(first)
        batches.append(Next(rank, progress.epoch, progress.step, len(samples), shown))
    return tuple(batches), ""


def _schedule(order: Order, identity: Identity) -> tuple[PlannedSchedule | None, str]:
    """The schedule of the first rank; None where only the saving program knows it, and why."""
    if identity.dataset_length is None:
        return None, "the state does not say how long the dataset is"
    return PlannedSchedule.for_rank(
        order,
        identity.dataset_length,
        identity.batch_size or 1,
        0,
        identity.world_size,
        identity.tail,  # type: ignore[arg-type]  # checked by the caller
    ), ""


def _order(identity: Identity) -> tuple[Order | None, str]:
    """The order that a state names, of a mixture that of its sources.

    None where this release does not have it, and why.
    """
    name, inner = identity.order, inner_name(identity.order)
    if inner is not None:
        of_sources = order_named(inner)
        if of_sources is not None and identity.order_version == version_with(of_sources):
            return of_sources, ""
    if (sampler := sampler_named(name)) is not None:
        return None, (
            f"the indices come from a custom sampler ({sampler}): only the program that has it "
            "knows the next ones, and the length of an epoch"
        )
    if (order := order_of_state(name, identity.order_version)) is not None:
        return order, ""
    if (present := order_named(name)) is not None:
        return None, (
            f"the state is of version {identity.order_version} of order {name!r}, and this release "
            f"has version {present.version}: the release that saved it knows the next indices"
        )
    if is_weighted(name):
        return None, (
            f"order {name!r}: only the program that has the weights knows the next indices"
        )
    return None, (
        f"order {name!r} is a custom one, or of a later release: only the program that has it "
        "knows the next indices, and the length of an epoch"
    )


# Checks a state's numbers as every strategy that counts samples does.
_COUNTING = strategy_named("advanced")
