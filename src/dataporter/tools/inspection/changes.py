"""Changes: what may change between a save and a load, and what must stay, in words (C6)."""

from __future__ import annotations

from typing import NamedTuple

from dataporter.errors import ConfigurationError
from dataporter.orders.by_name import sampler_named
from dataporter.state.schema import Identity
from dataporter.state.strategies import ResumptionStrategy, strategy_named
from dataporter.streams.state import StreamState

__all__ = ["Changes", "index_changes", "mixture_changes", "strategy_of", "stream_changes"]


class Changes(NamedTuple):
    """What may change between a save and a load, and what must stay."""

    may_change: tuple[str, ...]
    must_stay: tuple[str, ...]


def strategy_of(name: str) -> tuple[ResumptionStrategy | None, list[str]]:
    """The strategy of this name; None and a note for a custom one."""
    try:
        return strategy_named(name), []
    except ConfigurationError:
        return None, [f"strategy {name!r} is a custom one: only it knows what else may change"]


def index_changes(identity: Identity, strategy: ResumptionStrategy | None) -> Changes:
    """The changes between two loaders of map-style datasets."""
    known = []
    if identity.dataset_length is not None:
        known.append(f"{identity.dataset_length:,} samples")
    if identity.dataset_fingerprint is not None:
        known.append(f"fingerprint {identity.dataset_fingerprint}")
    dataset = f"the dataset ({', '.join(known)})" if known else "the dataset"
    order = f"order {identity.order!r}, version {identity.order_version}"
    if sampler_named(identity.order) is not None:
        order = f"the {identity.order} and its indices"
    return _by_strategy(
        ["the number of workers, prefetching and pinning"],
        [dataset, order, f"tail {identity.tail!r}"],
        strategy,
        identity.batch_size,
        identity.world_size,
    )


def mixture_changes(identity: Identity, strategy: ResumptionStrategy | None) -> Changes:
    """The changes between two loaders of mixtures."""
    return _by_strategy(
        [
            "the number of workers, prefetching and pinning",
            "the mixture's weights, max_passes and stopping",
            "its sources (added, left out or grown)",
        ],
        [
            "the name of each source, and its content if its length stays",
            f"order {identity.order!r}, version {identity.order_version}",
            f"tail {identity.tail!r}",
        ],
        strategy,
        identity.batch_size,
        identity.world_size,
    )


def stream_changes(saved: StreamState, strategy: ResumptionStrategy | None) -> Changes:
    """The changes between two loaders of streams."""
    identity = saved.identity
    data = "the data"
    if identity.dataset_fingerprint is not None:
        data += f" (fingerprint {identity.dataset_fingerprint})"
    must_stay = [data, f"tail {identity.tail!r}"]
    if identity.sharding == "shards":
        may_change = ["the number of workers, prefetching and pinning"]
        must_stay.append(f"num_shards ({identity.num_shards})")
    else:
        may_change = ["prefetching and pinning"]
        must_stay.append(f"the number of workers ({identity.num_workers})")
    changes = _by_strategy(
        may_change,
        must_stay,
        strategy,
        identity.batch_size,
        identity.world_size,
        is_elastic=saved.rank is None and identity.sharding == "shards",
    )
    if saved.rank is None:
        return changes
    return changes._replace(must_stay=(*changes.must_stay, f"the rank ({saved.rank})"))


def _by_strategy(
    may_change: list[str],
    must_stay: list[str],
    strategy: ResumptionStrategy | None,
    batch_size: int | None,
    world_size: int,
    *,
    is_elastic: bool = True,
) -> Changes:
    """Add the batch size and the number of ranks where the strategy says they belong."""
    fields = frozenset[str]()
    if strategy is not None:
        fields = strategy.may_change.union(
            *(strategy_named(kin).may_change for kin in strategy.kin)
        )
    batching = "no batching" if batch_size is None else f"the batch size ({batch_size:,})"
    (may_change if "batch_size" in fields else must_stay).append(batching)
    world = f"the number of ranks ({world_size:,})"
    (may_change if "world_size" in fields and is_elastic else must_stay).append(world)
    return Changes(tuple(may_change), (*must_stay, "the seed, if the loader is given one"))
