"""Samples that a resume reads again are compared with those that were delivered (C10, C12)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from budgets import slow
from subjects import digest
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import ResumableDataLoader, ShuffledStream, StateMismatchError

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
LENGTH = 200


def _from_random() -> Iterator[int]:
    numbers = list(range(LENGTH))
    random.Random(os.urandom(8)).shuffle(numbers)
    return iter(numbers)


def _from_numpy() -> Iterator[int]:
    return (int(number) for number in np.random.default_rng().permutation(LENGTH))


def _from_torch() -> Iterator[int]:
    generator = torch.Generator()
    generator.seed()
    return iter(torch.randperm(LENGTH, generator=generator).tolist())


def _from_the_system() -> Iterator[int]:
    return iter(sorted(range(LENGTH), key=lambda _: os.urandom(8)))


def _through_a_buffer() -> Iterator[int]:
    """The shuffle buffer of many libraries, with its own generator."""
    rng, numbers = random.Random(os.urandom(8)), iter(range(LENGTH))
    buffer = list(itertools.islice(numbers, 50))
    for number in numbers:
        place = rng.randrange(50)
        yield buffer[place]
        buffer[place] = number
    yield from buffer


UNSEEDED: dict[str, Callable[[], Iterator[int]]] = {
    "random": _from_random,
    "numpy": _from_numpy,
    "torch": _from_torch,
    "os.urandom": _from_the_system,
    "a buffer": _through_a_buffer,
}
FORMS: dict[str, Callable[[int], Any]] = {
    "number": lambda number: number,
    "tensor": lambda number: torch.tensor([number, 0]),
    "array": lambda number: {"x": np.full(100, number, np.float32)},
    "text": lambda number: {"text": f"a file/{number}.txt", "same": [1, 2]},
}


class Unseeded(IterableDataset[Any]):
    def __init__(self, order: Callable[[], Iterator[int]], form: str = "number") -> None:
        self.order = order
        self.form = FORMS[form]

    def __iter__(self) -> Iterator[Any]:
        return map(self.form, self.order())


class UnseededShards(Unseeded):
    num_shards = 2

    def shard(self, num_shards: int, index: int) -> Any:
        return (self.form(number) for number in self.order() if number % num_shards == index)


class Forgetful(Unseeded):
    """Has a state, without the order."""

    offset = 0

    def __iter__(self) -> Iterator[Any]:
        for number in itertools.islice(self.order(), self.offset, None):
            self.offset += 1
            yield self.form(number)
        self.offset = 0

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offset = state["offset"]


def loader_of(dataset: Any, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"batch_size": 4, "seed": 3, "collate_fn": list, **arguments}
    return ResumableDataLoader(dataset, num_workers=workers, **arguments)


def state_after(dataset: Any, steps: int, workers: int = 0, **arguments: Any) -> dict[str, Any]:
    loader = loader_of(dataset, workers, **arguments)
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    return loader.state_dict()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [Unseeded, UnseededShards, Forgetful])
@pytest.mark.parametrize("order", UNSEEDED)
def test_a_stream_that_shuffles_by_itself_is_found_out(order: str, kind: Any, form: str) -> None:
    for steps in (3, 30):
        state = state_after(kind(UNSEEDED[order], form), steps)
        resumed = loader_of(kind(UNSEEDED[order], form))
        resumed.load_state_dict(state)
        words = "state_dict.. leaves out" if kind is Forgetful else "its own generator"
        with pytest.raises(StateMismatchError, match=words):
            next(iter(resumed))


@pytest.mark.parametrize("workers", [1, *slow(2)])
@pytest.mark.parametrize("kind", [Unseeded, UnseededShards, Forgetful])
def test_workers_find_it_out_before_anything_is_delivered(kind: Any, workers: int) -> None:
    state = state_after(kind(_from_random), 5, workers)
    resumed = loader_of(kind(_from_random), workers)
    resumed.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="does not repeat its samples"):
        next(iter(resumed))


def test_on_mismatch_warn_resumes_without_the_comparison() -> None:
    state = state_after(Unseeded(_from_random), 3)
    resumed = loader_of(Unseeded(_from_random))
    resumed.load_state_dict(state, on_mismatch="warn")
    assert len(list(resumed)) == LENGTH // 4 - 3


def test_a_short_stream_of_few_values_is_found_out() -> None:
    def coins() -> Iterator[int]:
        return iter(random.Random(os.urandom(8)).choices([0, 1], k=40))

    state = state_after(Unseeded(coins), 9)
    resumed = loader_of(Unseeded(coins))
    resumed.load_state_dict(state)
    with pytest.raises(StateMismatchError):
        list(resumed)


class Augmented(IterableDataset[Any]):
    """Everything that may come in a sample, with values drawn from the global generators."""

    def __iter__(self) -> Iterator[Any]:
        for number in range(60):
            yield {
                "drawn": (random.random(), np.random.rand(3), torch.randn(5)),
                "nan": float("nan"),
                "set": {f"a{number}", "b", "c"},
                "object": object(),
                "function": lambda: None,
                "number": number,
            }


@pytest.mark.parametrize("strategy", ["advanced", "simple"])
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_the_same_raises_no_alarm(workers: int, strategy: str) -> None:
    class Same(Augmented):
        def __iter__(self) -> Iterator[Any]:
            info = get_worker_info()
            every = 1 if info is None else info.num_workers
            first = 0 if info is None else info.id
            yield from itertools.islice(super().__iter__(), first, None, every)

    arguments = {"strategy": strategy, "collate_fn": _numbers}
    expected = list(loader_of(Same(), workers, **arguments))
    for steps in (1, 7, 12):
        resumed = loader_of(Same(), workers, **arguments)
        resumed.load_state_dict(state_after(Same(), steps, workers, **arguments))
        assert list(resumed) == expected[steps:]


def _numbers(samples: list[Any]) -> list[Any]:
    return [(sample["number"], sample["drawn"][0]) for sample in samples]


def test_long_replays_of_the_simple_strategy_raise_no_alarm() -> None:
    """They are requested in parts, which must not cut a batch that was seeded as a whole."""

    class Long(IterableDataset[float]):
        def __iter__(self) -> Iterator[float]:
            return (random.random() for _ in range(9000))

    arguments = {"strategy": "simple", "batch_size": 7}
    expected = list(loader_of(Long(), **arguments))
    resumed = loader_of(Long(), **arguments)
    resumed.load_state_dict(state_after(Long(), 1200, **arguments))
    assert list(resumed) == expected[1200:]


def test_a_shuffled_stream_of_such_shards_is_found_out() -> None:
    stream = ShuffledStream(UnseededShards(_from_numpy), window=5)
    state = state_after(stream, 6)
    resumed = loader_of(ShuffledStream(UnseededShards(_from_numpy), window=5))
    resumed.load_state_dict(state)
    with pytest.raises(StateMismatchError):
        list(resumed)


def test_a_worker_that_replaces_another_compares_as_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = loader_of(Unseeded(_from_random), 1, prefetch_factor=2)
        batches = iter(loader)
        for _ in range(10):
            next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(StateMismatchError, match="its own generator"):
            list(batches)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_state_that_leads_back_raises_no_alarm(batch_size: int, every: int) -> None:
    def numbers() -> Iterator[int]:
        return iter(range(LENGTH))

    arguments = {"batch_size": batch_size, "snapshot_every": every}
    for steps in (1, 2, 17):
        resumed = loader_of(Forgetful(numbers), **arguments)
        resumed.load_state_dict(state_after(Forgetful(numbers), steps, **arguments))
        assert next(iter(resumed)) == list(range(steps * batch_size, (steps + 1) * batch_size))


# ---- from the first batch on


class LosesItsGenerator(IterableDataset[Any]):
    """Its state leaves out the generator that it draws from."""

    def __init__(self) -> None:
        self.offset, self.loaded, self.generator = 0, False, random.Random(1)

    def __iter__(self) -> Iterator[Any]:
        self.offset = self.offset if self.loaded else 0
        self.loaded = False
        while self.offset < 40:
            self.offset += 1
            yield self.offset, self.generator.random()

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offset, self.loaded = state["offset"], True


@pytest.mark.parametrize("strategy", ["advanced", "simple"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 5])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_state_of_the_first_batches_is_compared(
    strategy: str, batch_size: int, steps: int
) -> None:
    loader = ResumableDataLoader(LosesItsGenerator(), batch_size, strategy=strategy, seed=1)
    for _ in itertools.islice(loader, steps):
        pass
    state = loader.state_dict()
    for _ in loader:  # its generator has moved
        pass
    resumed = ResumableDataLoader(loader.dataset, batch_size, strategy=strategy, seed=1)
    resumed.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="does not repeat its samples"):
        next(iter(resumed))


class Aliasing(IterableDataset[int]):
    """Keeps the state that it is given, and resets it."""

    def __init__(self) -> None:
        self.place = {"offset": 0}

    def __iter__(self) -> Aliasing:
        self.place["offset"] = 0
        return self

    def __next__(self) -> int:
        if self.place["offset"] == 17:
            raise StopIteration
        self.place["offset"] += 1
        return self.place["offset"]

    def state_dict(self) -> dict[str, int]:
        return self.place

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_dataset_may_keep_the_state_that_it_is_given(steps: int) -> None:
    loader = ResumableDataLoader(Aliasing(), 3)
    batches = iter(loader)
    seen = [next(batches).tolist() for _ in range(steps)]
    resumed = ResumableDataLoader(Aliasing(), 3)
    resumed.load_state_dict(loader.state_dict())
    found = [*seen, *(batch.tolist() for batch in resumed)]
    assert list(itertools.chain(*found)) == list(range(1, 18))


class Broken(IterableDataset[Any]):
    def __iter__(self) -> Broken:
        self.number = -1
        return self

    def __next__(self) -> Any:
        self.number += 1
        if self.number > 11:
            raise StopIteration
        if self.number == 1:
            raise ValueError("broken")
        return self.number, random.random()


@pytest.mark.parametrize("strategy", ["advanced", "simple"])
def test_a_substitute_that_draws_is_not_another_sample(strategy: str) -> None:
    def loader() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Broken(), 3, strategy=strategy, seed=1, on_error=lambda *_: (-1, random.random())
        )

    whole = loader()
    batches = iter(whole)
    next(batches)
    resumed = loader()
    resumed.load_state_dict(whole.state_dict())
    assert [digest(batch) for batch in resumed] == [digest(batch) for batch in batches]
