"""Streams of three kinds: split into shards, with a state, and without either."""

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
    """The numbers of the samples in batches."""
    return [int(number) for batch in batches for number in batch["index"]]


def _share(length: int) -> range:
    """A worker's share, as in torch's documentation."""
    info = get_worker_info()
    first, every = (0, 1) if info is None else (info.id, info.num_workers)
    return range(first, length, every)


class Generated(IterableDataset[Any]):
    """Has no state."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        for number in _share(self.length):
            yield sample(number)


class Stateful(IterableDataset[Any]):
    """Keeps its offset, which is its state."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.offset = 0

    def __iter__(self) -> Iterator[Any]:
        share = _share(self.length)
        while self.offset < len(share):
            self.offset += 1
            yield sample(share[self.offset - 1])
        self.offset = 0

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offset = state["offset"]


class _Iterator:
    def __init__(self, share: range) -> None:
        self.share, self.offset = share, 0

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Any:
        if self.offset == len(self.share):
            raise StopIteration
        self.offset += 1
        return sample(self.share[self.offset - 1])

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offset = state["offset"]


class StatefulIterator(IterableDataset[Any]):
    """Its iterators keep their offset, which is their state."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> _Iterator:
        return _Iterator(_share(self.length))


class Sharded(IterableDataset[Any]):
    """Is split into shards of unequal length, every other one with a state."""

    def __init__(self, length: int, num_shards: int = 4) -> None:
        self.length = length
        self.num_shards = num_shards

    def shard(self, num_shards: int, index: int) -> Any:
        assert get_worker_info() is None
        # Split at squares: shard 0 is empty if there are few samples.
        ends = [self.length * shard**2 // num_shards**2 for shard in range(num_shards + 1)]
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
    """Digests of the first batches of a pass, which is then abandoned."""
    return [digest(batch) for batch in itertools.islice(loader, steps)]


def rest(loader: ResumableDataLoader[Any]) -> list[str]:
    return [digest(batch) for batch in loader]
