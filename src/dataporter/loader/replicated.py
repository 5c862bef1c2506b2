"""Replicated samplers: custom ones that give all ranks of a world the same batches (C12)."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.data import SequentialSampler, SubsetRandomSampler

from dataporter.errors import ConfigurationError, warn
from dataporter.loader.instead import kind_of, line_for
from dataporter.loader.setup import Setup
from dataporter.ranks.world import find_world
from dataporter.schedule.sampled import SampledSchedule
from dataporter.schedule.sampler_parts import generators_of, parts_of_sampler

__all__ = ["is_replicated", "refuse_replicated", "settle_unjoined"]

_ON_PURPOSE = "For the same data on all ranks, on purpose, pass rank=0, world_size=1"


def is_replicated(setup: Setup, seed: int) -> bool:
    """Whether a custom sampler's first batches are the same on all ranks, and by mistake.

    All ranks of the group call this at construction, where they communicate anyway: a rank may
    look at a batch while others do not, and would wait for them in vain.
    """
    schedule, custom = setup.lookup, setup.arguments.custom_sampler
    if custom is None or not (setup.ranks.several and isinstance(schedule, SampledSchedule)):
        return False
    # One that was built for a number of ranks means what it gives.
    digest = None if _knows_ranks(custom) else schedule.first_digest(seed)
    return setup.ranks.all_equal(digest)


def refuse_replicated(setup: Setup) -> None:
    """Raise the error for such a sampler."""
    custom = setup.arguments.custom_sampler
    raise ConfigurationError(
        f"{_argument(setup)}: the {type(custom).__name__} gives the same batches on all "
        f"{setup.world_size} ranks. {_instead(custom)}. {_ON_PURPOSE}"
    )


def settle_unjoined(setup: Setup) -> None:
    """Refuse a custom sampler in a world whose ranks could not compare its batches, or warn.

    Torch's samplers draw the same indices wherever they are seeded alike. Other classes may know
    their rank, as they should where it was given by number.

    Raises:
        ConfigurationError: all ranks certainly draw the same indices.
    """
    custom = setup.arguments.custom_sampler
    if custom is None or setup.ranks.several or _knows_ranks(custom):
        return
    kind = kind_of(custom)
    if setup.arguments.rank is not None or setup.ranks.group is not None:
        if setup.world_size == 1 or kind is None:
            return
        size, why = setup.world_size, "no process group joins them, so they cannot compare it"
    else:
        size = find_world(None, None).size
        why = "the loader was built before their process group, so they did not compare it"
        if size == 1:
            size, why = _launched(), "no process group joins them, so they cannot compare it"
        if size == 1:
            return
    what = f"{_argument(setup)}: the {type(custom).__name__}"
    is_seeded = setup.seed is not None or kind is SequentialSampler
    own_draws = kind is SubsetRandomSampler or generators_of(parts_of_sampler(custom))
    if kind is not None and is_seeded and not own_draws:
        raise ConfigurationError(
            f"{what} gives the same batches on all {size} ranks. {_instead(custom)}. {_ON_PURPOSE}"
        )
    warn(
        f"{what} does not know that there are {size} ranks, and may give all of them the same "
        f"batches: {why}. {_instead(custom)}. {_ON_PURPOSE}",
        RuntimeWarning,
    )


def _argument(setup: Setup) -> str:
    return "sampler" if setup.arguments.batch_sampler is None else "batch_sampler"


def _instead(custom: Any) -> str:
    """What to write in place of a sampler, as a sentence."""
    if (line := line_for(custom)) is not None:
        return f"Write {line} instead, and the loader shards"
    return (
        "Write shuffle=True without a sampler, and the loader shards; or give each rank its share, "
        "by sampler=DistributedSampler(dataset), or by other draws on each, as with "
        "generator=torch.Generator().manual_seed(rank)"
    )


def _launched() -> int:
    """The number of processes that torchrun's environment names, if they are several ranks."""
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(size) if rank.isdecimal() and size.isdecimal() else 1


def _knows_ranks(sampler: Any) -> bool:
    parts = (sampler, getattr(sampler, "sampler", None))
    return any(isinstance(getattr(part, "num_replicas", None), int) for part in parts)
