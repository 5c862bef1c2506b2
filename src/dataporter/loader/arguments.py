"""Arguments of a loader, checked and turned into what they mean; every mistake named at once."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, IterDataPipe

from dataporter.datasets.columns import MappedColumns
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.fetch.fetch import OnError
from dataporter.orders import (
    BlockShuffledOrder,
    Order,
    SequentialOrder,
    ShuffledOrder,
    TorchOrder,
)
from dataporter.ranks.world import World
from dataporter.schedule.plan import Tail
from dataporter.state.strategies import ResumptionStrategy, strategy_named

__all__ = [
    "SETTABLE",
    "arguments_of",
    "batch_size_checked",
    "count_checked",
    "fingerprint_of",
    "generator_seed",
    "length_of",
    "on_error_checked",
    "order_for",
    "place_checked",
    "reject",
    "reject_misplaced",
    "rows_of",
    "seed_checked",
    "strategy_for",
    "stream_workers",
    "tail_for",
    "tail_of_stream",
    "worker_kind_checked",
    "world_checked",
]

_ORDERS: dict[str, Order] = {
    "shuffled": ShuffledOrder(),
    "blocks": BlockShuffledOrder(),
    "sequential": SequentialOrder(),
    "torch": TorchOrder(),
}
# torch draws its seeds as non-negative int64, and JSON readers elsewhere stop there as well.
_SEED_LIMIT = 1 << 63
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


def order_for(order: str | Order | None, shuffle: bool | None) -> Order:
    """The order that ``order=`` and ``shuffle=`` ask for."""
    if order is None:
        return _ORDERS["shuffled" if shuffle else "sequential"]
    if isinstance(order, str):
        if order not in _ORDERS:
            raise ConfigurationError(
                f"order={order!r}: expected {', '.join(map(repr, _ORDERS))} or an Order object"
            )
        if shuffle is not None and bool(shuffle) != (order != "sequential"):
            raise ConfigurationError(
                f"order={order!r} and shuffle={shuffle} contradict each other: leave shuffle= out"
            )
        return _ORDERS[order]
    if isinstance(order, type) or not isinstance(order, Order):
        raise ConfigurationError(
            f"order={order!r}: an order object needs name, version, epoch_length() and indices(); "
            "see dataporter.Order"
        )
    return order


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


def seed_checked(seed: Any) -> int | None:
    """A seed within 0..2**63-1, or None."""
    if seed is None:
        return None
    return _whole("seed", seed, _SEED_LIMIT)


def place_checked(name: str, value: Any) -> int:
    """An epoch or step: a whole number from 0."""
    return _whole(name, value, _SEED_LIMIT)


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


def count_checked(name: str, value: Any) -> int:
    """A whole number from 1."""
    number = _whole(name, value, _SEED_LIMIT)
    if number < 1:
        raise ConfigurationError(f"{name}={value!r}: expected 1 or more")
    return number


def _whole(name: str, value: Any, limit: int) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not 0 <= number < limit:
        raise ConfigurationError(f"{name}={value!r}: expected a whole number from 0 to {limit - 1}")
    return number


def generator_seed(order: Order | None, generator: torch.Generator | None) -> int | None:
    """The seed by which ``order="torch"`` follows a generator; None where one is drawn instead."""
    if not isinstance(order, TorchOrder) or generator is None:
        return None
    seed = generator.initial_seed()
    fresh = torch.Generator()
    fresh.manual_seed(seed)
    if not torch.equal(fresh.get_state(), generator.get_state()):
        raise ConfigurationError(
            f"order='torch' follows a generator from its seed on, but this one (seed {seed}) has "
            "been drawn from: call generator.manual_seed() before, or pass seed="
        )
    return seed % _SEED_LIMIT


def on_error_checked(on_error: Any) -> OnError:
    """``"raise"``, ``"skip"`` or a callable."""
    if on_error in ("raise", "skip") or callable(on_error):
        return on_error  # type: ignore[no-any-return]  # narrowed by value
    raise ConfigurationError(
        f"on_error={on_error!r}: expected 'raise', 'skip' or a function (exception, index) → sample"
    )


def rows_of(dataset: Any) -> Any:
    """The dataset as something that is indexed by row: a dict of arrays becomes its rows."""
    if MappedColumns.fits(dataset):
        return MappedColumns(dataset)
    if type(dataset) is dict and MappedColumns.nearly_fits(dataset):
        lengths = {name: len(column) for name, column in dataset.items()}
        raise ConfigurationError(
            f"the arrays of a dict dataset must have one length, and have {lengths}"
        )
    return dataset


def length_of(rows: Any) -> int:
    """The number of samples.

    Raises:
        UnsupportedDatasetError: the dataset has no length, or is a dict without rows.
    """
    if type(rows) is dict and rows and not any(isinstance(key, int) for key in rows):
        kinds = {name: type(column).__name__ for name, column in rows.items()}
        raise UnsupportedDatasetError(
            "a dict dataset is read by row where its values are tensors or NumPy arrays of one "
            f"length, and its names are strings; these are {kinds}: make them arrays"
        )
    try:
        return len(rows)
    except (TypeError, NotImplementedError) as error:
        kind = type(rows).__name__
        if hasattr(rows, "__iter__") and not hasattr(rows, "__getitem__"):
            raise UnsupportedDatasetError(
                f"dataset of type {kind} can only be iterated over: make its class a subclass of "
                f"{IterableDataset.__module__}.IterableDataset, or give it __len__ and __getitem__"
            ) from error
        raise UnsupportedDatasetError(
            f"dataset of type {kind} has no length ({error}): give it __len__ and __getitem__, "
            "pass a sampler that says which indices to read, or make it an IterableDataset"
        ) from error


def fingerprint_of(dataset: Any) -> str | None:
    """The dataset's ``fingerprint``, or Hugging Face's ``_fingerprint``, if it has one."""
    for name in ("fingerprint", "_fingerprint"):
        fingerprint = getattr(dataset, name, None)
        if isinstance(fingerprint, str):
            return fingerprint
    return None


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
