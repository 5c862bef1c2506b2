"""The only file that touches what torch does not publish; each function says what and why."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.data import _utils, get_worker_info

__all__ = ["default_collate_is_extended", "pin_function", "present_dataset_to_worker", "profiled"]


_COLLATE_FUNCTIONS = dict(_utils.collate.default_collate_fn_map)


def pin_function(*, pin_memory: bool) -> Callable[[Any], Any]:
    """What a batch goes through in the training process when torch's loader would pin it there.

    The recursion over a batch, with its rules for user classes, is torch's and not published.
    """
    if not pin_memory:
        return _unchanged
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None or accelerator.type == "mps":
        reason = "no accelerator is found" if accelerator is None else "MPS does not support it"
        warnings.warn(
            f"'pin_memory' argument is set as true but {reason}, then device pinned memory won't "
            "be used.",
            stacklevel=2,
        )
        return _unchanged
    return partial(_utils.pin_memory.pin_memory, device=accelerator.type)


def present_dataset_to_worker(inner: Callable[[Any], Any]) -> None:
    """Make ``get_worker_info().dataset`` the dataset that the user knows.

    torch fills it with the dataset of the loader that started the worker, which here wraps the
    user's; there is no published way to set it.
    """
    info = get_worker_info()
    assert info is not None, "called outside a worker"
    _utils.worker._worker_info = _utils.worker.WorkerInfo(
        id=info.id, num_workers=info.num_workers, seed=info.seed, dataset=inner(info.dataset)
    )


def default_collate_is_extended() -> bool:
    """Whether somebody has taught ``default_collate`` types of his own.

    Its docstring says to do that by changing this dict, which is not published elsewhere.
    """
    return _utils.collate.default_collate_fn_map != _COLLATE_FUNCTIONS


def profiled(name: str) -> AbstractContextManager[Any]:
    """A span in torch's profiler, as its own loader makes one for each batch.

    ``record_function`` costs 13 us whether a profiler runs or not; whether one runs is not
    published.
    """
    if torch._C._autograd._profiler_enabled():
        return torch.autograd.profiler.record_function(name)
    return nullcontext()


def _unchanged(batch: Any) -> Any:
    return batch
