"""The parts of a custom sampler: the samplers in it, and the generators that they draw from."""

from __future__ import annotations

import threading
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__all__ = ["generators_of", "is_known", "parts_of_sampler", "shared_by"]

_MOST_PARTS = 64
# What makes an iterable in a sampler's attribute a sampler, though its class is not one of torch's.
_SIGNS = ("set_epoch", "state_dict", "generator")
_DATASETS = ("dataset", "data_source")
# Without memory: each walk through them depends on nothing but their epoch and their generator.
_KNOWN = (
    *(SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler),
    *(BatchSampler, DistributedSampler, list, tuple, range, np.ndarray, torch.Tensor),
)
# They belong to this process, so that a copy has to share them; none holds a position.
_SHARED = (types.ModuleType, type(threading.Lock()), type(threading.RLock()), torch.nn.Module)


def parts_of_sampler(sampler: Any) -> list[Any]:
    """The sampler and those in it, under whatever name it holds them; outer ones first."""
    parts: list[Any] = []
    waiting, seen = deque([sampler]), {id(sampler)}
    while waiting and len(parts) < _MOST_PARTS:
        parts.append(part := waiting.popleft())
        for inner in _inside(part):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return parts


def generators_of(parts: list[Any]) -> list[Generator]:
    """The generators in attributes of the parts, under whatever name."""
    found: dict[int, Generator] = {}
    for part in parts:
        for value in (_attribute(part, "generator"), *_attributes(part).values()):
            if isinstance(value, Generator):
                found.setdefault(id(value), value)
    return list(found.values())


def is_known(parts: list[Any]) -> bool:
    """Whether all parts are torch's own classes or plain sequences, which have no memory."""
    return all(
        type(part) in _KNOWN
        and (type(part) is not BatchSampler or type(part.sampler) in _KNOWN)
        and not _is_patched(part)
        for part in parts
    )


def shared_by(parts: list[Any]) -> Iterator[Any]:
    """What copies of the parts may share with them: datasets, and what belongs to the process."""
    for part in parts:
        for name, value in _attributes(part).items():
            is_group = any(kind.__name__ == "ProcessGroup" for kind in type(value).__mro__)
            if isinstance(value, _SHARED) or is_group or _is_dataset(name, value):
                yield value


def _is_patched(part: Any) -> bool:
    return any(isinstance(value, types.FunctionType) for value in _attributes(part).values())


def _inside(part: Any) -> Iterator[Any]:
    if isinstance(part, list | tuple | range | np.ndarray | torch.Tensor):
        return
    held = {"sampler": _attribute(part, "sampler"), **_attributes(part)}
    for name, value in held.items():
        if isinstance(part, DistributedSampler) and name == "dataset":
            # Lightning shards a sampler as if it were a dataset.
            if type(value).__name__ == "_DatasetSamplerWrapper":
                yield value._sampler
            continue
        for one in value[:_MOST_PARTS] if type(value) in (list, tuple) else (value,):
            if _is_sampler(name, one):
                yield one


def _is_sampler(name: str, value: Any) -> bool:
    if isinstance(value, Sampler):
        return True
    if name == "sampler" and hasattr(type(value), "__iter__"):
        return True
    if name in _DATASETS or isinstance(value, Dataset | DataLoader | torch.nn.Module | type):
        return False
    return hasattr(type(value), "__iter__") and any(
        _attribute(value, sign) is not None for sign in _SIGNS
    )


def _is_dataset(name: str, value: Any) -> bool:
    if isinstance(value, Dataset):
        # A dataset made of a sampler, to shard that, may remember what the sampler gave.
        return not any(isinstance(one, Sampler) for one in _attributes(value).values())
    is_plain = isinstance(value, Sampler | list | tuple | dict | set | np.ndarray | torch.Tensor)
    return name in _DATASETS and hasattr(type(value), "__getitem__") and not is_plain


def _attribute(part: Any, name: str) -> Any:
    try:
        return getattr(part, name, None)
    except Exception:  # a property of the user's
        return None


def _attributes(part: Any) -> dict[str, Any]:
    attributes = getattr(part, "__dict__", None)
    return attributes if isinstance(attributes, dict) else {}
