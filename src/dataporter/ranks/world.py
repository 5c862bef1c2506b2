"""The world: which data-parallel rank this is, of how many, and whom it can ask (C7)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch.distributed as dist

from dataporter.errors import ConfigurationError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["World", "find_world", "seed_of_sampler", "world_of_sampler"]


class World(NamedTuple):
    """A rank and the number of ranks.

    Attributes:
        group: the process group that both come from, whose ranks all have a loader like this one;
            None where rank and size were said, and nobody can be asked.
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
    """The world that was given, else that of a process group, else one rank alone.

    Args:
        process_group: in place of the default group; a mesh must have one dimension.
        launched: where no group is up, read the world from the environment that torchrun sets.
        later: a group may still come up, so that an environment without RANK (Lightning's, before
            it brings its group up) is one rank alone for now.

    Raises:
        ConfigurationError: the arguments are incomplete, wrong, or contradict each other.
    """
    if (rank is None) != (world_size is None):
        raise ConfigurationError(
            f"rank={rank!r}, world_size={world_size!r}: give both or none of them"
        )
    if rank is not None and world_size is not None:
        if process_group is not None:
            raise ConfigurationError(
                f"rank={rank!r}, world_size={world_size!r} and process_group= contradict each "
                "other: a process group knows its ranks; leave rank= and world_size= out"
            )
        return _said("rank", rank, "world_size", world_size)
    if process_group is not None:
        return _world_of(_group_of(process_group))
    if dist.is_available() and dist.is_initialized():
        return _world_of(dist.group.WORLD)
    return _torchruns_world(later=later) if launched else World(0, 1)


def _said(rank_name: str, rank: Any, size_name: str, size: Any) -> World:
    for name, value in ((rank_name, rank), (size_name, size)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigurationError(f"{name}={value!r}: expected a whole number")
    if size < 1:
        raise ConfigurationError(f"{size_name}={size}: expected 1 or more")
    if not 0 <= rank < size:
        raise ConfigurationError(
            f"{rank_name}={rank} lies outside the world of {size}: expected 0..{size - 1}"
        )
    return World(rank, size)


def _group_of(process_group: Any) -> Any:
    if hasattr(process_group, "get_group") and hasattr(process_group, "mesh_dim_names"):
        if process_group.ndim != 1:
            raise ConfigurationError(
                f"process_group= is a DeviceMesh of {process_group.ndim} dimensions "
                f"{process_group.mesh_dim_names}, and the ranks of one share the data out: pass "
                'the data-parallel one, as mesh["dp"]; where several dimensions are data-parallel, '
                "pass one group of their ranks (torch.distributed.new_group), or make them one "
                "dimension of the mesh"
            )
        if process_group.get_coordinate() is None:
            raise ConfigurationError(
                "process_group= is a DeviceMesh that this process is not part of: build the loader "
                "on its ranks alone"
            )
        return process_group.get_group()
    if not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise ConfigurationError(
            f"process_group={process_group!r}: expected a torch.distributed ProcessGroup that this "
            "process is a member of, or a DeviceMesh of one dimension"
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
            f"strategy='distributed' reads its world from torchrun's environment, which has RANK="
            f"{rank!r} and WORLD_SIZE={size!r}: expected two whole numbers; start the program with "
            "torchrun, or pass rank= and world_size="
        )
    return _said("RANK", int(rank), "WORLD_SIZE", int(size))


def world_of_sampler(sampler: Any, found: World) -> World:
    """The world that a sampler such as ``DistributedSampler`` was built for, else ``found``."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        size, rank = getattr(part, "num_replicas", None), getattr(part, "rank", None)
        if isinstance(size, int) and isinstance(rank, int):
            return found._replace(rank=rank, size=size)
    return found


def seed_of_sampler(sampler: Any) -> int | None:
    """The seed of a ``DistributedSampler``, which is the same on every rank by its own contract."""
    for part in (sampler, getattr(sampler, "sampler", None)):
        seed = getattr(part, "seed", None)
        if isinstance(getattr(part, "num_replicas", None), int) and isinstance(seed, int):
            return seed % (1 << 63)
    return None
