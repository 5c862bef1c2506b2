"""The factory: a function that makes a fresh loader, and how a new process finds it."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.tools.target import find_target

__all__ = ["Factory", "factory_of"]


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

    def load(self) -> Callable[..., Any]:
        """The function, with its arguments bound.

        Raises:
            ConfigurationError: (a ``ValueError``) there is no such function.
        """
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
