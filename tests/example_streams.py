"""Streams of the three kinds: cut into shards, with a state, and with nothing at all."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from subjects import digest
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import ResumableDataLoader, ShuffledStream, sample_rng

__all__ = [
    "KINDS",
    "Generated",
    "Sharded",
    "Stateful",
    "StatefulIterator",
    "loader_of",
    "numbers",
    "rest",
    "sample",
    "shuffled",
    "taken",
    "through_a_file",
]


def sample(number: int) -> dict[str, Any]:
    """A sample that draws from each of the global generators and from ``sample_rng``."""
    return {
        "index": number,
        "python": random.random(),
        "numpy": np.random.standard_normal(2).astype(np.float32),
        "torch": torch.rand(2),
        "explicit": sample_rng().random(),
    }


def numbers(batches: list[Any]) -> list[int]:
    """Which samples came."""
    return [int(number) for batch in batches for number in batch["index"]]


def _share(length: int) -> range:
    """A worker's share, as torch's documentation has it."""
    info = get_worker_info()
    first, every = (0, 1) if info is None else (info.id, info.num_workers)
    return range(first, length, every)


class Generated(IterableDataset[Any]):
    """Gives no state."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        for number in _share(self.length):
            yield sample(number)


class Stateful(IterableDataset[Any]):
    """Keeps its place itself, and gives it."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.place = 0

    def __iter__(self) -> Iterator[Any]:
        share = _share(self.length)
        while self.place < len(share):
            self.place += 1
            yield sample(share[self.place - 1])
        self.place = 0

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class _Iterator:
    def __init__(self, share: range) -> None:
        self.share, self.place = share, 0

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Any:
        if self.place == len(self.share):
            raise StopIteration
        self.place += 1
        return sample(self.share[self.place - 1])

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class StatefulIterator(IterableDataset[Any]):
    """Its iterators keep their place, and give it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> _Iterator:
        return _Iterator(_share(self.length))


class Sharded(IterableDataset[Any]):
    """Cut into shards of unequal length, of which every other one gives its state."""

    def __init__(self, length: int, num_shards: int = 4) -> None:
        self.length = length
        self.num_shards = num_shards

    def shard(self, num_shards: int, index: int) -> Any:
        assert get_worker_info() is None
        # Cut at squares: shard 0 is empty where there are few samples.
        ends = [self.length * place**2 // num_shards**2 for place in range(num_shards + 1)]
        piece = range(ends[index], ends[index + 1])
        return _Iterator(piece) if index % 2 else _Shard(piece)

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)


class _Shard:
    def __init__(self, piece: range) -> None:
        self.piece = piece

    def __iter__(self) -> Iterator[Any]:
        for number in self.piece:
            yield sample(number)


def shuffled(length: int, num_shards: int = 4) -> ShuffledStream:
    """The shards in shuffled windows."""
    return ShuffledStream(Sharded(length, num_shards), window=5)


KINDS = {
    "shards": Sharded,
    "shuffled shards": shuffled,
    "dataset state": Stateful,
    "iterator state": StatefulIterator,
    "replay": Generated,
}

SEED = 11


def loader_of(dataset: Any, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"batch_size": 3, "seed": SEED, **arguments}
    return ResumableDataLoader(dataset, num_workers=workers, **arguments)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def taken(loader: ResumableDataLoader[Any], steps: int) -> list[str]:
    """Digests of the first batches of a pass, which is left there."""
    return [digest(batch) for batch in itertools.islice(loader, steps)]


def rest(loader: ResumableDataLoader[Any]) -> list[str]:
    return [digest(batch) for batch in loader]
