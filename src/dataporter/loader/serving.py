"""Serving: the engine that a loader's arguments ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch.utils.data import DataLoader

from dataporter._torch import pin_function
from dataporter.convert import Conversion, Empty, new
from dataporter.engines import Engine, InlineEngine, ProcessEngine, ThreadEngine, WorkerOptions
from dataporter.fetch.fetch import Fetch, converting, undisturbing

__all__ = ["WorkerKind", "engine_for"]

WorkerKind = Literal["process", "thread"]


def engine_for(
    loader: DataLoader[Any],
    build_fetch: Callable[..., Fetch],
    *,
    worker_kind: WorkerKind,
    worker_restarts: int,
    conversion: Conversion | None,
) -> Engine:
    """An engine by the loader's present attributes, which torch lets people set at any time.

    Args:
        build_fetch: makes what reads and collates.
        conversion: what becomes of the batches, if anything does.
    """
    pin = pin_function(pin_memory=loader.pin_memory)
    if loader.num_workers == 0:
        return InlineEngine(
            lambda: _converted(undisturbing(build_fetch()), conversion, new),
            pin,
        )
    options = WorkerOptions(
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor or 2,
        persistent=loader.persistent_workers,
        in_order=loader.in_order,
        timeout=loader.timeout,
        restarts=worker_restarts,
        worker_init_fn=loader.worker_init_fn,
        context=loader.multiprocessing_context,
    )
    converting_fetch = partial(_converting_fetch, build_fetch, conversion)
    if worker_kind == "thread":
        return ThreadEngine(converting_fetch, pin, options)
    return ProcessEngine(converting_fetch, loader.dataset, pin, options)


def _converting_fetch(
    build_fetch: Callable[..., Fetch],
    conversion: Conversion | None,
    *,
    empty: Empty = new,
    **arguments: Any,
) -> Fetch:
    return _converted(build_fetch(**arguments), conversion, empty)


def _converted(fetch: Fetch, conversion: Conversion | None, empty: Empty) -> Fetch:
    return fetch if conversion is None else converting(fetch, conversion, empty)
