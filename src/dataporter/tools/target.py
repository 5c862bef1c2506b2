"""Targets: the dataset, loader or function that the command line names."""

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
    """The object that ``package.module:name`` or ``path/to/file.py:name`` names.

    Modules can be imported from the current directory and from the file's, as with ``python -m``
    and ``python file.py``. The name may have dots. A function or class is called with
    ``arguments``, by default with none, and its result is returned.

    Raises:
        ConfigurationError: (a ``ValueError``) there is no such object, its module cannot be
            imported, or the function fails or takes other arguments.
    """
    arguments = arguments or {}
    found = find_target(target)
    if inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, partial):
        return _called(found, target, arguments)
    if arguments:
        raise ConfigurationError(
            f"{target!r} is a {type(found).__name__} and takes no arguments: name a function to "
            f"give it {', '.join(arguments)}"
        )
    return found


def find_target(target: str) -> Any:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` names, uncalled.

    Raises:
        ConfigurationError: (a ``ValueError``) there is no such object, or its module cannot be
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
    found: Any = module
    for step in name.split("."):
        if not hasattr(found, step):
            names = [known for known in vars(module) if not known.startswith("_")]
            raise ConfigurationError(
                f"{target!r}: {where} has no {name}; it has {', '.join(names) or 'nothing'}"
            )
        found = getattr(found, step)
    return found


def argument(text: str) -> tuple[str, Any]:
    """Parse ``key=value``; a value that is no Python literal is taken as a string.

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
    """An exception in one line: its message and notes, and its type unless it is DataPorter's."""
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
    # Under its own name, so that spawned workers, which receive sys.path, can import its classes;
    # unless another module has that name already.
    name = path.stem
    if name in sys.modules:
        name = f"_target_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{target!r}: {path.name} is not a Python file; {_EXPECTED}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look up the module of a class while the module runs.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _required(function: Any) -> list[str]:
    """The names of the arguments that a function must receive and can receive by name."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind in named
    ]


def _called(function: Any, target: str, arguments: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:  # its signature is not known
        pass
    except TypeError as error:
        if arguments:
            taken = ", ".join(
                f"--arg {name}=..." for name in inspect.signature(function).parameters
            )
            raise ConfigurationError(
                f"{target!r} takes other arguments than {', '.join(arguments)} ({error}); it takes "
                f"{taken or 'none'}"
            ) from error
        required = " ".join(f"--arg {name}=..." for name in _required(function))
        raise ConfigurationError(
            f"{target!r} needs arguments ({error}): add {required}"
            if required
            else f"{target!r} needs arguments ({error}): name a function that needs none, or only "
            "arguments with names"
        ) from error
    try:
        return function(**arguments)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{target!r} raised {in_one_line(error)}") from error
