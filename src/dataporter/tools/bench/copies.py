"""Copies: a loader with the arguments of another, at its position or with other workers."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.rebuild import rebuilt

__all__ = ["copied", "is_stream", "with_workers"]


def copied(loader: DataLoader[Any], at: DataLoader[Any] | None = None) -> DataLoader[Any]:
    """A fresh loader with the same arguments, at the position of ``at`` if it can jump there.

    There, it reads other samples than ``at`` did, which are not in the page cache yet.
    """
    fresh = copy.copy(loader)
    if not isinstance(fresh, ResumableDataLoader) or not isinstance(at, ResumableDataLoader):
        return fresh
    if not is_stream(fresh):  # a stream may have to read all samples up to the position
        fresh.load_state_dict(at.state_dict())
    return fresh


def with_workers(loader: DataLoader[Any], workers: int) -> DataLoader[Any]:
    """A fresh loader with the same arguments and another number of workers.

    Raises:
        ConfigurationError: (a ``ValueError``) the number of workers decides what a batch is.
    """
    fresh = copied(loader)
    if not isinstance(fresh, ResumableDataLoader):
        fresh.num_workers = workers
        if workers == 0:
            fresh.timeout = 0  # torch's loader refuses another one without workers
        fresh.prefetch_factor = (loader.prefetch_factor or 2) if workers else None
        return fresh
    stream = fresh.setup.stream
    by_workers = stream is not None and stream.sharding.name == "workers"
    if by_workers and workers != loader.num_workers:
        raise ConfigurationError(
            f"--workers {workers}: each worker reads this stream by itself, so the number of "
            f"workers ({loader.num_workers}) decides what a batch is; let the function take it as "
            "an argument, and run bench once for each number (--arg)"
        )
    # Of the copy, whose custom sampler is another object than the loader's.
    return rebuilt(fresh, num_workers=workers)


def is_stream(loader: DataLoader[Any]) -> bool:
    """Whether the loader's dataset is an ``IterableDataset``."""
    return isinstance(loader.dataset, IterableDataset)
