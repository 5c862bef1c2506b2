"""Found: the states of loaders and converters in a checkpoint, and the keys that lead to them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

__all__ = ["SCHEMA", "Found", "Key", "as_subscripts", "states_in"]

# The field of every state that holds the version of its schema.
SCHEMA = "dataporter"

Key = str | int
Kind = Literal["loader", "converter"]

# A loader's state is recognised by these fields if the field with the schema version is lost.
_LOADER_FIELDS = {"strategy", "seed", "epoch", "step", "batch_size", "world_size", "tail"}


class Found(NamedTuple):
    """A state, sound or damaged.

    Attributes:
        keys: the keys that lead to it from the checkpoint.
        kind: of a loader or of a converter.
        state: the state as it was found.
    """

    keys: tuple[Key, ...]
    kind: Kind
    state: Mapping[str, Any]


def states_in(data: Any) -> Iterator[Found]:
    """The states in mappings, lists and JSON strings, at any depth.

    A state under several keys is found once, under the first of them.
    """
    waiting: list[tuple[tuple[Key, ...], Any]] = [((), data)]
    seen: set[int] = set()
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, str):
            value = _parsed(value)
        if not isinstance(value, Mapping | list | tuple):
            continue
        # A pickle may contain itself.
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping) and (kind := _kind(value)) is not None:
            yield Found(keys, kind, value)
            continue
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = [
            ((*keys, key if isinstance(key, str | int) else str(key)), part)
            for key, part in parts
            if isinstance(part, Mapping | list | tuple | str)
        ]
        waiting += reversed(inner)


def as_subscripts(keys: tuple[Key, ...]) -> str:
    """The keys as Python writes them behind a variable: ``['data'][0]``."""
    return "".join(f"[{key!r}]" for key in keys)


def _kind(value: Mapping[Any, Any]) -> Kind | None:
    # By the type too: a checkpoint may keep a state, or the library's version, under this name.
    if type(value.get(SCHEMA)) is int or value.keys() >= _LOADER_FIELDS:
        return "loader"
    originals = value.get("originals")
    if value.keys() == {"version", "originals"} and isinstance(originals, Mapping):
        return "converter"
    return None


def _parsed(text: str) -> Any:
    if text.lstrip()[:1] not in ("{", "[") or f'"{SCHEMA}"' not in text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
