"""The law of the library: a stream joined from its pieces equals the uninterrupted one."""

from __future__ import annotations

import json
from collections import Counter
from itertools import zip_longest
from typing import Any

import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, Indices, digest, ids
from torch.utils.data import RandomSampler, WeightedRandomSampler

from dataporter import ResumableDataLoader

LENGTHS = st.integers(0, 60)
BATCH_SIZES = st.one_of(st.integers(1, 20), st.none())
STRATEGIES = st.sampled_from(["simple", "advanced", "distributed"])
ORDERS = st.sampled_from(["shuffled", "sequential", "torch"])


def take(loader: ResumableDataLoader[Any], count: int) -> list[str]:
    """The digests of the next batches, over the ends of epochs."""
    taken: list[str] = []
    while len(taken) < count:
        for batch in loader:
            taken.append(digest(batch))
            if len(taken) == count:
                break
        else:
            taken.append(f"end of epoch {loader.epoch - 1}")
    return taken


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


@given(
    length=LENGTHS,
    batch_size=BATCH_SIZES,
    drop_last=st.booleans(),
    order=ORDERS,
    strategy=STRATEGIES,
    seed=st.integers(0, 2**63 - 1),
    stops=st.lists(st.integers(0, 12), min_size=1, max_size=4),
)
@settings(max_examples=cases(300))
def test_a_stream_stopped_and_resumed_is_the_uninterrupted_one(
    length: int,
    batch_size: int | None,
    drop_last: bool,
    order: str,
    strategy: str,
    seed: int,
    stops: list[int],
) -> None:
    """Several stops; any epoch; every resume in a loader that knows nothing but the state."""

    def build(**arguments: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Augmented(length),
            batch_size,
            drop_last=drop_last and batch_size is not None,
            order=order,
            strategy=strategy,
            **arguments,
        )

    uninterrupted = take(build(seed=seed), sum(stops) + 8)
    loader, joined = build(seed=seed), []
    for stop in stops:
        joined += take(loader, stop)
        state = through_json(loader.state_dict())
        loader = build()
        loader.load_state_dict(state)
        assert loader.state_dict() == state, "a second save loses nothing"
    joined += take(loader, 8)
    assert joined == uninterrupted[: len(joined)]


@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    drop_last=st.booleans(),
    strategy=STRATEGIES,
    workers=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
    persistent=st.booleans(),
    stops=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
@settings(max_examples=cases(12))
def test_workers_change_nothing_at_any_resume(
    length: int,
    batch_size: int,
    drop_last: bool,
    strategy: str,
    workers: tuple[int, int, int],
    persistent: bool,
    stops: tuple[int, int],
) -> None:
    def build(num_workers: int, **arguments: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Augmented(length),
            batch_size,
            shuffle=True,
            drop_last=drop_last,
            strategy=strategy,
            num_workers=num_workers,
            persistent_workers=persistent and num_workers > 0,
            **arguments,
        )

    uninterrupted = take(build(0, seed=5), sum(stops) + 5)
    loader, joined = build(workers[0], seed=5), []
    for stop, num_workers in zip(stops, workers[1:]):
        joined += take(loader, stop)
        state = loader.state_dict()
        loader = build(num_workers)
        loader.load_state_dict(state)
    joined += take(loader, 5)
    assert joined == uninterrupted[: len(joined)]


@given(
    length=st.integers(1, 80),
    pieces=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5)), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_batch_size_may_change_and_each_sample_stays_what_it_was(
    length: int, pieces: list[tuple[int, int]], seed: int
) -> None:
    """``advanced``: each sample of the epoch once, with the augmentation of its position (C8)."""

    def build(batch_size: int) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(Augmented(length), batch_size, shuffle=True, seed=seed)

    def samples(batch: dict[str, Any]) -> list[str]:
        return [digest({k: v[i] for k, v in batch.items()}) for i in range(len(batch["index"]))]

    whole = [one for batch in build(7) for one in samples(batch)]
    joined, state = [], None
    for batch_size, steps in [*pieces, (3, length)]:
        loader = build(batch_size)
        if state is not None:
            loader.load_state_dict(state)
        for _, batch in zip(range(steps), loader):
            joined += samples(batch)
        state = loader.state_dict()
        if state["epoch"] > 0:
            break
    assert joined == whole


