"""Throughput: batches per second of a loader and of torch's on its dataset, by bench's loop."""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.bench.passes import run
from dataporter.tools.verification.factory import Factory, Setting
from dataporter.tools.verification.report import Throughput

__all__ = ["measure_throughput"]

_ROUNDS = 3
_SECONDS_A_ROUND = 0.25


def measure_throughput(factory: Factory, setting: Setting) -> Throughput:
    """Measure both in turns, so that noise affects both alike; the best round of each counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = factory.loader(setting)
        plain = _plain(loader)
        own, others = [], []
        for _ in range(_ROUNDS):
            own.append(run(loader, _SECONDS_A_ROUND).batches_per_second)
            if plain is not None:
                others.append(run(plain, _SECONDS_A_ROUND).batches_per_second)
    return Throughput(setting.shown(), max(own), max(others, default=None))


def _plain(loader: Any) -> DataLoader[Any] | None:
    """torch's loader with the same dataset and arguments; None if the loader is torch's already."""
    if not isinstance(loader, DataLoader) or type(loader) is DataLoader:
        return None
    is_stream = isinstance(loader.dataset, IterableDataset)
    arguments: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
    if loader.num_workers:
        arguments["prefetch_factor"] = loader.prefetch_factor
    dataset: Any = loader.dataset
    if isinstance(loader, ResumableDataLoader) and not is_stream:
        dataset = loader.setup.rows
        if loader.order is None:
            return None
    if not is_stream:
        arguments["shuffle"] = True
    return DataLoader(dataset, loader.batch_size, drop_last=loader.drop_last, **arguments)
