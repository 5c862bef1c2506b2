"""The outer loop: epochs(), peek(), steps_per_epoch= and the warnings about what a loop loses."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, Indices, digest, ids
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from dataporter import ConfigurationError, ResumableDataLoader

pytestmark = [
    pytest.mark.filterwarnings("error::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:the stream has no exact state"),
]
STEPS = 4


class Shards(IterableDataset[int]):
    def __init__(self, length: int = 11, endless: bool = False) -> None:
        self.length, self.endless = length, endless

    @property
    def num_shards(self) -> int:
        return 2

    def shard(self, num_shards: int, index: int) -> Iterator[int]:
        rounds = itertools.count() if self.endless else range(1)
        for _ in rounds:
            yield from range(index, self.length, num_shards)

    def __iter__(self) -> Iterator[int]:
        return self.shard(1, 0)


class Once(IterableDataset[int]):
    """Reads on from where it is, whoever iterates over it."""

    def __init__(self) -> None:
        self.numbers = iter(range(11))

    def __iter__(self) -> Iterator[int]:
        return self.numbers


def build(kind: str = "order", **arguments: Any) -> ResumableDataLoader[Any]:
    given: dict[str, Any] = {"batch_size": 3, "seed": 5, **arguments}
    if kind == "order":
        return ResumableDataLoader(Indices(11), shuffle=True, **given)
    if kind == "sampler":
        sampler: Any = DistributedSampler(range(11), num_replicas=1, rank=0)
        return ResumableDataLoader(Indices(11), sampler=sampler, **given)
    return ResumableDataLoader(Shards(), **given)


KINDS = pytest.mark.parametrize("kind", ["order", "sampler", "stream"])


def epochs_of(loader: ResumableDataLoader[Any], stop: int) -> list[tuple[int, list[int]]]:
    return [(epoch, ids(batch)) for epoch in loader.epochs(stop) for batch in loader]


# ---- epochs()


@KINDS
def test_a_resumed_outer_loop_delivers_what_the_uninterrupted_one_does(kind: str) -> None:
    expected = epochs_of(build(kind), 3)
    states = [build(kind).state_dict()]
    loader = build(kind)
    for _ in loader.epochs(3):
        for _ in loader:
            states.append(loader.state_dict())
    assert len(states) == len(expected) + 1
    for done, state in enumerate(states):
        resumed = build(kind)
        resumed.load_state_dict(state)
        assert epochs_of(resumed, 3) == expected[done:]


def test_epochs_begins_the_epoch_that_was_saved_at_its_last_step_so_that_its_end_is_run() -> None:
    loader = build()
    for _ in loader:
        state = loader.state_dict()
    resumed = build()
    resumed.load_state_dict(state)
    assert [(epoch, len(list(resumed))) for epoch in resumed.epochs(3)] == [(0, 0), (1, 4), (2, 4)]


def test_epochs_are_counted_whatever_the_body_reads() -> None:
    whole = [epoch for epoch, _ in epochs_of(build(), 3)]
    assert whole == [0] * 4 + [1] * 4 + [2] * 4
    loader = build()
    assert list(loader.epochs(3)) == [0, 1, 2], "nothing"
    loader = build()
    assert [(epoch, len(list(loader)), len(list(loader))) for epoch in loader.epochs(3)] == [
        (0, 4, 4),
        (1, 4, 4),
        (2, 4, 4),
    ]
    assert list(build().epochs(0)) == []
    loader.set_epoch(7)
    assert list(loader.epochs(3)) == []


@KINDS
def test_a_pass_that_is_left_starts_the_same_epoch_again_within_epochs(kind: str) -> None:
    expected = epochs_of(build(kind), 3)
    loader, found = build(kind), []
    for epoch in loader.epochs(3):
        next(iter(loader))
        found += [(epoch, ids(batch)) for batch in loader]
    assert found == expected


def test_epochs_follows_a_state_that_is_loaded_in_its_body() -> None:
    loader = build()
    state = loader.state_dict()
    seen = []
    for epoch in loader.epochs(3):
        seen.append(epoch)
        list(loader)
        if epoch == 1 and len(seen) == 2:
            loader.load_state_dict(state)
    assert seen == [0, 1, 0, 1, 2]


def test_after_epochs_a_pass_that_is_left_is_an_epoch_as_before() -> None:
    loader = build()
    for _ in loader.epochs(2):
        break
    next(iter(loader))
    with pytest.warns(RuntimeWarning, match="rest of epoch 0"):
        list(loader)
    assert loader.epoch == 2


@pytest.mark.parametrize("stop", [None, 1.5, -1, "3", True])
def test_epochs_takes_a_number(stop: Any) -> None:
    with pytest.raises(ConfigurationError, match="stop="):
        build().epochs(stop)


@pytest.mark.parametrize("inner", [False, True])
def test_epochs_sets_the_epoch_of_a_custom_sampler_as_torchs_loop_does(inner: bool) -> None:
    def sampler() -> Any:
        return DistributedSampler(range(11), num_replicas=1, rank=0)

    theirs, expected = sampler(), []
    for epoch in range(3):
        theirs.set_epoch(epoch)
        expected += [(epoch, ids(batch)) for batch in DataLoader(Indices(11), 3, sampler=theirs)]
    if inner:
        batches: Any = BatchSampler(sampler(), 3, drop_last=False)
        loader = ResumableDataLoader(Indices(11), batch_sampler=batches)
    else:
        loader = ResumableDataLoader(Indices(11), 3, sampler=sampler())
    assert epochs_of(loader, 3) == expected


def test_an_epoch_that_epochs_has_begun_is_in_the_state() -> None:
    loader = build()
    outer = loader.epochs(6)
    next(outer)
    next(iter(loader))
    assert next(outer) == 1
    assert (loader.epoch, loader.step) == (1, 0)


# ---- peek()


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_peek_is_the_next_batch_and_moves_nothing(kind: str, workers: int) -> None:
    expected = epochs_of(build(kind), 2)
    loader = build(kind, num_workers=workers, persistent_workers=workers > 0)
    found = []
    for epoch in loader.epochs(2):
        first = loader.peek()
        state = loader.state_dict()
        assert ids(loader.peek()) == ids(first)
        assert loader.state_dict() == state
        batches = iter(loader)
        while (batch := next(batches, None)) is not None:
            found.append((epoch, ids(batch)))
            if loader.step < STEPS:
                assert ids(loader.peek()) == expected[len(found)][1]
    assert found == expected


def test_a_peeked_batch_may_be_changed() -> None:
    loader: Any = ResumableDataLoader(torch.zeros(6, 2), 2)
    loader.peek().add_(1)
    batches = iter(loader)
    next(batches)
    loader.peek().add_(1)
    assert float(sum(batch.sum() for batch in batches)) == 0


def test_peek_after_a_load_keeps_the_place() -> None:
    loader = build()
    next(iter(loader))
    resumed = build()
    resumed.load_state_dict(loader.state_dict())
    resumed.peek()
    assert resumed.state_dict() == loader.state_dict()
    assert len(list(resumed)) == STEPS - 1


def test_peek_at_the_end_of_an_epoch() -> None:
    loader = build()
    batches = iter(loader)
    for _ in range(STEPS):
        next(batches)
    shown = ids(loader.peek())
    assert list(batches) == []
    assert shown == ids(next(iter(loader))), "the next epoch's"
    stream = build("stream")
    stream.load_state_dict(_at_the_end("stream"))
    with pytest.raises(ConfigurationError, match="epoch 0 has no batch left after step 4"):
        stream.peek()


def _at_the_end(kind: str) -> dict[str, Any]:
    loader = build(kind)
    for _ in loader:
        state = loader.state_dict()
    return state


def test_peek_looks_at_the_pass_that_moves_the_loader() -> None:
    expected = epochs_of(build(), 2)
    loader = build()
    first, second = iter(loader), iter(loader)
    next(first)
    assert ids(loader.peek()) == expected[1][1]
    with pytest.warns(RuntimeWarning, match="rest of epoch 0"):
        assert ids(next(second)) == expected[4][1]
    assert ids(loader.peek()) == expected[5][1]
    del second
    loader.set_epoch(1)
    assert ids(loader.peek()) == expected[4][1], "no pass is left"


def test_peek_takes_nothing_from_a_stream_that_cannot_be_read_twice() -> None:
    loader = ResumableDataLoader(Once(), 3)
    first = loader.peek()
    assert [ids(batch) for batch in loader] == [ids(first), [3, 4, 5], [6, 7, 8], [9, 10]]


def test_peek_raises_what_the_next_batch_will_raise() -> None:
    class Broken(Indices):
        def __getitem__(self, index: int) -> int:
            raise KeyError(index)

    loader = ResumableDataLoader(Broken(4), 2)
    with pytest.raises(KeyError):
        loader.peek()
    assert loader.step == 0


@settings(max_examples=cases(60))
@given(st.lists(st.sampled_from(["next", "peek", "leave", "end", "reload"]), max_size=20))
def test_peeks_change_nothing(calls: list[str]) -> None:
    """The same calls with and without the peeks."""

    def run(peeks: bool) -> list[Any]:
        loader = ResumableDataLoader(Augmented(7), 2, shuffle=True, seed=1)
        batches: Iterator[Any] | None = None
        seen: list[Any] = []
        for call in calls:
            if call == "peek" and peeks:
                loader.peek()
            elif call == "next":
                batches = iter(loader) if batches is None else batches
                batch = next(batches, None)
                seen.append(None if batch is None else digest(batch))
                batches = None if batch is None else batches
            elif call == "leave":
                batches = None
            elif call == "end" and batches is not None:
                seen += map(digest, batches)
                batches = None
            elif call == "reload":
                batches = None
                loader.load_state_dict(loader.state_dict())
            seen.append((loader.state_dict(), torch.rand(1).item(), np.random.random()))
        return seen

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = []
        for peeks in (False, True):
            torch.manual_seed(0)
            np.random.seed(0)
            outcomes.append(run(peeks))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("kind", ["sampler", "stream"])
def test_what_is_set_after_a_peek_that_began_the_pass_counts(kind: str) -> None:
    def epoch_of(epoch: int) -> list[list[int]]:
        loader = build(kind)
        loader.set_epoch(epoch)
        return [ids(batch) for batch in loader]

    loader = build(kind)
    loader.peek()
    batches = iter(loader)
    loader.set_epoch(2)
    assert [ids(batch) for batch in batches] == epoch_of(2)
    assert loader.epoch == 3
    loader.peek()
    loader.set_epoch(3)
    assert [ids(batch) for batch in loader] == epoch_of(3)
    loader.peek()
    loader.collate_fn = list
    with pytest.raises(ConfigurationError, match=r"collate_fn was set .* before peek\(\)"):
        list(loader)


def test_the_epoch_that_is_set_on_a_sampler_after_a_peek_counts() -> None:
    loader: Any = build("sampler")
    loader.peek()
    loader.sampler.set_epoch(1)
    twin: Any = build("sampler")
    twin.sampler.set_epoch(1)
    assert [ids(batch) for batch in loader] == [ids(batch) for batch in twin]
    assert loader.epoch == 2


# ---- steps_per_epoch=


@KINDS
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_ends_after_steps_per_epoch(kind: str, workers: int) -> None:
    whole = epochs_of(build(kind), 3)
    expected = [batch for epoch in range(3) for batch in whole[4 * epoch : 4 * epoch + 2]]
    if kind == "stream":  # epoch 1 continues epoch 0, up to the end of the data
        expected[2:4] = [(1, batch) for _, batch in whole[2:4]]
    loader = build(kind, steps_per_epoch=2, num_workers=workers)
    assert (len(loader), loader.remaining) == (2, 2)
    states, found = [], []
    for epoch in loader.epochs(3):
        for batch in loader:
            found.append((epoch, ids(batch)))
            states.append(loader.state_dict())
    assert found == expected
    for done, state in enumerate(states, start=1):
        resumed = build(kind, steps_per_epoch=2)
        resumed.load_state_dict(state)
        assert resumed.remaining == done % 2
        assert epochs_of(resumed, 3) == expected[done:]


def test_steps_per_epoch_makes_an_endless_stream_count() -> None:
    loader = ResumableDataLoader(Shards(endless=True), 3, steps_per_epoch=5)
    assert len(loader) == 5
    assert [len(list(loader)) for _ in range(3)] == [5, 5, 5]


def test_more_steps_than_an_epoch_has_change_nothing() -> None:
    assert epochs_of(build(steps_per_epoch=9), 2) == epochs_of(build(), 2)
    assert len(build(steps_per_epoch=9)) == STEPS


def test_steps_per_epoch_and_other_worlds() -> None:
    for rank in range(2):
        loader = build(rank=rank, world_size=2, steps_per_epoch=1)
        whole = build(rank=rank, world_size=2)
        assert [ids(batch) for batch in loader] == [ids(next(iter(whole)))]


def test_no_step_beyond_the_epoch_can_be_asked_for() -> None:
    loader = build(steps_per_epoch=2)
    loader.seek(step=2)
    for ask in (lambda: loader.seek(step=3), lambda: loader.samples_at(0, 2)):
        with pytest.raises(ConfigurationError, match="steps_per_epoch=2"):
            ask()


@pytest.mark.parametrize("steps", [0, -1, 1.5, "2", True])
def test_steps_per_epoch_is_a_number(steps: Any) -> None:
    with pytest.raises(ConfigurationError, match="steps_per_epoch="):
        build(steps_per_epoch=steps)


# ---- warnings


def test_a_look_at_a_batch_that_costs_an_epoch_is_said_once() -> None:
    loader = build()
    next(iter(loader))
    with pytest.warns(
        RuntimeWarning, match=r"begins epoch 1 .* rest of epoch 0 .* loader\.peek\(\)"
    ):
        next(iter(loader))
    next(iter(loader))


def test_a_loaded_place_that_a_look_throws_away_is_said() -> None:
    loader = build(sampler=None)
    loader.seek(step=2)
    resumed = build()
    resumed.load_state_dict(loader.state_dict())
    next(iter(resumed))
    with pytest.warns(RuntimeWarning, match=r"which began at its step 2, was left after 1 batch\."):
        next(iter(resumed))


def test_no_warning_where_nothing_is_lost() -> None:
    loader = build()
    for _ in zip(range(STEPS), loader, strict=False):
        pass
    list(loader)
    sequential = ResumableDataLoader(Indices(11), 3)
    for _ in range(2):
        next(iter(sequential))
    again = build()
    next(iter(again))
    again.set_epoch(0)
    list(again)
    for number, _ in enumerate(again):
        if number == 3:
            break
    list(again)


def test_an_empty_pass_after_the_last_step_is_said_but_not_in_epochs() -> None:
    resumed = build()
    resumed.load_state_dict(_at_the_end("order"))
    with pytest.warns(
        RuntimeWarning, match=r"after step 4, the last of epoch 0, .* loader\.epochs"
    ):
        assert list(resumed) == []
    assert list(ResumableDataLoader(Indices(0), 3)) == []


def test_an_epoch_that_throws_a_loaded_place_away_is_said() -> None:
    loader = build()
    loader.seek(epoch=3, step=2)
    resumed = build()
    resumed.load_state_dict(loader.state_dict())
    with pytest.warns(
        RuntimeWarning, match=r"epoch 0 was set, .* epoch 3, step 2\. .*loader\.epochs"
    ):
        resumed.set_epoch(0)
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(3)
    assert len(list(resumed)) == 2
    resumed.set_epoch(0)
