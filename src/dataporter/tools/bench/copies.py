"""Copies: a loader like another one, which stands where it does or has other workers."""

from __future__ import annotations

import copy
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.streams import Stream

__all__ = ["copied", "is_stream", "with_workers"]


def copied(loader: DataLoader[Any], at: DataLoader[Any] | None = None) -> DataLoader[Any]:
    """A loader like this one that nobody has run; it stands where ``at`` does if it can jump there.

    So that what is measured next does not read again what the last one has left in the page cache.
    """
    fresh = copy.copy(loader)
    if not isinstance(fresh, ResumableDataLoader) or not isinstance(at, ResumableDataLoader):
        return fresh
    if not is_stream(fresh):  # which may have to be read up to there
        fresh.load_state_dict(at.state_dict())
    return fresh


def with_workers(loader: DataLoader[Any], workers: int) -> DataLoader[Any]:
    """The same loader with another number of workers.

    Raises:
        ConfigurationError: their number is part of what the loader reads.
    """
    flow = loader._flow if isinstance(loader, ResumableDataLoader) else None
    if (
        isinstance(flow, Stream)
        and flow.sharding.name == "workers"
        and workers != loader.num_workers
    ):
        raise ConfigurationError(
            f"--workers {workers}: each worker reads this stream by itself, so that their number "
            "decides what a batch is: let the function take it as an argument, and run bench once "
            "for each (--arg)"
        )
    fresh = copied(loader)
    fresh.num_workers = workers
    if workers == 0:
        fresh.timeout = 0  # which torch's loader refuses to have without workers
    fresh.prefetch_factor = (loader.prefetch_factor or 2) if workers else None
    return fresh


def is_stream(loader: DataLoader[Any]) -> bool:
    """Whether its dataset is iterated over."""
    return isinstance(loader.dataset, IterableDataset)
