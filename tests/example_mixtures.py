"""Streams to be mixed, whose samples say where they are from, and what they should become."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from dataporter import ShuffledStream, sample_rng

__all__ = ["Numbered", "expected_of", "numbered"]


class Numbered(IterableDataset[Any]):
    """Parts of so many samples, each named by (source, part, number), that draw random numbers."""

    def __init__(self, source: int, lengths: tuple[int, ...], keeps_state: bool = True) -> None:
        self.source, self.lengths, self.keeps_state = source, lengths, keeps_state

    @property
    def num_shards(self) -> int:
        return len(self.lengths)

    def shard(self, num_shards: int, index: int) -> Any:
        ids = [
            (self.source, part, number)
            for part in range(index, len(self.lengths), num_shards)
            for number in range(self.lengths[part])
        ]
        return Positioned(ids) if self.keeps_state else Plain(ids)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.shard(1, 0))


def _sample(place: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "id": torch.tensor(place),
        "drawn": torch.rand(1),
        "python": random.random(),
        "explicit": sample_rng().random(),
    }


class Plain:
    """Has no state."""

    def __init__(self, ids: list[tuple[int, int, int]]) -> None:
        self.ids = ids

    def __iter__(self) -> Iterator[Any]:
        yield from map(_sample, self.ids)
        random.random()  # the end of a pass may draw


class Positioned(Plain):
    """Its iterator keeps its position, which is its state."""

    def __iter__(self) -> Iterator[Any]:
        return _Position(self.ids)


class _Position(Iterator[Any]):
    def __init__(self, ids: list[tuple[int, int, int]]) -> None:
        self.ids, self.at = ids, 0

    def __next__(self) -> Any:
        if self.at == len(self.ids):
            random.random()
            raise StopIteration
        self.at += 1
        return _sample(self.ids[self.at - 1])

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def numbered(source: int, lengths: tuple[int, ...], kind: str) -> Any:
    """A stream of a kind: with a state, without one, or shuffled in windows."""
    stream = Numbered(source, lengths, keeps_state=kind != "stateless")
    return ShuffledStream(stream, window=3) if kind == "shuffled" else stream


def expected_of(stream: Any, shards: int, shard: int, passes: int) -> list[tuple[int, ...]]:
    """The ids of a shard of a stream, pass after pass."""
    found = []
    for epoch in range(passes):
        if hasattr(stream, "set_epoch"):
            stream.set_epoch(epoch)
        found += [tuple(s["id"].tolist()) for s in stream.shard(num_shards=shards, index=shard)]
    return found
