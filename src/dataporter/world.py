"""The world: which data-parallel rank this is, and of how many."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.distributed as dist

from dataporter.errors import ConfigurationError

__all__ = ["World", "find_world", "seed_of_sampler", "world_of_sampler"]


class World(NamedTuple):
    """A rank and the number of ranks."""

    rank: int
    size: int


def find_world(rank: int | None, world_size: int | None) -> World:
    """The world that was given, else that of the default process group, else one rank alone.

    Raises:
        ConfigurationError: only one of the two was given, or they contradict each other.
    """
    if (rank is None) != (world_size is None):
        raise ConfigurationError(
            f"rank={rank!r}, world_size={world_size!r}: give both or none of them"
        )
    if rank is None or world_size is None:
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World(0, 1)
    for name, value in (("rank", rank), ("world_size", world_size)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: expected a whole number")
    if world_size < 1:
        raise ConfigurationError(f"world_size={world_size}: expected 1 or more")
    if not 0 <= rank < world_size:
        raise ConfigurationError(
            f"rank={rank} lies outside the world of {world_size}: expected 0..{world_size - 1}"
        )
    return World(rank, world_size)


def world_of_sampler(sampler: Any, found: World) -> World:
    """The world that a sampler such as ``DistributedSampler`` was built for, else ``found``."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        size, rank = getattr(part, "num_replicas", None), getattr(part, "rank", None)
        if isinstance(size, int) and isinstance(rank, int):
            return World(rank, size)
    return found


def seed_of_sampler(sampler: Any) -> int | None:
    """The seed of a ``DistributedSampler``, which is the same on every rank by its own contract."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        seed = getattr(part, "seed", None)
        if isinstance(getattr(part, "num_replicas", None), int) and isinstance(seed, int):
            return seed % (1 << 63)
    return None
