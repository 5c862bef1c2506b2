"""How to run workers, be they processes or threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["WorkerOptions"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The arguments of ``torch.utils.data.DataLoader`` that concern workers.

    ``restarts`` is not torch's: it says how many workers may be replaced in a pass.
    """

    num_workers: int
    prefetch_factor: int
    persistent: bool
    in_order: bool
    timeout: float
    restarts: int
    worker_init_fn: Callable[[int], None] | None
    context: Any
