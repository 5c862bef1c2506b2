"""Structure: takes the containers of a nested batch apart, and rebuilds them with their types.

Containers are those that torch's ``default_collate`` and ``pin_memory`` walk through (mappings,
lists, tuples, named tuples), and dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from typing import Any, NamedTuple

from dataporter.errors import ConfigurationError

__all__ = ["Part", "Step", "parts_of", "rebuilt"]

# One level of a path: a mapping's key or a field's name, as text, or an index of a list or tuple.
Step = str | int


class Part(NamedTuple):
    """One entry of a container: its step on a path, its key in the container, and its value."""

    step: Step
    key: Any
    value: Any


def parts_of(value: Any) -> Sequence[Part] | None:
    """The entries of a container, or None for any other value."""
    if isinstance(value, Mapping):
        return [Part(str(key), key, inner) for key, inner in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [Part(name, name, inner) for name, inner in zip(value._fields, value)]
    if isinstance(value, list | tuple):
        return [Part(index, index, inner) for index, inner in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return [Part(name, name, getattr(value, name)) for name in names]
    return None


def rebuilt(value: Any, changes: Mapping[Any, Any]) -> Any:
    """A container of the same type with some entries replaced, by key.

    The container itself is not modified, and is returned if nothing changes.

    Raises:
        ConfigurationError: (a ``ValueError``) its class cannot be built from its content.
    """
    if not changes:
        return value
    if isinstance(value, MutableMapping):
        clone = copy(value)
        for key, inner in changes.items():
            clone[key] = inner
        return clone
    if isinstance(value, Mapping):
        return _made(value, {**value, **changes})  # as default_collate does
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value._replace(**changes)  # type: ignore[attr-defined]  # a named tuple
    if isinstance(value, list):
        items = copy(value)
        for index, inner in changes.items():
            items[index] = inner
        return items
    if isinstance(value, tuple):
        return _made(value, [changes.get(index, inner) for index, inner in enumerate(value)])
    # Not dataclasses.replace: it refuses fields that __init__ does not take, and runs __init__.
    twin = copy(value)
    for name, inner in changes.items():
        object.__setattr__(twin, name, inner)
    return twin


def _made(like: Any, content: Any) -> Any:
    """A read-only container, built by the constructor of its class."""
    kind = type(like)
    try:
        return kind(content)
    except Exception as error:
        argument = "mapping" if isinstance(like, Mapping) else "sequence"
        raise ConfigurationError(
            f"a {kind.__name__} cannot be rebuilt with converted or moved tensors "
            f"({type(error).__name__}: {error}): let its constructor take one {argument}, as "
            "torch's collating and pinning expect, or use a dict, list, named tuple or dataclass"
        ) from error
