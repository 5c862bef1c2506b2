"""A worker: does some work in a fork of this process, as the workers of a loader do theirs."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader

from dataporter._torch import become_worker
from dataporter.engines.messages import Failure
from dataporter.errors import WorkerDiedError

__all__ = ["forks_workers", "in_worker"]

Result = TypeVar("Result")


def forks_workers(loader: Any) -> bool:
    """Whether an object is a loader whose batches are made in forks of this process."""
    if not isinstance(loader, DataLoader) or not loader.num_workers:
        return False
    context = loader.multiprocessing_context or multiprocessing.get_context()
    is_threaded = getattr(loader, "worker_kind", "process") == "thread"
    return not is_threaded and context.get_start_method() == "fork"


def in_worker(loader: DataLoader[Any], work: Callable[[], Result]) -> Result:
    """The result of ``work`` in the only worker of a loader.

    Raises:
        Exception: whatever the work or ``worker_init_fn`` raises.
        WorkerDiedError: the worker was killed.
    """
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(loader, work, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        result = ours.recv()
    except EOFError:
        process.join()
        raise WorkerDiedError(
            f"the process that reads samples of the loader ended with code {process.exitcode}: "
            "read fewer of them (samples=), or pass a loader with num_workers=0 to read them here"
        ) from None
    finally:
        ours.close()
    process.join()
    if isinstance(result, Failure):
        raise result.rebuilt()
    return result  # type: ignore[no-any-return]  # what the work returned


def _serve(loader: DataLoader[Any], work: Callable[[], Any], answers: Connection) -> None:
    try:
        torch.set_num_threads(1)
        become_worker(0, 1, 0, loader.dataset)
        if loader.worker_init_fn is not None:
            loader.worker_init_fn(0)
        answers.send(work())
    except Exception as error:
        answers.send(Failure.from_exception(error))
