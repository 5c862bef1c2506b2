"""Wiring: the flow that a loader's dataset and arguments ask for, by index or as a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dataporter.checks import positive_number
from dataporter.datasets.rows import fingerprint_of
from dataporter.loader import arguments as configure
from dataporter.loader.flow import Flow
from dataporter.loader.indexed import IndexedFlow, length_if_any
from dataporter.schedule.schedule import Schedule
from dataporter.state.schema import Identity
from dataporter.streams import Stream, sharding_of

if TYPE_CHECKING:
    from dataporter.loader.loader import ResumableDataLoader

__all__ = ["flow_for"]


def flow_for(loader: ResumableDataLoader[Any], rows: Any, source: Schedule | None) -> Flow:
    """A flow by the attributes of ``loader``, once torch's class has set its own.

    Args:
        rows: the dataset as something that is indexed by row.
        source: where the requests come from; None for an ``IterableDataset``.
    """
    dataset: Any = loader.dataset
    fingerprint = fingerprint_of(dataset)
    given = loader._arguments
    if source is None:
        return Stream(
            sharding=sharding_of(dataset, given["num_shards"], loader.world_size),
            strategy=loader.strategy,
            rank=loader.rank,
            world_size=loader.world_size,
            batch_size=loader.batch_size,
            num_workers=configure.stream_workers(loader.num_workers, loader.worker_kind),
            drop_last=loader.tail == "drop",
            snapshot_every=positive_number("snapshot_every", given["snapshot_every"]),
            fingerprint=fingerprint,
        )
    order = loader.order
    own_sampler = given["batch_sampler"] if given["sampler"] is None else given["sampler"]
    identity = Identity(
        strategy=loader.strategy.name,
        order=f"sampler {type(own_sampler).__name__}" if order is None else order.name,
        order_version=0 if order is None else order.version,
        dataset_length=length_if_any(rows),
        dataset_fingerprint=fingerprint,
        batch_size=loader.batch_size,
        world_size=loader.world_size,
        tail=loader.tail,
    )
    return IndexedFlow(rows, source, loader.strategy, identity)
