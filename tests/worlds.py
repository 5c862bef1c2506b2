"""Real ranks: a function run by the processes of a gloo world, started by torch's own launcher."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

__all__ = ["outcome", "ranks_of", "standing_alone"]

# What a rank waits for another one at most: no test waits for it, unless something hangs.
TIMEOUT = timedelta(seconds=30)


def ranks_of(world_size: int, body: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``body(*arguments)``, a function of a module, returned on each rank.

    The ranks are forked off a server that has imported torch: see conftest.py. Forking this process
    itself, in which the launcher's and gloo's threads run, leaves a rank in a hundred waiting for a
    lock for good.
    """
    with _handlers_put_back(), tempfile.TemporaryDirectory() as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=world_size,
            start_method="forkserver",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            run_id=str(os.getpid()),
            max_restarts=0,
            monitor_interval=0.05,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        results = elastic_launch(config, _rank)(body, arguments)
    return [results[rank] for rank in range(world_size)]


@contextmanager
def _handlers_put_back() -> Iterator[None]:
    """The launcher handles signals in this process, and leaves its handlers there."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def _rank(body: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    # As in a rank that torchrun has started: workers come off a server otherwise, which each rank
    # has of its own, and which takes seconds to import torch.
    multiprocessing.set_start_method("fork", force=True)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        return body(*arguments)
    finally:
        dist.destroy_process_group()


def outcome(act: Callable[[], Any]) -> Any:
    """What a call returned, or the error it raised as (type, message, notes)."""
    try:
        return act()
    except Exception as error:
        return type(error).__name__, str(error), " ".join(getattr(error, "__notes__", ()))


@contextmanager
def standing_alone() -> Iterator[None]:
    """The process group of this test process itself, which is its only rank."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(1)
