"""Custom samplers on several ranks: each rank's part is checked, and joined parts are exact."""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

import pytest
import torch
import torch.distributed as dist
from own_samplers import LENGTH, Buckets, InPlaceStateful, OwnNumpy, TokenBudget
from subjects import Indices, ids
from torch.utils.data import DistributedSampler, WeightedRandomSampler
from worlds import outcome, ranks_of

from dataporter import ResumableDataLoader, StateMismatchError

RANKS = 2


def distributed(rank: int, **arguments: Any) -> ResumableDataLoader[Any]:
    sampler: Any = DistributedSampler(range(LENGTH), RANKS, rank, **arguments)  # type: ignore[arg-type]
    return ResumableDataLoader(Indices(LENGTH), 2, sampler=sampler)


def sharded(rank: int, sampler: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    """A sampler that shards, and does not say so."""
    world = {"rank": rank, "world_size": RANKS, "seed": 3}
    return ResumableDataLoader(Indices(LENGTH), batch_sampler=sampler, **world, **arguments)


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


def joined(loaders: list[ResumableDataLoader[Any]]) -> Any:
    """What ``state_dict(gather=True)`` returns on the ranks of a group."""
    parts = [through_json(loader.state_dict()) for loader in loaders]
    return through_json(loaders[0].setup.format.join(parts))


@pytest.mark.parametrize("saved_on", range(RANKS))
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "seed=0.*seed=5"),
        ({"shuffle": False}, "shuffle=True.*shuffle=False"),
        ({"drop_last": True}, "drop_last=False.*drop_last=True"),
    ],
)
def test_another_distributed_sampler_is_refused_on_the_rank_that_saved(
    saved_on: int, step: int, changes: dict[str, Any], words: str
) -> None:
    loader = distributed(saved_on)
    list(loader)
    loader.sampler.set_epoch(1)  # type: ignore[union-attr]
    batches = iter(loader)
    for _ in range(step):
        next(batches)
    state = through_json(loader.state_dict())
    with pytest.raises(StateMismatchError, match=words):
        distributed(saved_on, **changes).load_state_dict(state)
    resumed = distributed(saved_on)
    resumed.load_state_dict(state)
    if not step:
        resumed.sampler.set_epoch(1)  # type: ignore[union-attr]
    assert [ids(batch) for batch in resumed] == [ids(batch) for batch in batches]


@pytest.mark.parametrize("step", [0, 2])
def test_other_indices_are_refused_though_the_sampler_does_not_say_its_seed(step: int) -> None:
    class Shuffled:
        def __init__(self, key: int) -> None:
            self.key = key

        def __iter__(self) -> Any:
            order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(self.key))
            return iter(order.reshape(-1, 2).tolist())

    loader = sharded(1, Shuffled(1))
    list(loader)
    for _ in zip(range(step), loader):
        pass
    state = through_json(loader.state_dict())
    with pytest.raises(StateMismatchError, match="order_digest"):
        sharded(1, Shuffled(2)).load_state_dict(state)
    sharded(1, Shuffled(1)).load_state_dict(state)
    sharded(0, Shuffled(2)).load_state_dict(state)  # rank 1 knows nothing of rank 0's


def test_the_part_of_any_rank_will_do_where_all_have_as_many() -> None:
    loader = distributed(0)
    loader.set_epoch(3)
    next(iter(loader))
    state = through_json(loader.state_dict())
    whole = distributed(1)
    whole.set_epoch(3)
    expected = [ids(batch) for batch in whole]
    resumed = distributed(1)
    resumed.load_state_dict(state)
    assert (resumed.step, resumed.sampler.epoch) == (1, 3)  # type: ignore[union-attr]
    again = distributed(1)
    again.load_state_dict(through_json(resumed.state_dict()))
    for one in (resumed, again):
        assert [ids(batch) for batch in one] == expected[1:]


def test_the_part_of_another_rank_is_refused_where_the_ranks_have_other_numbers() -> None:
    loader = sharded(0, TokenBudget(0, RANKS))
    next(iter(loader))
    refused = sharded(1, TokenBudget(1, RANKS))
    with pytest.raises(StateMismatchError, match=r"gather=True"):
        refused.load_state_dict(loader.state_dict())
    stateful = sharded(0, Buckets())
    list(stateful)
    next(iter(stateful))
    other = sharded(1, OwnNumpyBatches())
    before = other.state_dict()
    with pytest.raises(StateMismatchError):
        other.load_state_dict(stateful.state_dict())
    assert other.state_dict() == before


class OwnNumpyBatches(OwnNumpy):
    def __iter__(self) -> Any:
        return iter([[index] for index in super().__iter__()])


