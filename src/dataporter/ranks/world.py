"""The world: the data-parallel rank, the number of ranks, and their process group (C7)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from dataporter.checks import SEED_LIMIT, given
from dataporter.errors import ConfigurationError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["World", "find_world", "seed_of_sampler", "world_of_sampler"]


class World(NamedTuple):
    """A rank and the number of ranks.

    Attributes:
        group: the process group that both come from, whose ranks all have a loader like this one;
            None if rank and size were given explicitly, so that no rank communicates.
    """

    rank: int
    size: int
    group: ProcessGroup | None = None


def find_world(
    rank: int | None,
    world_size: int | None,
    process_group: ProcessGroup | DeviceMesh | None = None,
    *,
    launched: bool = False,
    later: bool = False,
) -> World:
    """The given world, otherwise that of a process group, otherwise a single rank.

    Args:
        process_group: used instead of the default group; a mesh must have one dimension.
        launched: without a group, read the world from the environment that torchrun sets.
        later: a group may still be initialised, so an environment without RANK (Lightning's,
            before it initialises its group) means a single rank for now.

    Raises:
        ConfigurationError: the arguments are incomplete, wrong, or contradict each other.
    """
    if (rank is None) != (world_size is None):
        raise ConfigurationError(f"rank={rank!r}, world_size={world_size!r}: pass both or neither")
    if rank is not None and world_size is not None:
        if process_group is not None:
            raise ConfigurationError(
                f"rank={rank!r}, world_size={world_size!r} and process_group= contradict each "
                "other: a process group knows its ranks; leave rank= and world_size= out"
            )
        return _explicit("rank", rank, "world_size", world_size)
    if process_group is not None:
        return _world_of(_group_of(process_group))
    if dist.is_available() and dist.is_initialized():
        return _world_of(dist.group.WORLD)
    return _torchruns_world(later=later) if launched else World(0, 1)


def _explicit(rank_name: str, rank: Any, size_name: str, size: Any) -> World:
    for name, value in ((rank_name, rank), (size_name, size)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{given(name, value)}: expected a whole number")
    if size < 1:
        raise ConfigurationError(f"{size_name}={size}: expected 1 or more")
    if not 0 <= rank < size:
        raise ConfigurationError(
            f"{rank_name}={rank} is outside the world of {size} ranks: expected 0..{size - 1}"
        )
    return World(rank, size)


def _group_of(process_group: Any) -> Any:
    if hasattr(process_group, "get_group") and hasattr(process_group, "mesh_dim_names"):
        if process_group.ndim != 1:
            raise ConfigurationError(
                f"process_group= is a DeviceMesh of {process_group.ndim} dimensions "
                f"{process_group.mesh_dim_names}, but the ranks of one dimension divide the data: "
                'pass the data-parallel dimension, such as mesh["dp"]. If several dimensions are '
                "data-parallel, pass one group of their ranks (torch.distributed.new_group), or "
                "flatten them into one dimension of the mesh"
            )
        if process_group.get_coordinate() is None:
            raise ConfigurationError(
                "process_group= is a DeviceMesh that this process is not part of: build the loader "
                "only on the mesh's ranks"
            )
        return process_group.get_group()
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise ConfigurationError(
            f"{given('process_group', process_group)}: expected a torch.distributed ProcessGroup "
            "that this process is a member of, or a DeviceMesh of one dimension"
        )
    return process_group


def _world_of(group: Any) -> World:
    return World(dist.get_rank(group), dist.get_world_size(group), group)


def _torchruns_world(*, later: bool) -> World:
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and (size is None or later):
        return World(0, 1)
    if rank is None or size is None or not (rank.isdecimal() and size.isdecimal()):
        raise ConfigurationError(
            f"strategy='distributed' reads its world from torchrun's environment, but found RANK="
            f"{rank!r} and WORLD_SIZE={size!r}: expected two whole numbers; start the program with "
            "torchrun, or pass rank= and world_size="
        )
    return _explicit("RANK", int(rank), "WORLD_SIZE", int(size))


def world_of_sampler(sampler: Any, found: World) -> World:
    """The world that a sampler such as ``DistributedSampler`` was built for, or ``found``."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        size, rank = getattr(part, "num_replicas", None), getattr(part, "rank", None)
        if isinstance(size, int) and isinstance(rank, int):
            return found._replace(rank=rank, size=size)
    return found


def seed_of_sampler(sampler: Any) -> int | None:
    """The seed of a ``DistributedSampler``, which must be the same on every rank."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        seed = getattr(part, "seed", None)
        if isinstance(getattr(part, "num_replicas", None), int) and isinstance(seed, int):
            return seed % SEED_LIMIT
    return None
