"""The bar over a pass: tqdm's, which starts where the pass does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from dataporter.loader.loader import ResumableDataLoader

__all__ = ["bar_over"]


def bar_over(
    loader: ResumableDataLoader[Any],
    epoch: int,
    step: int,
    remaining: Callable[[], int],
    options: dict[str, Any],
) -> tqdm[Any]:
    """A bar over the pass of ``loader`` that begins next.

    Args:
        epoch, step: where it begins.
        remaining: batches that it has; raises a TypeError where nobody knows.
        options: for tqdm, before what is set here.
    """
    try:
        # Not len(loader): with another batch size since, the steps made are none of its steps.
        total = step + remaining()
    except (TypeError, NotImplementedError):
        total = None
    shown: dict[str, Any] = {
        "iterable": loader,
        "initial": step,
        "total": total,
        "desc": f"epoch {epoch}",
        "unit": "batch",
        "disable": loader.rank != 0 or not _is_first_process(),
    }
    return tqdm(**{**shown, **options})


def _is_first_process() -> bool:
    """Whether this is rank 0 of all; in tensor parallelism several hold a loader of rank 0."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
