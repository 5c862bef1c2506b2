"""Iterable datasets resume at the exact next sample, whatever they offer (C10)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from budgets import cases, slow
from example_streams import (
    KINDS,
    Generated,
    Sharded,
    loader_of,
    numbers,
    rest,
    sample,
    taken,
    through_a_file,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from dataporter import (
    ShardedStream,
)

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


# ---- the law: stop anywhere, resume at the next sample


@kinds
@settings(max_examples=cases(60))
# A batch that joins a part of a leftover: the rest is read from within a batch.
@example(
    length=4, batch_size=3, stop=1, snapshot_every=1, strategy="simple", drop_last=False, epoch=0
)
@example(
    length=36, batch_size=4, stop=4, snapshot_every=1, strategy="simple", drop_last=False, epoch=0
)
@example(
    length=40, batch_size=3, stop=7, snapshot_every=3, strategy="simple", drop_last=False, epoch=0
)
@given(
    length=st.integers(0, 40),
    batch_size=st.integers(1, 7),
    stop=st.integers(0, 14),
    snapshot_every=st.integers(1, 4),
    strategy=st.sampled_from(["simple", "advanced", "distributed"]),
    drop_last=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_a_resumed_stream_is_the_uninterrupted_one(
    kind: str,
    length: int,
    batch_size: int,
    stop: int,
    snapshot_every: int,
    strategy: str,
    drop_last: bool,
    epoch: int,
) -> None:
    arguments = {
        "batch_size": batch_size,
        "snapshot_every": snapshot_every,
        "strategy": strategy,
        "drop_last": drop_last,
    }
    whole = loader_of(KINDS[kind](length), **arguments)
    whole.set_epoch(epoch)
    expected = [*rest(whole), "end", *rest(whole)]

    stopped = loader_of(KINDS[kind](length), **arguments)
    stopped.set_epoch(epoch)
    seen = taken(stopped, stop)
    ended = len(seen) < stop
    state = through_a_file(stopped.state_dict())

    resumed = loader_of(KINDS[kind](length), **arguments)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    found = [*seen, *(["end"] if ended else []), *rest(resumed)]
    if not ended:
        found += ["end", *rest(resumed)]
    assert found == expected


@kinds
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("stop", [0, *slow(1), 4, *slow(8), 100])
def test_workers_stop_and_resume(kind: str, workers: int, stop: int) -> None:
    expected = rest(loader_of(KINDS[kind](31), workers))
    stopped = loader_of(KINDS[kind](31), workers)
    seen = taken(stopped, stop)
    state = through_a_file(stopped.state_dict())
    resumed = loader_of(KINDS[kind](31), workers, prefetch_factor=3)
    resumed.load_state_dict(state)
    if stop < 100:
        assert seen + rest(resumed) == expected
    else:
        assert (seen, resumed.epoch, resumed.step) == (expected, 1, 0)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (2, 0), (5, 2)])
@pytest.mark.parametrize("stop", [0, 3, 7])
def test_other_workers_take_shards_over(before: int, after: int, stop: int) -> None:
    """Neither the batches nor their order depend on the workers."""
    expected = rest(loader_of(Sharded(37)))
    stopped = loader_of(Sharded(37), before)
    seen = taken(stopped, stop)
    resumed = loader_of(Sharded(37), after)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    assert seen + rest(resumed) == expected


@given(
    length=st.integers(0, 60),
    batch_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    stops=st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
@settings(max_examples=cases(60))
def test_the_batch_size_changes_and_each_sample_comes_once(
    length: int, batch_sizes: list[int], stops: list[int]
) -> None:
    found: dict[int, Any] = {}
    state = None
    for batch_size, stop in itertools.zip_longest(batch_sizes, stops[: len(batch_sizes) - 1]):
        loader = loader_of(Sharded(length), batch_size=batch_size)
        if state is not None:
            loader.load_state_dict(state)
        for batch in itertools.islice(loader, stop):
            for offset, number in enumerate(batch["index"].tolist()):
                assert number not in found
                found[number] = batch["explicit"][offset].item()
        if loader.epoch == 1:
            break
        state = through_a_file(loader.state_dict())
    whole = {
        int(batch["index"]): batch["explicit"].item()
        for batch in loader_of(Sharded(length), batch_size=1)
    }
    assert found == whole


@given(
    length=st.integers(0, 60),
    num_shards=st.integers(1, 7),
    worlds=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    stop=st.integers(0, 4),
)
@settings(max_examples=cases(60))
def test_the_number_of_ranks_changes_and_each_sample_comes_once(
    length: int, num_shards: int, worlds: list[int], stop: int
) -> None:
    worlds = [min(world, num_shards) for world in worlds]
    found: list[int] = []
    whole: dict[str, Any] | None = None
    for world in worlds:
        loaders = [
            loader_of(
                Sharded(length, num_shards), strategy="distributed", rank=rank, world_size=world
            )
            for rank in range(world)
        ]
        if whole is not None:
            for loader in loaders:
                loader.load_state_dict(whole)
        passes = [iter(loader) for loader in loaders]
        for batches in passes:
            found += numbers(list(itertools.islice(batches, stop)))
        parts = [loader.state_dict() for loader in loaders]
        whole = through_a_file(loaders[0].setup.format.join(parts))
        if whole["epoch"] == 1:
            break
    if whole is not None and whole["epoch"] == 0:
        for loader in loaders:
            loader.load_state_dict(whole)
            found += numbers(list(loader))
    assert sorted(found) == list(range(length))


# ---- one order, whatever the workers and ranks


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_has_the_same_batches_on_any_number_of_ranks_that_divides_the_shards(
    world: int,
) -> None:
    class Even(Sharded):
        def shard(self, num_shards: int, index: int) -> Any:
            return [sample(number) for number in range(index, self.length, num_shards)]

    alone = rest(loader_of(Even(48, 8)))
    steps = zip(
        *(rest(loader_of(Even(48, 8), rank=rank, world_size=world)) for rank in range(world))
    )
    assert [batch for step in steps for batch in step] == alone


def test_shards_take_turns() -> None:
    class Letters(IterableDataset[str]):
        num_shards = 3

        def shard(self, num_shards: int, index: int) -> list[str]:
            return list(["abcdefg", "", "xyz"][index])

        def __iter__(self) -> Iterator[str]:
            return iter("abcdefgxyz")

    batches = list(loader_of(Letters(), batch_size=2))
    assert batches == [["a", "b"], ["x", "y"], ["c", "d"], ["e", "f"], ["z", "g"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_one_shard(workers: int) -> None:
    loader = loader_of(Sharded(10, 1), workers)
    assert numbers(list(loader)) == list(range(10))


def test_workers_beyond_the_shards_have_nothing_to_read() -> None:
    loader = loader_of(Sharded(10, 2), 4)
    assert sorted(numbers(list(loader))) == list(range(10))


def test_every_sample_is_in_one_of_num_shards_shards() -> None:
    assert len(loader_of(Sharded(64, 64), num_shards=8, batch_size=100).state_dict()["shards"]) == 0
    batches = list(loader_of(Sharded(64, 64), num_shards=8, batch_size=100))
    assert len(batches) == 1
    assert sorted(numbers(batches)) == list(range(64))


def test_by_default_no_more_than_64_shards_are_open() -> None:
    loader = loader_of(Sharded(1000, 500), batch_size=100)
    assert loader.state_dict()["num_shards"] == 64
    assert sorted(numbers(list(loader))) == list(range(1000))


def test_the_protocol_is_seen_at_runtime() -> None:
    assert isinstance(Sharded(3), ShardedStream)
    assert not isinstance(Generated(3), ShardedStream)
