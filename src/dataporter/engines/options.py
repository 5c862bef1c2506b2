"""How to run workers, whatever kind they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How to run workers: the arguments of ``torch.utils.data.DataLoader`` that concern them.

    ``restarts`` is how many may be replaced in a pass.
    """

    num_workers: int
    prefetch_factor: int
    persistent: bool
    in_order: bool
    timeout: float
    restarts: int
    worker_init_fn: Callable[[int], None] | None
    context: Any