@pytest.mark.parametrize("stateful", [False, True])
def test_joined_parts_resume_each_rank_at_every_step(stateful: bool) -> None:
    def build() -> list[ResumableDataLoader[Any]]:
        if stateful:
            return [sharded(0, Buckets()), sharded(1, Batches(InPlaceStateful()))]
        return [sharded(rank, TokenBudget(rank, RANKS)) for rank in range(RANKS)]

    loaders = build()
    seen: list[list[list[int]]] = [[], []]
    states = [(0, 0, joined(loaders))]
    for epoch in range(2):
        for loader in loaders:
            loader.set_epoch(epoch)
        for batches in zip_longest(*loaders):
            for rank, batch in enumerate(batches):
                if batch is not None:
                    seen[rank].append(ids(batch))
            states.append((len(seen[0]), len(seen[1]), joined(loaders)))
    assert len(seen[0]) != len(seen[1])
    for *counts, state in states:
        resumed = build()
        for rank, (loader, count) in enumerate(zip(resumed, counts)):
            loader.load_state_dict(state)
            rest = []
            for epoch in range(loader.epoch, 2):
                loader.set_epoch(epoch)
                rest += [ids(batch) for batch in loader]
            assert rest == seen[rank][count:], (rank, count)


class Batches:
    def __init__(self, sampler: Any) -> None:
        self.one_by_one = sampler

    def __iter__(self) -> Any:
        for index in self.one_by_one:
            yield [index]


def test_a_joined_state_of_another_number_of_ranks_and_a_damaged_one_are_refused() -> None:
    state = joined([distributed(0), distributed(1)])
    alone = ResumableDataLoader(
        Indices(LENGTH),
        2,
        sampler=DistributedSampler(range(LENGTH), 1, 0),  # type: ignore[arg-type]
    )
    with pytest.raises(StateMismatchError, match="world_size"):
        alone.load_state_dict(state)
    entry = ["sampler", 0, 0, 0, 0, None]
    for ranks in ([], [entry], [[*entry[:5], 1]] * 2, [[*entry[:4], -1, None]] * 2, ["a", "b"]):
        with pytest.raises(ValueError, match="'ranks'"):
            distributed(0).load_state_dict({**state, "ranks": ranks})
    for entry in (json.dumps({}), "x", json.dumps([1])):
        with pytest.raises(ValueError, match="'sampler'"):
            distributed(0).load_state_dict({**distributed(0).state_dict(), "sampler": entry})


def of_a_group() -> dict[str, Any]:
    rank = dist.get_rank()
    dataset = Indices(LENGTH)
    weights = [1.0] * LENGTH
    told: dict[str, Any] = {}

    def first(**arguments: Any) -> Any:
        return outcome(lambda: ids(next(iter(ResumableDataLoader(dataset, **arguments)))))

    told["weighted"] = first(batch_size=2, sampler=WeightedRandomSampler(weights, 8))
    told["budget"] = first(batch_sampler=TokenBudget())
    alone = {"rank": 0, "world_size": 1, "seed": 1}
    told["on purpose"] = first(batch_size=2, sampler=WeightedRandomSampler(weights, 8), **alone)
    generator = torch.Generator().manual_seed(rank)
    told["apart"] = first(
        batch_size=2, sampler=WeightedRandomSampler(weights, 8, generator=generator)
    )
    told["one replica"] = first(
        batch_size=2,
        sampler=DistributedSampler(dataset, 1, 0),
    )

    def budget() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(dataset, batch_sampler=TokenBudget(rank, 2))

    loader = budget()
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict(gather=True)
    told["parts"] = loader.state_dict()["rank"]
    resumed = budget()
    resumed.load_state_dict(state)
    told["equal"] = [ids(batch) for batch in resumed] == [ids(batch) for batch in batches]
    told["state"] = state
    other = outcome(
        lambda: ResumableDataLoader(
            dataset, batch_sampler=TokenBudget((rank + 1) % 2, 2)
        ).load_state_dict(state)
    )
    told["swapped"] = other
    told["first part"] = outcome(
        lambda: budget().load_state_dict({**state, "rank": 0, "ranks": None})
    )
    return told


@pytest.mark.slow
def test_ranks_of_a_group() -> None:
    first, second = ranks_of(2, of_a_group)
    for told in (first, second):
        for name in ("weighted", "budget"):
            kind, message, _ = told[name]
            assert kind == "ConfigurationError"
            assert "same batches on all 2 ranks" in message
            assert "rank=0, world_size=1" in message
        assert len(told["on purpose"]) == len(told["apart"]) == len(told["one replica"]) == 2
        assert told["equal"]
        assert told["swapped"][0] == "StateMismatchError"
    assert first["state"] == second["state"]
    assert (first["parts"], second["parts"]) == (0, 1)
    assert {first["first part"] and first["first part"][0], second["first part"][0]} == {
        "RankMismatchError",
        "StateMismatchError",
    }
