"""Cutting: how a dataset that is iterated over comes in shards, by what it offers (C10)."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.streams.shard import (
    ByShards,
    ByWorkers,
    ShardedStream,
    Sharding,
    reads_ahead,
    snapshots_are_exact,
)

__all__ = ["sharding_of"]

# Every shard that is read has a file open and what that buffers; so many feed 64 ranks.
_MOST_BY_DEFAULT = 64


def sharding_of(dataset: IterableDataset[Any], num_shards: int | None, world_size: int) -> Sharding:
    """How a loader cuts a stream.

    Args:
        num_shards: into how many shards, where the dataset cuts itself; None: into as many as it
            has, up to 64.

    Raises:
        ConfigurationError: it does not cut itself, or not into so many, or there are more ranks.
    """
    if not isinstance(dataset, ShardedStream):
        if num_shards is not None:
            raise ConfigurationError(
                f"num_shards={num_shards!r}: a {type(dataset).__name__} cannot be cut into shards; "
                "give it num_shards and shard(num_shards, index), see dataporter.ShardedStream, or "
                "leave num_shards= out"
            )
        return ByWorkers(dataset, snapshots_are_exact(dataset), reads_ahead(dataset))
    available = dataset.num_shards
    if num_shards is None:
        num_shards = min(available, _MOST_BY_DEFAULT)
    if not 1 <= num_shards <= available:
        raise ConfigurationError(
            f"num_shards={num_shards}: the stream can be cut into 1 to {available} shards"
        )
    if num_shards < world_size:
        raise ConfigurationError(
            f"the stream is cut into {num_shards} shards, and {world_size} ranks are to share them "
            f"out, so that some would get nothing: it can be cut into up to {available} "
            "(num_shards=); keep the data in more files than there are ranks"
        )
    return ByShards(dataset, num_shards, snapshots_are_exact(dataset), reads_ahead(dataset))
