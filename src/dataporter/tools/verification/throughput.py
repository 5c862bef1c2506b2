"""Throughput: batches per second of a loader and of torch's on its dataset, by bench's loop.

Workers stay between passes, so that their start, which may take seconds, is no part of the rate.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.rebuild import rebuilt
from dataporter.tools.bench.passes import run
from dataporter.tools.verification.factory import Factory, Setting
from dataporter.tools.verification.report import Throughput

__all__ = ["measure_throughput"]

_ROUNDS = 3
_SECONDS_A_ROUND = 0.25
_PATIENCE = 0.75


def measure_throughput(factory: Factory, setting: Setting) -> Throughput:
    """Measure both in turns, so that noise affects both alike; the best round of each counts.

    A rate that the start of workers cannot be taken out of is None.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = factory.loader(setting)
        if isinstance(loader, ResumableDataLoader) and loader.num_workers:
            loader = rebuilt(loader, persistent_workers=True)
        plain = _plain(loader)
        own, others = list[float](), list[float]()
        for _ in range(_ROUNDS):
            own += _rate(loader)
            if plain is not None:
                others += _rate(plain)
    return Throughput(setting.shown(), max(own, default=None), max(others, default=None))


def _rate(loader: Any) -> list[float]:
    timings = run(loader, _SECONDS_A_ROUND, patience=_PATIENCE)
    return [] if timings.counts_start else [timings.batches_per_second]


def _plain(loader: Any) -> DataLoader[Any] | None:
    """torch's loader with the same dataset and arguments; None if the loader is torch's already."""
    if not isinstance(loader, DataLoader) or type(loader) is DataLoader:
        return None
    is_stream = isinstance(loader.dataset, IterableDataset)
    arguments: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
    if loader.num_workers:
        arguments["prefetch_factor"] = loader.prefetch_factor
        arguments["persistent_workers"] = True
    dataset: Any = loader.dataset
    if isinstance(loader, ResumableDataLoader) and not is_stream:
        dataset = loader.setup.rows
        if loader.order is None:
            return None
    if not is_stream:
        arguments["shuffle"] = True
    return DataLoader(dataset, loader.batch_size, drop_last=loader.drop_last, **arguments)
