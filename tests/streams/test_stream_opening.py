"""Opening a stream or a shard is seeded by (seed, epoch, shard), wherever it happens (C8)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from budgets import slow
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataporter import ResumableDataLoader, ShuffledStream, sample_rng

pytestmark = [
    pytest.mark.filterwarnings("ignore:the stream has no exact state"),
    pytest.mark.filterwarnings("ignore:iter.loader. begins epoch"),
]
LENGTH = 16


def _python(numbers: list[int]) -> list[int]:
    random.shuffle(numbers)
    return numbers


def _numpy(numbers: list[int]) -> list[int]:
    return [int(number) for number in np.random.permutation(numbers)]


def _torch(numbers: list[int]) -> list[int]:
    return [numbers[place] for place in torch.randperm(len(numbers))]


def _explicit(numbers: list[int]) -> list[int]:
    return [int(number) for number in sample_rng().permutation(numbers)]


SHUFFLES = {"python": _python, "numpy": _numpy, "torch": _torch, "sample_rng": _explicit}
Shuffle = Callable[[list[int]], list[int]]


def _share() -> list[int]:
    info = get_worker_info()
    first, every = (0, 1) if info is None else (info.id, info.num_workers)
    return list(range(first, LENGTH, every))


class Eager(IterableDataset[int]):
    def __init__(self, shuffle: Shuffle) -> None:
        self.shuffle = shuffle

    def __iter__(self) -> Iterator[int]:
        return iter(self.shuffle(_share()))


class Lazy(Eager):
    def __iter__(self) -> Iterator[int]:
        yield from self.shuffle(_share())


class AtEpoch(Eager):
    """Shuffles as soon as it knows the epoch."""

    def set_epoch(self, epoch: int) -> None:
        self.order = self.shuffle(list(range(LENGTH)))

    def __iter__(self) -> Iterator[int]:
        share = set(_share())
        return (number for number in self.order if number in share)


class EagerShards(Eager):
    num_shards = 4

    def shard(self, num_shards: int, index: int) -> list[int]:
        return self.shuffle(list(range(index, LENGTH, num_shards)))


class IteratedShards(EagerShards):
    def shard(self, num_shards: int, index: int) -> Any:
        numbers = list(range(index, LENGTH, num_shards))
        shuffle = self.shuffle

        class Shard:
            def __iter__(self) -> Iterator[int]:
                return iter(shuffle(list(numbers)))

        return Shard()


class Remembering(Eager):
    """Draws its order when it opens, and remembers it in its state."""

    order: list[int]
    at = 0
    loaded = False

    def __iter__(self) -> Iterator[int]:
        if not self.loaded:
            self.order, self.at = self.shuffle(_share()), 0
        self.loaded = False
        while self.at < len(self.order):
            self.at += 1
            yield self.order[self.at - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at, self.loaded = state["order"], state["at"], True


STREAMS: dict[str, Callable[[Shuffle], Any]] = {
    "eager": Eager,
    "lazy": Lazy,
    "set_epoch": AtEpoch,
    "shard": EagerShards,
    "shard's iter": IteratedShards,
    "shuffled": lambda shuffle: ShuffledStream(EagerShards(shuffle), window=3),
    "shuffled shard's iter": lambda shuffle: ShuffledStream(IteratedShards(shuffle), window=3),
    "state": Remembering,
}
ENGINES: dict[str, dict[str, Any]] = {
    "inline": {},
    "one worker": {"num_workers": 1},
    "two workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
}


def loader_of(dataset: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(dataset, 3, **{"seed": 3, **arguments})


def numbers(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def _disturb() -> None:
    """What the training draws for itself, which no sample may depend on."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(random.SystemRandom().randrange(1 << 31))


@pytest.mark.parametrize("strategy", ["advanced", *slow("simple")])
@pytest.mark.parametrize("engine", ["inline", *slow("one worker"), "persistent", "two workers"])
@pytest.mark.parametrize("shuffle", ["python", *slow("numpy", "torch", "sample_rng")])
@pytest.mark.parametrize("stream", STREAMS)
def test_an_epoch_is_a_function_of_seed_and_epoch(
    stream: str, shuffle: str, engine: str, strategy: str
) -> None:
    arguments = {**ENGINES[engine], "strategy": strategy}
    make = STREAMS[stream]
    _disturb()
    first = loader_of(make(SHUFFLES[shuffle]), **arguments)
    expected = [numbers(first) for _ in range(3)]
    assert all(
        sorted(number for batch in epoch for number in batch) == list(range(LENGTH))
        for epoch in expected
    )
    assert expected[0] != expected[1] != expected[2] != expected[0]

    _disturb()
    other = loader_of(make(SHUFFLES[shuffle]), **{**arguments, "seed": 4})
    if stream != "shuffled shard's iter":  # that has a seed of its own
        assert numbers(other) != expected[0]

    for epoch, stop in ((0, 2), (1, 1), (2, 4)):
        _disturb()
        stopped = loader_of(make(SHUFFLES[shuffle]), **arguments)
        stopped.set_epoch(epoch)
        batches = iter(stopped)
        seen = numbers(next(batches) for _ in range(stop))
        state = stopped.state_dict()
        _disturb()
        resumed = loader_of(make(SHUFFLES[shuffle]), **arguments)
        resumed.load_state_dict(state)
        assert seen + numbers(resumed) == expected[epoch]


@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("stream", STREAMS)
def test_shuffles_of_each_kind_resume_inline(stream: str, shuffle: str) -> None:
    test_an_epoch_is_a_function_of_seed_and_epoch(stream, shuffle, "inline", "advanced")
    test_an_epoch_is_a_function_of_seed_and_epoch(stream, shuffle, "inline", "simple")


@pytest.mark.parametrize("stream", STREAMS)
def test_opening_leaves_the_generators_of_the_training_alone(stream: str) -> None:
    for shuffle in (_python, _numpy, _torch):
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        loader = loader_of(STREAMS[stream](shuffle))
        list(loader)
        drawn = (random.random(), float(np.random.rand()), float(torch.rand(())))
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        iter(DataLoader([0]))  # draws once in each pass, and so do we
        assert drawn == (random.random(), float(np.random.rand()), float(torch.rand(())))