@given(
    length=st.integers(1, 120),
    chain=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5
    ),
    shuffle=st.booleans(),
)
def test_the_world_may_change_and_every_sample_comes_once(
    length: int, chain: list[tuple[int, int, int]], shuffle: bool
) -> None:
    """``distributed``: chains of (batch size, world size), the state of one rank loaded on all."""
    seen: Counter[int] = Counter()
    padding = 0
    state: dict[str, Any] | None = None
    for batch_size, world_size, steps in [*chain, (4, 2, length)]:
        ranks = [
            ResumableDataLoader(
                Augmented(length),
                batch_size,
                shuffle=shuffle,
                strategy="distributed",
                seed=9,
                rank=rank,
                world_size=world_size,
            )
            for rank in range(world_size)
        ]
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
        for _, batches in zip(range(steps), zip_longest(*ranks)):
            seen.update(index for batch in batches for index in ids(batch))
        states = [loader.state_dict() for loader in ranks]
        assert all(other == states[0] for other in states), "the state is the same on every rank"
        state = states[0]
        padding = max(padding, world_size - 1)
        if state["epoch"] > 0:
            break
    assert set(seen) == set(range(length))
    assert sum(seen.values()) - length <= padding


def test_augmentation_is_the_same_on_any_number_of_ranks() -> None:
    def stream(world_size: int) -> dict[int, str]:
        found = {}
        for rank in range(world_size):
            loader = ResumableDataLoader(
                Augmented(24), 4, shuffle=True, seed=1, rank=rank, world_size=world_size
            )
            for batch in loader:
                for place, index in enumerate(ids(batch)):
                    found[index] = digest({k: v[place] for k, v in batch.items()})
        return found

    assert stream(1) == stream(2) == stream(3) == stream(6)


@pytest.mark.parametrize("workers", [0, 2])
@given(stop=st.integers(0, 14), batch_size=st.integers(1, 9), data=st.data())
@settings(max_examples=cases(8))
def test_batches_delivered_early_are_neither_lost_nor_repeated(
    workers: int, stop: int, batch_size: int, data: st.DataObject
) -> None:
    """``in_order=False``, which only workers can make use of."""

    def build(size: int) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Indices(40), size, shuffle=True, seed=3, num_workers=workers, in_order=False
        )

    loader = build(4)
    seen = [index for _, batch in zip(range(min(stop, 9)), loader) for index in ids(batch)]
    state = through_json(loader.state_dict())
    resumed = build(batch_size)
    resumed.load_state_dict(state)
    seen += [index for batch in resumed for index in ids(batch)]
    assert sorted(seen) == list(range(40))


class Drawing:
    """A sampler that draws lazily from the global generators."""

    def __iter__(self) -> Any:
        for _ in range(20):
            yield int(torch.randint(50, ()))

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(
    "sampler",
    [
        lambda: RandomSampler(range(50)),
        lambda: RandomSampler(range(50), generator=torch.Generator().manual_seed(4)),
        lambda: RandomSampler(range(50), replacement=True, num_samples=70),
        lambda: WeightedRandomSampler([1.0, 2.0] * 25, 40),
        Drawing,
    ],
    ids=["random", "random with generator", "replacement", "weighted", "lazy"],
)
@given(stops=st.lists(st.integers(0, 9), min_size=1, max_size=3), batch_size=st.integers(1, 12))
@settings(max_examples=cases(25))
def test_samplers_of_the_users_own_resume_exactly(
    sampler: Any, stops: list[int], batch_size: int
) -> None:
    def build() -> ResumableDataLoader[Any]:
        torch.manual_seed(17)
        return ResumableDataLoader(Augmented(50), batch_size, sampler=sampler(), seed=2)

    uninterrupted = take(build(), sum(stops) + 10)
    loader, joined = build(), []
    for stop in stops:
        joined += take(loader, stop)
        state = through_json(loader.state_dict())
        loader = build()
        torch.rand(3)
        loader.load_state_dict(state)
    joined += take(loader, 10)
    assert joined == uninterrupted[: len(joined)]
