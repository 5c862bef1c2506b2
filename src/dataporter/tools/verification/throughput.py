"""A race: how many batches a second a loader gives, and torch's on the same dataset."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.target import in_one_line
from dataporter.tools.verification.factory import Subject
from dataporter.tools.verification.setting import Setting, loader_for

__all__ = ["Race", "Rates", "carry_out"]

_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Race:
    """Measure both, taking turns; each turn has so many seconds."""

    subject: Subject
    setting: Setting
    seconds: float = 0.25


@dataclass(frozen=True, slots=True)
class Rates:
    """Batches a second, the best of each one's turns; None where there is no such loader."""

    loader: float | None
    plain: float | None
    error: str | None = None


def carry_out(race: Race) -> Rates:
    """Let them run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = loader_for(race.subject.load(), race.setting)
            plain = _plain(loader)
            own, others = 0.0, 0.0
            for _ in range(_ROUNDS):
                own = max(own, _rate(loader, race.seconds))
                if plain is not None:
                    others = max(others, _rate(plain, race.seconds))
            return Rates(own or None, others or None)
    except (Exception, SystemExit) as error:
        return Rates(None, None, in_one_line(error))


def _rate(loader: Any, seconds: float) -> float:
    """Batches a second from the first one on; what begins later epochs is part of it."""
    count, begun = 0, None
    while True:
        was = count
        for _ in loader:
            now = time.perf_counter()
            if begun is None:
                begun = now
            elif now - begun > seconds:
                return count / (now - begun)
            count += 1
        if count == was or begun is None:
            return 0.0


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
