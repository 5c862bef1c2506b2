"""Epochs of a fixed number of steps over a stream: each continues where the last one ended (C2)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from budgets import slow
from example_streams import KINDS, loader_of, numbers, rest, taken, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import digest
from torch.utils.data import IterableDataset

from dataporter import ConfigurationError, ResumableDataLoader

pytestmark = pytest.mark.filterwarnings(
    "error:drop_last",
    "ignore:the stream has no exact state",
    "ignore:this pass has no batch",
)
LENGTH = 61


class Counting(IterableDataset[int]):
    """Has no state, and counts how many samples were read."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        for number in range(100):
            self.read += 1
            yield number


def epochs_of(loader: ResumableDataLoader[Any], epochs: int) -> list[list[str]]:
    return [[digest(batch) for batch in loader] for _ in range(epochs)]


def whole(kind: str, workers: int = 0) -> list[str]:
    return rest(loader_of(KINDS[kind](LENGTH), workers))


def cut(batches: list[str], limit: int) -> list[list[str]]:
    return [batches[start : start + limit] for start in range(0, len(batches), limit)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("workers", "persistent"), [(0, False), *slow((2, False)), *slow((2, True))]
)
@pytest.mark.parametrize("limit", [4, 7])
def test_the_epochs_together_are_one_long_pass_and_the_data_end_an_epoch_early(
    kind: str, workers: int, persistent: bool, limit: int
) -> None:
    long = cut(whole(kind, workers), limit)
    arguments = {"persistent_workers": True} if persistent else {}
    loader = loader_of(KINDS[kind](LENGTH), workers, steps_per_epoch=limit, **arguments)
    found = epochs_of(loader, len(long))
    assert found == long
    assert (loader.epoch, loader.step) == (len(long), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_end_of_the_data_the_stream_begins_again_in_its_next_epoch(kind: str) -> None:
    steps = len(whole(kind))
    limited = loader_of(KINDS[kind](LENGTH), steps_per_epoch=steps - 2)
    found = epochs_of(limited, 3)
    assert [len(epoch) for epoch in found] == [steps - 2, 2, steps - 2]
    other = loader_of(KINDS[kind](LENGTH))
    other.seek(epoch=2)
    assert found[2] == taken(other, steps - 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divisor", [1, 3])
def test_no_epoch_is_empty_where_the_limit_falls_on_the_end_of_the_data(
    kind: str, divisor: int
) -> None:
    length = 12 if kind in ("shards", "shuffled shards") else 36
    batches = len(rest(loader_of(KINDS[kind](length))))
    while batches % divisor:
        length += 3
        batches = len(rest(loader_of(KINDS[kind](length))))
    limit = batches // divisor
    loader = loader_of(KINDS[kind](length), steps_per_epoch=limit)
    states, found = [], []
    for _ in range(2 * divisor + 1):
        found.append([digest(batch) for batch in loader])
        states.append(loader.state_dict())
    assert [len(epoch) for epoch in found] == [limit] * len(found)
    assert list(itertools.chain(*found[:divisor])) == rest(loader_of(KINDS[kind](length)))
    for number, state in enumerate(states[:-1]):
        resumed = loader_of(KINDS[kind](length), steps_per_epoch=limit)
        resumed.load_state_dict(through_a_file(state))
        assert rest(resumed) == found[number + 1]


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    limit=st.integers(1, 8),
    stop=st.integers(0, 30),
    later=st.integers(1, 9),
    data=st.data(),
)
def test_a_state_resumes_the_same_epochs(
    kind: str, limit: int, stop: int, later: int, data: st.DataObject
) -> None:
    def programme(loader: Any) -> Iterator[tuple[int, int, str]]:
        for epoch in loader.epochs(8):
            for batch in loader:
                yield epoch, loader.step, digest(batch)

    loader = loader_of(KINDS[kind](LENGTH), steps_per_epoch=limit)
    expected = list(programme(loader_of(KINDS[kind](LENGTH), steps_per_epoch=limit)))
    seen = list(itertools.islice(programme(loader), stop))
    again = loader_of(KINDS[kind](LENGTH), steps_per_epoch=limit)
    again.load_state_dict(through_a_file(loader.state_dict()))
    assert again.state_dict() == loader.state_dict()
    assert seen + list(programme(again)) == expected
    # Another limit reads the same samples in the same order, from there on.
    other = loader_of(KINDS[kind](LENGTH), steps_per_epoch=later)
    other.load_state_dict(through_a_file(loader.state_dict()))
    line = [batch for _, _, batch in expected]
    long = whole(kind)
    if stop < len(long):
        follow = [batch for _, _, batch in programme(other)]
        common = min(len(long) - stop, len(follow))
        assert follow[:common] == long[stop : stop + common]
        assert line[: len(long)] == long[: len(line)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_is_left_loses_nothing_and_a_set_epoch_begins_at_the_start(kind: str) -> None:
    long = whole(kind)
    loader = loader_of(KINDS[kind](LENGTH), steps_per_epoch=5)
    seen = taken(loader, 5) + taken(loader, 2)
    assert (loader.epoch, loader.step) == (1, 2)
    loader.set_epoch(1)  # the pass of this epoch has begun: the epoch begins again, from there on
    seen += taken(loader, 5)
    assert loader.epoch == 1
    assert seen == long[:12]
    loader.set_epoch(0)
    assert taken(loader, 5) == long[:5]
    loader.seek(epoch=0)
    assert rest(loader) == long[:5]
    assert loader.delivered == 0
    for epoch in loader.epochs(3):
        assert epoch in (1, 2)
        first = loader.peek()
        loader.set_epoch(epoch)
        batches = list(loader)
        assert digest(first) == digest(batches[0]) == long[5 * epoch]


def test_a_loop_that_sets_each_epoch_continues() -> None:
    long = whole("shards")
    loader = loader_of(KINDS["shards"](LENGTH), steps_per_epoch=4)
    found = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        found += rest(loader)
    assert found == long[:12]


@pytest.mark.parametrize("changes", [False, True])
def test_without_workers_nothing_is_read_twice_unless_something_was_changed(changes: bool) -> None:
    stream = Counting()
    loader = loader_of(stream, steps_per_epoch=2)
    found = []
    for _ in range(4):
        found += [int(number) for batch in loader for number in batch]
        if changes:
            loader.collate_fn = lambda samples: torch.tensor(samples)
    assert found == list(range(24))
    assert stream.read == (6 + 12 + 18 + 24 if changes else 24)


def test_an_epoch_counts_its_own_samples_also_after_a_resume() -> None:
    loader = loader_of(KINDS["shards"](LENGTH), steps_per_epoch=4)
    taken(loader, 4)
    for batch in itertools.islice(loader, 2):
        assert len(batch["index"]) == 3
    assert loader.delivered == 6
    resumed = loader_of(KINDS["shards"](LENGTH), steps_per_epoch=4)
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    assert (resumed.epoch, resumed.step, resumed.delivered) == (1, 2, 6)


def test_ranks_share_the_epochs_and_any_number_of_them_resumes() -> None:
    def of(rank: int, size: int) -> ResumableDataLoader[Any]:
        return loader_of(KINDS["shards"](LENGTH), rank=rank, world_size=size, steps_per_epoch=3)

    loaders = [of(rank, 2) for rank in range(2)]
    seen = [number for loader in loaders for _ in range(2) for number in numbers(list(loader))]
    whole_state = loaders[0].setup.format.join([loader.state_dict() for loader in loaders])
    assert (whole_state["epoch"], whole_state["continued"], whole_state["earlier"]) == (2, 2, 36)
    alone = of(0, 1)
    alone.load_state_dict(through_a_file(whole_state))
    while len(seen) < LENGTH:
        seen += numbers(list(alone))
    assert sorted(seen) == list(range(LENGTH))


def test_a_limit_is_still_a_number() -> None:
    with pytest.raises(ConfigurationError, match="steps_per_epoch"):
        loader_of(KINDS["shards"](4), steps_per_epoch=0)
