"""The datasets and the comparisons that several test files need."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dataporter import sample_rng


class Augmented(Dataset[dict[str, Any]]):
    """Samples that draw from each of the global generators and from ``sample_rng``."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return {
            "index": index,
            "python": random.random(),
            "numpy": np.random.standard_normal(3).astype(np.float32),
            "torch": torch.rand(2),
            "explicit": sample_rng().random(),
        }


class Indices(Dataset[int]):
    """Its own indices; nothing is held, so any length will do."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class Batched(Indices):
    """Reads a batch at once and counts how often it was asked."""

    asked = 0

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.asked += 1
        return [(index, random.random()) for index in indices]


def digest(batch: Any) -> str:
    """A digest of every leaf's type, dtype, shape and bytes."""
    found = hashlib.sha256()

    def add(leaf: Any) -> None:
        if isinstance(leaf, torch.Tensor):
            found.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            found.update(leaf.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, dict):
            for key, value in leaf.items():
                found.update(repr(key).encode())
                add(value)
        elif isinstance(leaf, list | tuple):
            found.update(f"{type(leaf).__name__}{len(leaf)}".encode())
            for value in leaf:
                add(value)
        else:
            found.update(repr(leaf).encode())

    add(batch)
    return found.hexdigest()


def outcome_in_a_fork(look: Callable[[], Any]) -> Any:
    """What ``look`` gives in a forked process, or the text of what it raises; None if it hangs."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(20)
            try:
                outcome = look()
            except Exception as error:
                outcome = str(error)
            os.write(writing, json.dumps(outcome).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        found = file.read()
    os.waitpid(child, 0)
    return json.loads(found) if found else None


def ids(batch: Any) -> list[int]:
    """The sample indices of a batch of ``Augmented`` or ``Indices``."""
    return (batch["index"] if isinstance(batch, dict) else batch).tolist()
