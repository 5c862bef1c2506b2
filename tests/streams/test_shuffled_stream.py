"""A shuffled stream has every sample once, shuffled in its window, and resumes exactly (C10)."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from budgets import cases
from example_streams import Generated, Sharded, numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from subjects import digest

from dataporter import (
    ConfigurationError,
    DatasetChangedError,
    ResumableDataLoader,
    ShuffledStream,
    StateMismatchError,
    UnsupportedDatasetError,
)


def loader_of(stream: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(stream, **{"batch_size": 3, "seed": 1, **arguments})


@given(
    length=st.integers(0, 80),
    shards=st.integers(1, 5),
    window=st.integers(1, 90),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=cases(60))
def test_each_window_has_its_own_samples_once(
    length: int, shards: int, window: int, seed: int
) -> None:
    plain, shuffled = Sharded(length, shards), ShuffledStream(Sharded(length, shards), window, seed)
    for index in range(shards):
        expected = [row["index"] for row in plain.shard(shards, index)]
        found = [row["index"] for row in shuffled.shard(shards, index)]
        for start in range(0, len(expected), window):
            there = slice(start, start + window)
            assert sorted(found[there]) == expected[there]
        assert len(found) == len(expected)


def test_epochs_shards_windows_and_seeds_have_different_orders() -> None:
    def orders(seed: int, epoch: int) -> list[tuple[int, ...]]:
        stream = ShuffledStream(Plain(400), window=50, seed=seed)
        stream.set_epoch(epoch)
        orders = []
        for shard in range(2):
            found = [number // 2 for number in stream.shard(2, shard)]
            orders += [tuple(n % 50 for n in found[at : at + 50]) for at in range(0, 200, 50)]
        return orders

    found = [*orders(1, 0), *orders(1, 1), *orders(2, 0)]
    assert len(set(found)) == 3 * 2 * 4
    assert orders(1, 0) == orders(1, 0)


class Plain(Sharded):
    def shard(self, num_shards: int, index: int) -> Any:
        return range(index, self.length, num_shards)


def test_a_sample_lands_anywhere_in_its_window() -> None:
    landed: Counter[int] = Counter()
    for epoch in range(600):
        stream = ShuffledStream(Plain(12, 1), window=12)
        stream.set_epoch(epoch)
        landed[list(stream.shard(1, 0)).index(3)] += 1
    assert chisquare([landed[index] for index in range(12)]).pvalue > 1e-4


@pytest.mark.parametrize("stop", range(0, 22, 3))
def test_a_resume_rereads_its_window_and_nothing_before_it(stop: int) -> None:
    read: list[int] = []

    class Counting(Sharded):
        def shard(self, num_shards: int, index: int) -> Any:
            iterator = super().shard(4, 1)
            iterator.piece = iterator.share = range(100)
            return _Counting(iterator, read)

    stopped = loader_of(ShuffledStream(Counting(100, 1), window=20))
    seen = list(itertools.islice(stopped, stop))
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = loader_of(ShuffledStream(Counting(100, 1), window=20))
    resumed.load_state_dict(state)
    read.clear()
    seen.append(next(iter(resumed)))
    assert min(read) >= (stop * 3 - 4) // 20 * 20
    assert len(read) <= 40
    whole = loader_of(ShuffledStream(Counting(100, 1), window=20))
    assert [digest(b) for b in seen] == [digest(b) for b in itertools.islice(whole, stop + 1)]


class _Counting:
    def __init__(self, iterator: Any, read: list[int]) -> None:
        self.iterator, self.read = iterator, read

    def __iter__(self) -> _Counting:
        return self

    def __next__(self) -> Any:
        self.read.append(self.iterator.offset)
        return next(self.iterator)

    def state_dict(self) -> dict[str, Any]:
        return self.iterator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.iterator.load_state_dict(state)


class Failing(_Counting):
    def __next__(self) -> Any:
        found = super().__next__()
        if found["index"] in (2, 11, 12, 40):
            raise ValueError("broken")
        return found


@pytest.mark.filterwarnings("ignore:.* failed .on_error='skip'")
@pytest.mark.parametrize("stop", range(15))
def test_samples_that_fail_are_skipped_once(stop: int) -> None:
    class Broken(Sharded):
        def shard(self, num_shards: int, index: int) -> Any:
            iterator = super().shard(4, 1)
            iterator.share = range(45)
            return Failing(iterator, [])

    def build() -> ResumableDataLoader[Any]:
        return loader_of(ShuffledStream(Broken(45, 1), window=10), on_error="skip")

    expected = list(build())
    assert sorted(numbers(expected)) == sorted(set(range(45)) - {2, 11, 12, 40})
    stopped = build()
    seen = list(itertools.islice(stopped, stop))
    resumed = build()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert len(seen) == stop
    assert [digest(b) for b in [*seen, *resumed]] == [digest(b) for b in expected]


def test_another_window_is_another_order() -> None:
    state = loader_of(ShuffledStream(Sharded(40), window=5)).state_dict()
    with pytest.raises(StateMismatchError, match=r"shuffled\(window=5, seed=0\)"):
        loader_of(ShuffledStream(Sharded(40), window=6)).load_state_dict(state)


def test_a_window_that_has_lost_samples_is_noticed() -> None:
    loader = loader_of(ShuffledStream(Sharded(40, 2), window=50))
    list(itertools.islice(loader, 12))
    resumed = loader_of(ShuffledStream(Sharded(20, 2), window=50))
    resumed.load_state_dict(loader.state_dict())
    with pytest.raises(DatasetChangedError, match="resume on the data"):
        list(resumed)


def test_streams_that_it_cannot_shuffle_are_refused() -> None:
    with pytest.raises(UnsupportedDatasetError, match="Generated has no num_shards"):
        ShuffledStream(Generated(3))
    with pytest.raises(ConfigurationError, match="window=0"):
        ShuffledStream(Sharded(3), window=0)
    with pytest.raises(ConfigurationError, match="seed"):
        ShuffledStream(Sharded(3), seed=-1)


def test_it_is_iterated_over_as_one_stream() -> None:
    def whole() -> Iterator[int]:
        return (row["index"] for row in ShuffledStream(Sharded(30), window=4))

    assert sorted(whole()) == list(range(30))
