"""Found: the states of loaders and converters in a checkpoint, and where in it they lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from dataporter.state.schema import SCHEMA

__all__ = ["Found", "Key", "place", "states_in"]

Key = str | int

# Fields by which a loader's state is known that has lost the one that says so.
_OF_A_LOADER = {"strategy", "seed", "epoch", "step", "batch_size", "world_size", "tail"}


class Found(NamedTuple):
    """A state, sound or not.

    Attributes:
        keys: by which it is reached from the checkpoint.
        of: whose it is.
        state: as it lies there.
    """

    keys: tuple[Key, ...]
    of: Literal["loader", "converter"]
    state: Mapping[str, Any]


def states_in(data: Any) -> Iterator[Found]:
    """The states in mappings, lists and texts of JSON, however deep.

    What is there under several keys comes once, under the first.
    """
    waiting: list[tuple[tuple[Key, ...], Any]] = [((), data)]
    seen: set[int] = set()
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, str):
            value = _parsed(value)
        if not isinstance(value, Mapping | list | tuple):
            continue
        # A pickle may hold itself.
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping) and (of := _owner(value)) is not None:
            yield Found(keys, of, value)
            continue
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        inner = [
            ((*keys, key if isinstance(key, str | int) else str(key)), part)
            for key, part in parts
            if isinstance(part, Mapping | list | tuple | str)
        ]
        waiting += reversed(inner)


def place(keys: tuple[Key, ...]) -> str:
    """Where a state lies, as it is written in Python behind the name of the checkpoint."""
    return "".join(f"[{key!r}]" for key in keys)


def _owner(value: Mapping[Any, Any]) -> Literal["loader", "converter"] | None:
    # A checkpoint may well keep the state itself under that name, or the library's version.
    if type(value.get(SCHEMA)) is int or value.keys() >= _OF_A_LOADER:
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
