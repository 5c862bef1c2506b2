"""seen() and unseen(): what an epoch has delivered, from the state alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Indices, ids
from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from dataporter import ConfigurationError, ResumableDataLoader, UnsupportedDatasetError


def loader_of(length: int = 20, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(length), **{"batch_size": 4, "seed": 1, **arguments})


def seen_of(loader: Any) -> tuple[list[int], list[int]]:
    return loader.seen().tolist(), loader.unseen().tolist()


ORDERS: list[dict[str, Any]] = [
    {},
    {"shuffle": True},
    {"order": "torch"},
    {"order": "blocks"},
    {"shuffle": True, "drop_last": True},
    {"shuffle": True, "tail": "uneven"},
]


@settings(max_examples=cases(60))
@given(data=st.data(), arguments=st.sampled_from(ORDERS), length=st.integers(1, 50))
def test_what_ranks_have_delivered_is_seen_whatever_world_and_batch_size_they_had(
    data: st.DataObject, arguments: dict[str, Any], length: int
) -> None:
    """An epoch in lives of other worlds and batch sizes, each left after some steps."""
    state = None
    delivered: set[int] = set()
    for _ in range(data.draw(st.integers(1, 3))):
        world, batch_size = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
        ranks = [
            loader_of(
                length,
                batch_size=batch_size,
                strategy="distributed",
                rank=rank,
                world_size=world,
                **arguments,
            )
            for rank in range(world)
        ]
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        steps = data.draw(st.integers(0, min(loader.remaining for loader in ranks)))
        for loader in ranks:
            batches = iter(loader)
            for _ in range(steps):
                delivered.update(ids(next(batches)))
        state = ranks[0].state_dict()
        for loader in ranks:
            seen, unseen = seen_of(loader)
            assert set(seen) == delivered
            assert sorted([*seen, *unseen]) == list(range(length))


def test_both_are_in_the_order_of_the_epoch() -> None:
    loader = loader_of(shuffle=True)
    batches = iter(loader)
    first = ids(next(batches))
    seen, unseen = seen_of(loader)
    assert seen == first
    assert unseen == [index for batch in batches for index in ids(batch)]
    assert loader.seen().dtype == loader.unseen().dtype == np.int64
    assert seen_of(loader)[0] == []
    assert loader.epoch == 1


def test_batches_that_came_early_are_seen() -> None:
    state = loader_of(shuffle=True).state_dict()
    loader = loader_of(shuffle=True, in_order=False)
    loader.load_state_dict({**state, "step": 3, "position": 4, "early": [[8, 16, 0]]})
    order = [
        int(index) for step in range(5) for index in loader_of(shuffle=True).samples_at(0, step)
    ]
    assert seen_of(loader) == (order[:4] + order[8:16], order[4:8] + order[16:])


def test_what_an_epoch_leaves_out_is_unseen_and_what_it_repeats_comes_once() -> None:
    loader = loader_of(18, drop_last=True)
    for _ in zip(range(4), loader):
        pass
    assert seen_of(loader) == (list(range(16)), [16, 17])
    limited = loader_of(18, steps_per_epoch=2)
    for _ in zip(range(2), limited):
        pass
    assert seen_of(limited) == (list(range(8)), list(range(8, 18)))
    padded = loader_of(9, batch_size=2, rank=1, world_size=2)
    for _ in zip(range(3), padded):
        pass
    assert seen_of(padded) == (list(range(9)), [])


def test_a_sample_that_failed_is_seen() -> None:
    class Failing(Indices):
        def __getitem__(self, index: int) -> int:
            if index == 2:
                raise OSError("truncated")
            return index

    loader: Any = ResumableDataLoader(Failing(8), 4, on_error="skip")
    next(iter(loader))
    assert seen_of(loader) == ([0, 1, 2, 3], [4, 5, 6, 7])


def sampler_of(kind: str, length: int) -> Any:
    rows: Any = range(length)
    if kind == "sequential":
        return SequentialSampler(rows)
    if kind == "random":
        return RandomSampler(rows)
    return DistributedSampler(rows, 1, 0, seed=3)


@pytest.mark.parametrize("kind", ["sequential", "random", "distributed"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_custom_sampler_is_walked_through(kind: str, resumed: bool) -> None:
    loader = loader_of(sampler=sampler_of(kind, 20))
    list(loader)
    batches = iter(loader)
    first = [index for _ in range(2) for index in ids(next(batches))]
    if resumed:
        state = loader.state_dict()
        loader = loader_of(sampler=sampler_of(kind, 20))
        loader.load_state_dict(state)
        batches = iter(loader)
    seen, unseen = seen_of(loader)
    assert seen == first
    assert unseen == [index for batch in batches for index in ids(batch)]


class Lengthless:
    def __iter__(self) -> Iterator[int]:
        return iter(range(20))


class Named:
    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return 2


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "of several ranks": (
        {"sampler": DistributedSampler(range(20), 2, 0)},  # type: ignore[arg-type]
        "this rank's indices",
    ),
    "without a length": ({"sampler": Lengthless()}, "no length"),
    "of names": ({"sampler": Named(), "batch_size": 1}, "whole numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_samplers_are_refused(name: str) -> None:
    arguments, reason = REFUSED[name]
    loader = loader_of(**arguments)
    for call in (loader.seen, loader.unseen):
        with pytest.raises(ConfigurationError, match=reason):
            call()


def test_a_stream_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(3))

    loader: ResumableDataLoader[Any] = ResumableDataLoader(Stream())
    for call in (loader.seen, loader.unseen):
        with pytest.raises(UnsupportedDatasetError, match="IterableDataset"):
            call()
