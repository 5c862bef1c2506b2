"""Distributed checkpoints: the values in a folder of torch.distributed.checkpoint, without tensors.

Its `.metadata` is a pickle, which could execute anything. It is read here without importing or
calling what it names: each object becomes an inert one that keeps its attributes. The values
are files of `torch.save`, one after another, and are read with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dataporter.errors import UnreadableCheckpointError

__all__ = ["METADATA", "is_distributed", "read_distributed"]

METADATA = ".metadata"
# Far more than any value of a state: a larger value is skipped.
_LARGEST_VALUE = 64 << 20  # B


def is_distributed(folder: Path) -> bool:
    """Whether a folder is a distributed checkpoint."""
    return (folder / METADATA).is_file()


def read_distributed(folder: Path) -> Any:
    """The values in the folder without its tensors, nested as they were saved.

    Raises:
        UnreadableCheckpointError: the metadata or a value is damaged.
    """
    try:
        with (folder / METADATA).open("rb") as file:
            metadata = _InertUnpickler(file).load()
        values = dict(_values(metadata))
    except Exception as error:  # a damaged pickle raises anything
        raise UnreadableCheckpointError(
            f"{folder / METADATA} is damaged, or not from torch.distributed.checkpoint "
            f"({type(error).__name__}: {error}): use another checkpoint"
        ) from error
    root: dict[Any, Any] = {}
    for keys, (name, offset, length) in values.items():
        if length <= _LARGEST_VALUE:
            _put(root, keys, _value(folder / name, offset, length, keys))
    return _with_lists(root)


class _Inert(dict[Any, Any]):
    """Stands for an object of any class: keeps its attributes, and does nothing."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, Mapping):
            self.__dict__.update(state)

    def append(self, _: Any) -> None:
        """Accept the elements of a pickled list, and drop them."""

    def extend(self, _: Any) -> None:
        """Accept the elements of a pickled list, and drop them."""

    def __hash__(self) -> int:  # type: ignore[override]  # metadata uses such objects as keys
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return type(name, (_Inert,), {})

    def persistent_load(self, _: Any) -> Any:
        return None


def _values(metadata: Any) -> Iterator[tuple[tuple[Any, ...], tuple[str, int, int]]]:
    """The keys of each value, and its location: file, offset and length in bytes."""
    entries = metadata.state_dict_metadata
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    for index, stored in metadata.storage_data.items():
        name = index.fqn
        if name not in entries or type(entries[name]).__name__ != "BytesStorageMetadata":
            continue
        keys = tuple(paths[name]) if name in paths else (name,)
        file = Path(stored.relative_path)
        if file.is_absolute() or ".." in file.parts:
            raise ValueError(f"a value is outside of the folder, in {file}")
        yield keys, (str(file), int(stored.offset), int(stored.length))


def _value(file: Path, offset: int, length: int, keys: tuple[Any, ...]) -> Any:
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            data = opened.read(length)
        if len(data) < length:
            raise EOFError(f"{len(data)} of {length} bytes exist")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # A custom object, which is not a state; other values may be.
        return None
    except Exception as error:
        raise UnreadableCheckpointError(
            f"{file}: the value of {'.'.join(map(str, keys))!r} cannot be read ({error}): the "
            "checkpoint is damaged; use another one"
        ) from error


def _put(root: dict[Any, Any], keys: tuple[Any, ...], value: Any) -> None:
    for key in keys[:-1]:
        inner = root.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        root = inner
    root[keys[-1]] = value


def _with_lists(value: Any) -> Any:
    """Turn dicts with number keys, into which lists were flattened, back into lists."""
    if not isinstance(value, dict):
        return value
    parts = {key: _with_lists(part) for key, part in value.items()}
    if parts and all(type(key) is int for key in parts):
        return [parts[key] for key in sorted(parts)]
    return parts
