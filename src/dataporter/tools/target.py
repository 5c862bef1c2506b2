"""Targets: a dataset or loader that the command line names, found in a module or a file."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from dataporter.errors import ConfigurationError, DataPorterError

__all__ = ["argument", "find_target", "in_one_line", "load_target"]

_EXPECTED = "expected package.module:name or path/to/file.py:name"


def load_target(target: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """What ``package.module:name`` or ``path/to/file.py:name`` names.

    The current directory, and the file's own, can be imported from, as for ``python -m`` and
    ``python file.py``. A function or class is called with ``arguments``, by default with none; the
    name may have dots.

    Raises:
        ConfigurationError: (a ``ValueError``) there is no such thing, its module cannot be
            imported, or the function fails or takes other arguments.
    """
    arguments = arguments or {}
    thing = find_target(target)
    if inspect.isroutine(thing) or inspect.isclass(thing) or isinstance(thing, partial):
        return _called(thing, target, arguments)
    if arguments:
        raise ConfigurationError(
            f"{target!r} is a {type(thing).__name__} and takes no arguments: name a function to "
            f"give it {', '.join(arguments)}"
        )
    return thing


def find_target(target: str) -> Any:
    """What ``package.module:name`` or ``path/to/file.py:name`` names, and nothing is called.

    Raises:
        ConfigurationError: (a ``ValueError``) there is no such thing, or its module cannot be
            imported.
    """
    where, _, name = target.rpartition(":")
    if not where or not name:
        raise ConfigurationError(f"{target!r}: {_EXPECTED}")
    _importable_from(os.getcwd())
    is_file = where.endswith(".py") or os.sep in where
    try:
        module = _file(Path(where), target) if is_file else importlib.import_module(where)
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"{target!r}: importing {where} failed: {in_one_line(error)}"
        ) from error
    thing: Any = module
    for step in name.split("."):
        if not hasattr(thing, step):
            names = [known for known in vars(module) if not known.startswith("_")]
            raise ConfigurationError(
                f"{target!r}: {where} has no {name}; it has {', '.join(names) or 'nothing'}"
            )
        thing = getattr(thing, step)
    return thing


def argument(text: str) -> tuple[str, Any]:
    """``key=value`` of a command line; a value that is no number, list or the like is a text.

    >>> argument("batch_size=32"), argument("split=train")
    (('batch_size', 32), ('split', 'train'))
    """
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise ConfigurationError(f"--arg {text}: expected key=value, such as batch_size=32")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def in_one_line(error: BaseException) -> str:
    """An exception's message and notes for a terminal, and its type where it is not one of ours."""
    kind = "" if isinstance(error, DataPorterError) else f"{type(error).__name__}: "
    notes: list[str] = getattr(error, "__notes__", [])
    return " ".join(f"{kind}{'; '.join([str(error), *notes])}".split())


def _importable_from(directory: str) -> None:
    if directory not in sys.path:
        sys.path.insert(0, directory)


def _file(path: Path, target: str) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"{target!r}: there is no file {path}; {_EXPECTED}")
    path = path.resolve()
    _importable_from(str(path.parent))
    # By its own name, so that spawned workers, who are given sys.path, find its classes; unless
    # that is taken: nothing that others have imported is to be replaced.
    name = path.stem
    if name in sys.modules:
        name = f"_target_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{target!r}: {path.name} is no Python file; {_EXPECTED}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up while it is being made.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _called(thing: Any, target: str, arguments: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(thing).bind(**arguments)
    except ValueError:  # no signature is known of it
        pass
    except TypeError as error:
        if arguments:
            raise ConfigurationError(
                f"{target!r} takes other arguments than {', '.join(arguments)} ({error})"
            ) from error
        raise ConfigurationError(
            f"{target!r} needs arguments ({error}): name a function that needs none and returns a "
            "dataset or a loader"
        ) from error
    try:
        return thing(**arguments)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{target!r} raised {in_one_line(error)}") from error
