"""The factory: a function that makes a loader in any process, in a setting; and its facts."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader, IterableDataset

from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.rebuild import rebuilt
from dataporter.tools.target import find_target

__all__ = ["CannotVaryError", "Factory", "Setting", "factory_of", "facts_of", "is_stateful"]

_KINDS = {"process": ("process", "processes"), "thread": ("thread", "threads")}
# Arguments that only this package's loaders have, and what another one amounts to.
_OURS_ALONE = {"worker_kind": "process", "rank": 0, "world_size": 1}


class CannotVaryError(ConfigurationError):
    """The loader cannot have this setting; the message says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Arguments that a loader must have; None leaves the loader's own.

    Attributes:
        num_workers, worker_kind, batch_size, rank, world_size: as in
            :class:`~dataporter.ResumableDataLoader`.
        strategy: of a :class:`~dataporter.ResumableDataLoader`.
        seed: shared by all ranks of a loader that has none.
    """

    num_workers: int | None = None
    worker_kind: Literal["process", "thread"] | None = None
    batch_size: int | None = None
    rank: int | None = None
    world_size: int | None = None
    strategy: Literal["distributed"] | None = None
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
        if self.strategy is not None:
            parts.append(self.strategy)
        return ", ".join(parts) or "as it is"

    def changes(self) -> dict[str, Any]:
        """The arguments to vary, by name."""
        names = ("num_workers", "worker_kind", "batch_size", "rank", "world_size", "strategy")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, slots=True)
class Factory:
    """The function that makes the loader.

    Attributes:
        name: as a report shows it.
        target: ``package.module:name`` or ``path/to/file.py:name``, where a new interpreter finds
            it; None: only a fork of this process has it.
        arguments: passed by name.
        function: the function itself, if there is no target.
    """

    name: str
    target: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None

    def loader(self, setting: Setting) -> Any:
        """A fresh loader in a setting.

        The function receives those of the arguments that it takes. The others are set on the loader
        that it returns: the number of workers of torch's ``DataLoader``, all arguments of a
        :class:`~dataporter.ResumableDataLoader` by rebuilding it.

        Raises:
            CannotVaryError: the loader cannot have this setting.
            ConfigurationError: (a ``ValueError``) there is no such function.
        """
        make = self._function()
        taken = _taken(make, setting.changes())
        if lacking := _lacking(make, taken):
            shown = " ".join(f"--arg {name}=..." for name in lacking)
            raise ConfigurationError(
                f"{self.name} needs {', '.join(lacking)}: pass {shown} (in Python: "
                "verify(arguments={...})), or give defaults"
            )
        loader = make(**taken)
        left = {
            name: value
            for name, value in setting.changes().items()
            if name not in taken and not _has_it(loader, name, value)
        }
        if isinstance(loader, ResumableDataLoader):
            return _resumable_in(setting, loader, left)
        if left and not isinstance(loader, DataLoader):
            raise CannotVaryError(
                f"a {type(loader).__name__} is not a DataLoader: let the function that makes it "
                f"take {', '.join(left)} as arguments"
            )
        if "num_workers" in left:
            _set_workers(loader, left.pop("num_workers"))
        if left:
            raise CannotVaryError(
                f"{', '.join(left)} of a {type(loader).__name__} cannot be changed from outside: "
                "let the function that makes it take them as arguments"
            )
        return loader

    def _function(self) -> Callable[..., Any]:
        if self.target is None:
            function: Any = self.function
        else:
            function = find_target(self.target)
        if not callable(function):
            raise ConfigurationError(
                f"{self.name} is a {type(function).__name__}: name a function that returns a fresh "
                "loader on each call, since a resumed run is a new loader in a new process"
            )
        return partial(function, **self.arguments) if self.arguments else function


def _lacking(make: Callable[..., Any], taken: Mapping[str, Any]) -> list[str]:
    """The required arguments of a function that it does not receive."""
    try:
        parameters = inspect.signature(make).parameters
    except ValueError:  # its signature is not known
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind in named and name not in taken
    ]


def factory_of(made_by: Any, arguments: Mapping[str, Any]) -> Factory:
    """The factory for a target or a function.

    Raises:
        ConfigurationError: (a ``ValueError``) it is neither.
    """
    if isinstance(made_by, str):
        return Factory(made_by, made_by, dict(arguments))
    function, bound = made_by, dict(arguments)
    if isinstance(function, partial) and not function.args:
        bound = {**function.keywords, **bound}
        function = function.func
    if not callable(function):
        raise ConfigurationError(
            f"verify() got a {type(made_by).__name__}: pass a function that returns a fresh loader "
            "on each call, since a resumed run is a new loader in a new process"
        )
    target = _target_of(function)
    name = str(getattr(function, "__qualname__", repr(function)))
    if target is None or not _can_be_sent(bound):
        return Factory(name, None, bound, function)
    return Factory(name, target, bound)


def _can_be_sent(arguments: Mapping[str, Any]) -> bool:
    try:
        pickle.dumps(arguments)
    except Exception:
        return False
    return not any(type(value).__module__ == "__main__" for value in arguments.values())


def _target_of(function: Any) -> str | None:
    """Where a new interpreter finds a function; None: it is not at the top of a module."""
    name, module = getattr(function, "__qualname__", None), getattr(function, "__module__", None)
    if (
        not name
        or not module
        or "<" in name
        or not (inspect.isroutine(function) or inspect.isclass(function))
    ):
        return None
    held: Any = sys.modules.get(module)
    file = getattr(held, "__file__", None)
    for step in name.split("."):
        held = getattr(held, step, None)
    if held is not function:
        return None
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        if spec is not None and spec.name.partition(".")[2]:  # python -m package.module
            return f"{spec.name}:{name}"
        # The __main__ of a notebook or an interactive interpreter has no file to read again.
        return f"{Path(file).resolve()}:{name}" if file and file.endswith(".py") else None
    if file is not None and module.partition(".")[2] == "" and Path(file).suffix == ".py":
        # By its file: the search path that found this module may not hold in a new interpreter.
        return f"{Path(file).resolve()}:{name}"
    return f"{module}:{name}"


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
    if name == "strategy":
        return bool(loader.strategy.name == value)
    if name == "num_workers" and not isinstance(loader, DataLoader):
        return bool(value == 0)
    if name in _OURS_ALONE and not isinstance(loader, ResumableDataLoader):
        return bool(value == _OURS_ALONE[name])
    return bool(getattr(loader, name, None) == value)


def _set_workers(loader: DataLoader[Any], num_workers: int) -> None:
    """Set the number of workers, which torch allows between two passes."""
    loader.num_workers = num_workers
    if num_workers == 0:
        loader.prefetch_factor, loader.timeout = None, 0
    elif loader.prefetch_factor is None:
        loader.prefetch_factor = 2


def _resumable_in(
    setting: Setting, loader: ResumableDataLoader[Any], left: dict[str, Any]
) -> ResumableDataLoader[Any]:
    setup = loader.setup
    fixed = [name for name in left if name not in ("num_workers", "worker_kind")]
    if fixed and not setup.arguments.is_stream and setup.order is None:
        raise CannotVaryError(
            f"{', '.join(fixed)}: the loader's custom sampler decides this; let the function that "
            "makes the loader take them as arguments"
        )
    if setting.seed is not None and setup.arguments.seed is None:
        left["seed"] = setting.seed
    if "rank" in left or "world_size" in left:
        left |= {"rank": setting.rank, "world_size": setting.world_size}
    return rebuilt(loader, **left) if left else loader


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
