"""Throughput: batches per second of a loader and of torch's on its dataset, by bench's loop."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.bench.passes import run
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.report import Throughput
from dataporter.tools.verification.setting import Setting, loader_for

__all__ = ["Contest", "carry_out"]

_ROUNDS = 3
_SECONDS_A_ROUND = 0.25


@dataclass(frozen=True, slots=True)
class Contest:
    """Measure a loader and torch's, in turns, so that noise from outside affects both."""

    factory: Factory
    setting: Setting


def carry_out(contest: Contest) -> Throughput:
    """Measure both; each one's best round counts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = loader_for(contest.factory.load(), contest.setting)
        plain = _plain(loader)
        rates: list[tuple[float, float | None]] = [
            (
                run(loader, _SECONDS_A_ROUND).batches_per_second,
                None if plain is None else run(plain, _SECONDS_A_ROUND).batches_per_second,
            )
            for _ in range(_ROUNDS)
        ]
    own, others = zip(*rates)
    best = max((rate for rate in others if rate is not None), default=None)
    return Throughput(contest.setting.shown(), max(own), best)


def _plain(loader: Any) -> DataLoader[Any] | None:
    """torch's loader with the same dataset and arguments; None beside one that is it."""
    if not isinstance(loader, DataLoader) or type(loader) is DataLoader:
        return None
    is_stream = isinstance(loader.dataset, IterableDataset)
    arguments: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
    if loader.num_workers:
        arguments["prefetch_factor"] = loader.prefetch_factor
    dataset: Any = loader.dataset
    if isinstance(loader, ResumableDataLoader) and not is_stream:
        flow: Any = loader._flow
        dataset = flow.rows
        if loader.order is None:
            return None
    if not is_stream:
        arguments["shuffle"] = True
    return DataLoader(dataset, loader.batch_size, drop_last=loader.drop_last, **arguments)
