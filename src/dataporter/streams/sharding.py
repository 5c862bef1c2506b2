"""Sharding: how an iterable dataset is split into shards, by what it offers (C10)."""

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

# Every shard being read holds an open file and its buffer; this many shards feed 64 ranks.
_MOST_BY_DEFAULT = 64


def sharding_of(dataset: IterableDataset[Any], num_shards: int | None, world_size: int) -> Sharding:
    """The sharding of a stream.

    Args:
        num_shards: number of shards, for a :class:`ShardedStream`; None: all that it has, up to 64.

    Raises:
        ConfigurationError: the stream cannot be split, has fewer shards, or has fewer than there
            are ranks.
    """
    if not isinstance(dataset, ShardedStream):
        if num_shards is not None:
            raise ConfigurationError(
                f"num_shards={num_shards!r}: a {type(dataset).__name__} cannot be split into "
                "shards; give it num_shards and shard(num_shards, index), see "
                "dataporter.ShardedStream, or leave num_shards= out"
            )
        return ByWorkers(dataset, snapshots_are_exact(dataset), reads_ahead(dataset))
    available = dataset.num_shards
    if num_shards is None:
        num_shards = min(available, _MOST_BY_DEFAULT)
    if not 1 <= num_shards <= available:
        raise ConfigurationError(
            f"num_shards={num_shards}: the stream can be split into 1 to {available} shards"
        )
    if num_shards < world_size:
        raise ConfigurationError(
            f"the stream has {num_shards} shards for {world_size} ranks, so some ranks would have "
            f"none: it can be split into up to {available} (num_shards=); if that is too few, "
            "store the data in more files"
        )
    return ByShards(dataset, num_shards, snapshots_are_exact(dataset), reads_ahead(dataset))
