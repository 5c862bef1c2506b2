"""Replicated samplers: custom ones that give all ranks of a group the same batches (C12)."""

from __future__ import annotations

from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.loader.setup import Setup
from dataporter.schedule.sampled import SampledSchedule

__all__ = ["is_replicated", "refuse_replicated"]


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
    kind = type(setup.arguments.custom_sampler).__name__
    argument = "sampler" if setup.arguments.batch_sampler is None else "batch_sampler"
    raise ConfigurationError(
        f"{argument}: the {kind} gives the same batches on all {setup.world_size} ranks. Write "
        "shuffle=True without a sampler, and the loader shards; or give each rank its share, by "
        "sampler=DistributedSampler(dataset), or by draws of its own, as with "
        "generator=torch.Generator().manual_seed(rank). For the same data on all ranks, on "
        "purpose, pass rank=0, world_size=1"
    )


def _knows_ranks(sampler: Any) -> bool:
    parts = (sampler, getattr(sampler, "sampler", None))
    return any(isinstance(getattr(part, "num_replicas", None), int) for part in parts)
