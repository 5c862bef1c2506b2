"""Samplers for a plain DataLoader: the loader's order and state, by the batches that were seen."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch.distributed as dist
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Indices, ids
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler
from worlds import outcome, ranks_of

from dataporter import (
    ConfigurationError,
    InvalidStateError,
    ResumableDataLoader,
    ResumableDistributedSampler,
    ResumableSampler,
    StateMismatchError,
)

TAILS = st.sampled_from(["pad", "drop", "uneven"])


def plain(sampler: Any, batch_size: int, length: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Indices(length), batch_size, sampler=sampler, **arguments)


def take(loader: Any, steps: int) -> list[list[int]]:
    """At most so many batches of a pass; none is begun where none is wanted."""
    taken: list[list[int]] = []
    for batch in loader if steps else ():
        taken.append(ids(batch))
        if len(taken) == steps:
            break
    return taken


@given(
    length=st.integers(0, 60),
    batch_size=st.integers(1, 9),
    order=st.sampled_from(["shuffled", "sequential", "torch"]),
    tail=TAILS,
    epoch=st.integers(0, 3),
)
def test_a_plain_loader_with_the_sampler_gives_the_batches_of_ours(
    length: int, batch_size: int, order: str, tail: str, epoch: int
) -> None:
    arguments: dict[str, Any] = {"order": order, "seed": 4, "tail": tail}
    ours = ResumableDataLoader(Indices(length), batch_size, **arguments)
    sampler = ResumableSampler(Indices(length), batch_size, **arguments)
    theirs = plain(sampler, batch_size, length)
    ours.set_epoch(epoch)
    sampler.set_epoch(epoch)
    for number in (epoch, epoch + 1):
        assert len(theirs) == len(ours)
        assert [ids(batch) for batch in theirs] == [ids(batch) for batch in ours]
        assert sampler.epoch == number
    sampler.set_epoch(9)
    assert (sampler.epoch, sampler.state_dict(delivered=0)["epoch"]) == (9, 9)


@given(
    length=st.integers(1, 60),
    chain=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 5)), max_size=4),
    tail=TAILS,
    ours=st.lists(st.booleans(), min_size=5, max_size=5),
)
@settings(max_examples=cases(60))
def test_samplers_and_loaders_take_over_from_each_other_in_any_world(
    length: int, chain: list[tuple[int, int, int]], tail: str, ours: list[bool]
) -> None:
    """Each link of the chain is run by samplers and loaders side by side, and saved by one."""
    state: dict[str, Any] | None = None
    for place, (batch_size, world_size, steps) in enumerate([*chain, (3, 2, length + 1)]):
        states = []
        for rank in range(world_size):
            arguments: dict[str, Any] = {"rank": rank, "world_size": world_size, "tail": tail}
            arguments |= {"shuffle": True, "seed": 8}
            loader = ResumableDataLoader(
                Indices(length), batch_size, strategy="distributed", **arguments
            )
            sampler = ResumableDistributedSampler(length, batch_size, **arguments)
            if state is not None:
                loader.load_state_dict(state)
                sampler.load_state_dict(state)
            stop = min(steps, loader.remaining)
            expected = take(loader, stop)
            assert take(plain(sampler, batch_size, length), stop) == expected
            if stop == steps:
                assert sampler.state_dict(delivered=stop) == loader.state_dict()
            states.append((loader.state_dict(), sampler.state_dict(delivered=stop)))
        state = json.loads(json.dumps(states[0][0 if ours[place] else 1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_have_fetched_ahead_comes_again_and_what_was_seen_does_not(
    workers: int,
) -> None:
    length, batch_size = 37, 3
    whole = ResumableSampler(length, batch_size, shuffle=True, seed=2)
    expected = [ids(batch) for batch in plain(whole, batch_size, length)]
    for stop in (1, 4, 9, len(expected)) if workers else range(1, len(expected) + 1):
        sampler = ResumableSampler(length, batch_size, shuffle=True, seed=2)
        seen = take(plain(sampler, batch_size, length, num_workers=workers), stop)
        state = sampler.state_dict(delivered=len(seen))
        resumed = ResumableSampler(length, batch_size, shuffle=True)
        resumed.load_state_dict(state)
        assert resumed.state_dict(delivered=0) == state
        # Stopped once more, so that delivered counts from where the pass began.
        loader = plain(resumed, batch_size, length, num_workers=workers)
        middle = take(loader, 1)
        last = ResumableSampler(length, batch_size, shuffle=True)
        last.load_state_dict(resumed.state_dict(delivered=len(middle)))
        rest = [ids(batch) for batch in plain(last, batch_size, length, num_workers=workers)]
        assert seen + middle + rest == expected
        assert last.epoch == 0
        take(plain(last, batch_size, length), 1)
        assert last.epoch == 1


def test_a_state_with_early_batches_is_gone_on_with() -> None:
    state = ResumableDataLoader(Indices(40), 4, shuffle=True, seed=1).state_dict()
    state = {**state, "step": 2, "early": [[4, 8, 0], [12, 16, 0]]}
    loader = ResumableDataLoader(Indices(40), 4, shuffle=True)
    sampler = ResumableSampler(40, 4, shuffle=True)
    loader.load_state_dict(state)
    sampler.load_state_dict(state)
    batches, drawn = iter(loader), iter(plain(sampler, 4, 40))
    for delivered in range(1, 9):
        assert ids(next(batches)) == ids(next(drawn))
        assert sampler.state_dict(delivered=delivered) == loader.state_dict()


def test_delivered_is_checked() -> None:
    sampler = ResumableSampler(10, 4, seed=1)
    with pytest.raises(ConfigurationError, match="no pass has begun"):
        sampler.state_dict(delivered=1)
    list(sampler)
    with pytest.raises(ConfigurationError, match=r"4 batches after step 0.*3 left"):
        sampler.state_dict(delivered=4)
    with pytest.raises(ConfigurationError, match="delivered=-1"):
        sampler.state_dict(delivered=-1)
    with pytest.raises(TypeError, match="delivered"):
        sampler.state_dict()  # type: ignore[call-arg]


def test_a_refused_state_changes_nothing() -> None:
    sampler = ResumableSampler(10, 4, shuffle=True, seed=1)
    other = ResumableSampler(11, 4, shuffle=True, seed=1)
    next(iter(other))
    with pytest.raises(StateMismatchError, match="dataset_length"):
        sampler.load_state_dict(other.state_dict(delivered=1))
    with pytest.raises(InvalidStateError):
        sampler.load_state_dict({})
    assert sampler.state_dict(delivered=0)["dataset_length"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": None}, "expected the DataLoader's batch size"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dataset": -1}, "dataset=-1"),
        ({"dataset": True}, "no length"),
        ({"tail": "pad", "drop_last": True}, "contradict"),
        ({"order": "unknown"}, "order='unknown'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigurationError, TypeError), match=message):
        ResumableSampler(**{"dataset": 10, **arguments})


def test_frameworks_find_a_truthful_distributed_sampler() -> None:
    """Lightning leaves a loader alone whose sampler is a DistributedSampler."""
    sampler = ResumableDistributedSampler(
        Indices(11), 2, rank=1, world_size=3, shuffle=True, seed=6, drop_last=True
    )
    assert isinstance(sampler, DistributedSampler)
    assert (sampler.rank, sampler.num_replicas, sampler.drop_last) == (1, 3, True)
    assert (sampler.shuffle, sampler.seed, sampler.epoch) == (True, 6, 0)
    assert (sampler.num_samples, sampler.total_size, len(sampler)) == (2, 6, 2)
    assert len(list(sampler)) == 2


def test_a_loader_that_keeps_its_own_place_refuses_these_samplers() -> None:
    sampler = ResumableSampler(10, 2, seed=1)
    for arguments in (
        {"sampler": sampler},
        {"batch_sampler": BatchSampler(sampler, 2, drop_last=False)},
        {"sampler": ResumableDistributedSampler(10, 2, rank=0, world_size=1)},
    ):
        with pytest.raises(ConfigurationError, match="for a plain DataLoader"):
            ResumableDataLoader(Indices(10), **arguments)


def sampling_rank() -> dict[str, Any]:
    sampler = ResumableDistributedSampler(30, 2, shuffle=True)
    loader = plain(sampler, 2, 30)
    told: dict[str, Any] = {"seen": take(loader, 3), "seed": sampler.seed}
    state = sampler.state_dict(delivered=3)
    told["state"] = state
    odd = dist.get_rank() == 1
    told["refused"] = outcome(lambda: sampler.load_state_dict(None if odd else state))  # type: ignore[arg-type]
    told["differing"] = outcome(lambda: sampler.load_state_dict({**state, "seed": 5 + odd}))
    sampler.load_state_dict({**state, "seed": 5})
    told["taken over"] = sampler.seed
    told["built"] = outcome(lambda: ResumableDistributedSampler(31 if odd else 30, 2, seed=1))
    return told


def test_distributed_samplers_of_a_group_agree_as_loaders_do() -> None:
    first, second = ranks_of(2, sampling_rank)
    assert first["seed"] == second["seed"]
    assert first["state"] == second["state"]
    seen = [index for rank in (first, second) for batch in rank["seen"] for index in batch]
    assert len(set(seen)) == 12
    assert first["refused"][0] == "RankMismatchError"
    assert second["refused"][0] == "InvalidStateError"
    assert first["taken over"] == second["taken over"] == 5
    for rank in (first, second):
        assert "seed: 5 on rank 0; 6 on rank 1" in rank["differing"][1]
        assert "dataset_length: 30 on rank 0; 31 on rank 1" in rank["built"][1]
