"""Arguments of a loader, checked and turned into what they mean; every mistake named at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch.utils.data import IterableDataset, IterDataPipe

from dataporter.errors import ConfigurationError
from dataporter.fetch.fetch import OnError
from dataporter.ranks.world import World
from dataporter.schedule.plan import Tail
from dataporter.state.strategies import ResumptionStrategy, strategy_named

__all__ = [
    "SETTABLE",
    "arguments_of",
    "batch_size_checked",
    "on_error_checked",
    "reject",
    "reject_misplaced",
    "strategy_for",
    "stream_workers",
    "tail_for",
    "tail_of_stream",
    "worker_kind_checked",
    "world_checked",
]
# The loader's attributes that may be set between two passes, beside its place.
SETTABLE = (
    *("num_workers", "prefetch_factor", "timeout", "worker_init_fn", "collate_fn", "in_order"),
    *("pin_memory", "pin_memory_device", "generator"),
    *("on_error", "converter", "worker_kind", "worker_restarts"),
)


def arguments_of(names: Mapping[str, Any]) -> dict[str, Any]:
    """What a constructor was called with, of all names in it; a process group only as its ranks."""
    left_out = ("self", "__class__", "process_group")
    return {name: value for name, value in names.items() if name not in left_out}


def batch_size_checked(batch_size: Any) -> int | None:
    """A positive whole number, or None for no batching."""
    if batch_size is None:
        return None
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigurationError(
            f"batch_size={batch_size!r}: expected a whole number of 1 or more, or None to get "
            "single samples"
        )
    return batch_size


def tail_for(tail: Any, *, drop_last: bool) -> Tail:
    """What becomes of an incomplete last global batch."""
    if tail is None:
        return "drop" if drop_last else "pad"
    if tail not in ("pad", "drop", "uneven"):
        raise ConfigurationError(f"tail={tail!r}: expected 'pad', 'drop' or 'uneven'")
    if drop_last and tail != "drop":
        raise ConfigurationError(
            f"tail={tail!r} and drop_last=True contradict each other: leave drop_last= out"
        )
    return tail  # type: ignore[no-any-return]  # narrowed by value


def worker_kind_checked(worker_kind: Any) -> Literal["process", "thread"]:
    """Processes or threads."""
    if worker_kind not in ("process", "thread"):
        raise ConfigurationError(f"worker_kind={worker_kind!r}: expected 'process' or 'thread'")
    return worker_kind  # type: ignore[no-any-return]  # one of the two


def stream_workers(num_workers: int, worker_kind: str) -> int:
    """How many read a stream: the training process where there are no workers."""
    if worker_kind == "thread":
        raise ConfigurationError(
            "worker_kind='thread': a stream is read one sample after another, by a process that "
            "has it to itself; use worker_kind='process'"
        )
    return max(1, num_workers)


def on_error_checked(on_error: Any) -> OnError:
    """``"raise"``, ``"skip"`` or a callable."""
    if on_error in ("raise", "skip") or callable(on_error):
        return on_error  # type: ignore[no-any-return]  # narrowed by value
    raise ConfigurationError(
        f"on_error={on_error!r}: expected 'raise', 'skip' or a function (exception, index) → sample"
    )


def strategy_for(
    strategy: str | ResumptionStrategy | None, world: World, own_sampler: object | None
) -> ResumptionStrategy:
    """The strategy that was asked for, or the one that suits (C7)."""
    if strategy is None:
        if own_sampler is not None:
            return strategy_named("simple")
        in_world = world.group is not None or world.size > 1
        return strategy_named("distributed" if in_world else "advanced")
    chosen = strategy_named(strategy)
    if own_sampler is not None and chosen.counts != "batches":
        raise ConfigurationError(
            f"strategy={chosen.name!r} needs an order to jump in, and a sampler of your own (a "
            f"{type(own_sampler).__name__}) can only be counted through: use strategy='simple', or "
            "order= and shuffle= instead of the sampler. If a framework has put the sampler there "
            "to shard the data, tell it not to (Lightning: use_distributed_sampler=False, and "
            "torch's DataLoader for predict() and overfit_batches); this loader shards by itself"
        )
    return chosen


def world_checked(world: World, seed: int | None, *, in_order: bool) -> None:
    """What a world of several ranks needs so that all of them hold one state."""
    if world.size == 1:
        return
    if seed is None and world.group is None:
        raise ConfigurationError(
            f"a world of {world.size} ranks that no process group joins needs seed=, the same on "
            "every rank: drawn by each rank for itself it would differ, and with it the order"
        )
    if not in_order:
        raise ConfigurationError(
            f"in_order=False in a world of {world.size} ranks: each rank would deliver other "
            "batches early, and the ranks share one state; leave in_order=True"
        )


def tail_of_stream(tail: Any, *, drop_last: bool) -> Tail:
    """What becomes of a shard's incomplete last batch; ranks cannot be evened out."""
    if tail == "pad":
        raise ConfigurationError(
            "tail='pad': how many samples a stream has is not known before its end, so its ranks "
            "cannot be made equal; use tail='uneven' or 'drop', and stop all ranks at the same "
            "step, or make the stream endless"
        )
    return tail_for(tail or ("drop" if drop_last else "uneven"), drop_last=drop_last)


def reject_misplaced(arguments: Mapping[str, Any], process_group: object) -> None:
    """Refuse what a loader's dataset or sampler leaves no room for; by name what it was given."""
    given = {**arguments, "process_group": process_group}

    def reject_all(reason: str, *names: str) -> None:
        reject(reason, **{name: given[name] for name in names})

    if given["sampler"] is not None or given["batch_sampler"] is not None:
        reject_all(
            "a sampler of your own decides the order and what is repeated or left out (or a "
            "framework has rebuilt the loader around a sampler of its own, as Lightning does for "
            "predict() and overfit_batches: give it torch's DataLoader there; and on several "
            "devices, for a sampler that is no DistributedSampler: pass one, or build the loader "
            "in train_dataloader())",
            *("shuffle", "order", "tail"),
        )
    if isinstance(given["dataset"], IterableDataset):
        reject_all("an IterableDataset has no indices to order", "order")
    else:
        reject_all("the dataset is read by index, in any order", "num_shards")
    if isinstance(given["dataset"], IterDataPipe):
        reject_all(
            "a DataPipe is run by torch's own loader",
            *("strategy", "world_size", "process_group", "num_shards"),
        )


def reject(reason: str, **arguments: object) -> None:
    """Refuse the arguments that were given although they have no meaning here."""
    given = {name: value for name, value in arguments.items() if value}
    if given:
        shown = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ConfigurationError(
            f"{shown}: {reason}; leave {'it' if len(given) == 1 else 'them'} out"
        )
