"""The bar over a pass: tqdm's, which starts where the pass does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from tqdm.auto import tqdm

from dataporter.loader.setup import Setup
from dataporter.schedule.progress import EpochProgress

__all__ = ["bar_over"]


def bar_over(
    batches: Iterable[Any], setup: Setup, begins: EpochProgress, options: dict[str, Any]
) -> tqdm[Any]:
    """A bar over the next pass of a loader.

    Args:
        batches: the loader.
        setup: the loader's.
        begins: where the pass begins.
        options: for tqdm; they override what is set here.
    """
    try:
        # Not len(loader): after a change of the batch size, its steps are of another size.
        total = begins.step + setup.schedule.steps(begins)
    except (TypeError, NotImplementedError):
        total = None
    shown: dict[str, Any] = {
        "iterable": batches,
        "initial": begins.step,
        "total": total,
        "desc": f"epoch {begins.epoch}",
        "unit": "batch",
        "disable": setup.rank != 0 or not _is_first_process(),
    }
    return tqdm(**{**shown, **options})


def _is_first_process() -> bool:
    """Whether this is rank 0 of all; in tensor parallelism several hold a loader of rank 0."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
