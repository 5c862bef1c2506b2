"""The suggestions for a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from dataporter import ConversionPlan, suggest_conversions
from dataporter.tools.advisor.suggestion import Suggestion


def at(plan: ConversionPlan, path: str) -> Suggestion:
    (found,) = [suggestion for suggestion in plan.suggestions if suggestion.path == path]
    return found


def form_of(value: Any, **arguments: Any) -> str | None:
    """The suggestion for a dataset of one such sample."""
    return at(suggest_conversions([value], **arguments), "").form


class Watched(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        self.read.append(index)
        return index


class Counting(IterableDataset[int]):
    # Of the class, since a copy is read.
    taken = 0

    def __init__(self, length: int) -> None:
        self.length = length
        Counting.taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.length):
            Counting.taken += 1
            yield number
