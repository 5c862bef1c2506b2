"""Settings: what is varied about a loader from outside, a loader in a setting, and its facts."""

from __future__ import annotations

import inspect
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import DataLoader, IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.rebuild import rebuilt

__all__ = ["CannotVaryError", "Setting", "facts_of", "is_stateful", "loader_for"]


_KINDS = {"process": ("process", "processes"), "thread": ("thread", "threads")}


class CannotVaryError(ConfigurationError):
    """The loader cannot have this setting; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Arguments that a loader must have; None leaves the loader's own.

    Attributes:
        num_workers, worker_kind, batch_size, rank, world_size: as in
            :class:`~dataporter.ResumableDataLoader`.
        seed: shared by all ranks of a loader that has none.
    """

    num_workers: int | None = None
    worker_kind: Literal["process", "thread"] | None = None
    batch_size: int | None = None
    rank: int | None = None
    world_size: int | None = None
    seed: int | None = None

    def shown(self) -> str:
        """The setting as tables show it."""
        parts = []
        if self.num_workers is not None:
            one, several = _KINDS[self.worker_kind or "process"]
            named = {0: "no workers", 1: f"1 {one}"}
            parts.append(named.get(self.num_workers, f"{self.num_workers} {several}"))
        if self.batch_size is not None:
            parts.append(f"batch size {self.batch_size}")
        if self.world_size is not None:
            parts.append("1 rank" if self.world_size == 1 else f"{self.world_size} ranks")
        return ", ".join(parts) or "as it is"

    def changes(self) -> dict[str, Any]:
        """The arguments to vary, by name."""
        names = ("num_workers", "worker_kind", "batch_size", "rank", "world_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def loader_for(make: Callable[..., Any], setting: Setting) -> Any:
    """A fresh loader in a setting.

    ``make`` receives those of the arguments that it takes. The others are set on the loader that it
    returns: the workers of any ``DataLoader``; batch size, rank and world size of a
    :class:`~dataporter.ResumableDataLoader`, by rebuilding it.

    Raises:
        CannotVaryError: the loader cannot have this setting.
    """
    taken = _taken(make, setting.changes())
    loader = make(**taken)
    left = {
        name: value
        for name, value in setting.changes().items()
        if name not in taken and not _has_it(loader, name, value)
    }
    if setting.seed is not None and _has_no_seed(loader):
        left["seed"] = setting.seed
    if not left:
        return loader
    if not isinstance(loader, DataLoader):
        raise CannotVaryError(
            f"a {type(loader).__name__} is not a DataLoader: let the function that makes it take "
            f"{', '.join(left)} as arguments"
        )
    if isinstance(loader, ResumableDataLoader):
        return _resumable_with(loader, left)
    _set_workers(loader, left)
    if left:
        raise CannotVaryError(
            f"{', '.join(left)} of a {type(loader).__name__} cannot be changed from outside: let "
            "the function that makes it take them as arguments"
        )
    return loader


def _has_no_seed(loader: Any) -> bool:
    return isinstance(loader, ResumableDataLoader) and loader.setup.arguments.seed is None


def _taken(make: Callable[..., Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:
        return {}
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: value
        for name, value in changes.items()
        if name in parameters and parameters[name].kind in by_name
    }


def _has_it(loader: Any, name: str, value: Any) -> bool:
    if name == "num_workers" and not isinstance(loader, DataLoader):
        return bool(value == 0)
    if name == "worker_kind" and not isinstance(loader, ResumableDataLoader):
        return bool(value == "process")
    if name in ("rank", "world_size") and not isinstance(loader, ResumableDataLoader):
        return bool(value == {"rank": 0, "world_size": 1}[name])
    return bool(getattr(loader, name, None) == value)


def _set_workers(loader: Any, left: dict[str, Any]) -> None:
    """Set the number of workers, which torch allows between two passes."""
    if "num_workers" not in left:
        return
    loader.num_workers = left.pop("num_workers")
    if loader.num_workers == 0:
        loader.prefetch_factor, loader.timeout = None, 0
    elif loader.prefetch_factor is None:
        loader.prefetch_factor = 2


def _resumable_with(loader: ResumableDataLoader[Any], left: dict[str, Any]) -> Any:
    is_stream = isinstance(loader.dataset, IterableDataset)
    if not is_stream:
        _set_workers(loader, left)
        if "worker_kind" in left:
            loader.worker_kind = left.pop("worker_kind")
        if not left:
            return loader
        if loader.order is None:
            raise CannotVaryError(
                f"{', '.join(left)}: the loader's custom sampler decides this; let the function "
                "that makes the loader take them as arguments"
            )
    return _rebuilt(loader, left)


def _rebuilt(loader: ResumableDataLoader[Any], changes: dict[str, Any]) -> Any:
    # With rank and world size given, building it talks to no other rank.
    return rebuilt(loader, **{"rank": loader.rank, "world_size": loader.world_size, **changes})


def facts_of(loader: Any) -> dict[str, Any]:
    """What a report says about a loader."""
    facts: dict[str, Any] = {
        "loader": type(loader).__name__,
        "module": type(loader).__module__,
        "dataset": type(getattr(loader, "dataset", None)).__name__,
        "num_workers": getattr(loader, "num_workers", 0),
        "batch_size": getattr(loader, "batch_size", None),
        "in_order": getattr(loader, "in_order", True),
        "stateful": is_stateful(loader),
        "ours": isinstance(loader, ResumableDataLoader),
        "keeps_state": hasattr(getattr(loader, "dataset", None), "state_dict"),
        "forks": _start_method(loader) == "fork",
        "stream": isinstance(getattr(loader, "dataset", None), IterableDataset),
    }
    try:
        facts["samples"] = len(loader.dataset)
    except (AttributeError, TypeError, NotImplementedError):
        facts["samples"] = None
    try:
        facts["length"] = len(loader)
    except (TypeError, NotImplementedError, ValueError):
        facts["length"] = None
    if isinstance(loader, ResumableDataLoader):
        facts["strategy"] = loader.strategy.name
        facts["world_size"] = loader.world_size
        facts["worker_kind"] = loader.worker_kind
        facts["tail"] = loader.tail
        facts["own_sampler"] = loader.order is None and not facts["stream"]
        stream = loader.setup.stream
        facts["cut"] = None if stream is None else stream.sharding.name
    return facts


def _start_method(loader: Any) -> str:
    context = getattr(loader, "multiprocessing_context", None) or multiprocessing
    return str(context.get_start_method())


def is_stateful(loader: Any) -> bool:
    """Whether a loader can save its state and resume from it."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
