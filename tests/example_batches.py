"""Batches that several tests of converters convert."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch

from dataporter.structure import parts_of


class Pair(NamedTuple):
    image: Any
    label: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    label: Any
    made: int = dataclasses.field(default=3, init=False)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("image", "label")
    image: Any
    label: Any


class Words(collections.UserDict[str, Any]):
    """A mapping that is not a dict and has another attribute, like those of tokenizers."""

    def __init__(self, data: dict[str, Any], note: str = "") -> None:
        super().__init__(data)
        self.note = note


class Metres(np.ndarray[Any, Any]):
    """A custom class of arrays."""


class Batches(list[Any]):
    """A custom list."""


def walked(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Every leaf and every container, by path."""
    found = {path: value}
    for part in parts_of(value) or ():
        found |= walked(part.value, (*path, part.step))
    return found


ROWS = {
    "image": torch.randint(0, 256, (50, 3, 8, 8)).float().div(255),
    "label": torch.arange(50),
    "mask": torch.rand(50, 13) > 0.5,
}
