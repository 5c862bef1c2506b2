"""Weighted orders in loaders: one sequence of draws, in any world, from any state."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, Indices, ids
from worlds import ranks_of

from dataporter import (
    ResumableDataLoader,
    ResumableDistributedSampler,
    ResumableSampler,
    StateMismatchError,
    WeightedOrder,
    inspect_checkpoint,
    save_atomically,
)

LENGTH = 29
WEIGHTS = [(index * 7) % 5 for index in range(LENGTH)]
ABSENT = {index for index, weight in enumerate(WEIGHTS) if not weight}
SEED = 6


def order_of(replacement: bool) -> WeightedOrder:
    return WeightedOrder(WEIGHTS, replacement=replacement, samples=60 if replacement else 20)


def loader_of(replacement: bool, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"order": order_of(replacement), "seed": SEED, **arguments}
    return ResumableDataLoader(Indices(LENGTH), **arguments)


def undisturbed(replacement: bool, epoch: int) -> list[int]:
    loader = loader_of(replacement)
    loader.set_epoch(epoch)
    return [ids(batch)[0] for batch in loader]


@pytest.mark.parametrize("replacement", [True, False])
@given(
    chain=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 4)), max_size=4),
    epoch=st.integers(0, 3),
)
@settings(max_examples=cases(50))
def test_a_chain_of_worlds_delivers_the_draws_of_the_uninterrupted_epoch(
    replacement: bool, chain: list[tuple[int, int, int]], epoch: int
) -> None:
    seen: list[int] = []
    state: Any = None
    for batch_size, world_size, steps in [*chain, (3, 2, 100)]:
        arguments = {"batch_size": batch_size, "tail": "uneven", "strategy": "distributed"}
        ranks = [
            loader_of(replacement, rank=rank, world_size=world_size, **arguments)
            for rank in range(world_size)
        ]
        for loader in ranks:
            if state is None:
                loader.set_epoch(epoch)
            else:
                loader.load_state_dict(json.loads(json.dumps(state)))
        if ranks[0].epoch != epoch:
            break
        passes = [iter(loader) for loader in ranks]
        for _ in range(steps):
            batches = [next(batches, None) for batches in passes]
            if batches[0] is None:
                break
            seen += [index for batch in batches if batch is not None for index in ids(batch)]
        state = ranks[0].state_dict()
    assert Counter(seen) == Counter(undisturbed(replacement, epoch))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("strategy", ["simple", "advanced", "distributed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_delivers_what_the_uninterrupted_one_does(
    replacement: bool, strategy: str, num_workers: int
) -> None:
    def build() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Augmented(LENGTH),
            4,
            order=order_of(replacement),
            seed=SEED,
            strategy=strategy,
            num_workers=num_workers,
        )

    loader = build()
    list(loader)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    rest = list(batches)
    resumed = build()
    resumed.load_state_dict(state)
    assert resumed.samples_at(resumed.epoch, resumed.step).tolist() == rest[0]["index"].tolist()
    for got, expected in zip(resumed, rest, strict=True):
        assert {k: v.tolist() for k, v in got.items()} == {
            k: v.tolist() for k, v in expected.items()
        }
    assert len(json.dumps(state)) < 1000
    assert not ABSENT & {index for batch in rest for index in batch["index"].tolist()}


def test_other_weights_are_refused_with_both_names_and_what_to_pass() -> None:
    state = loader_of(True).state_dict()
    for other in (WeightedOrder(WEIGHTS), WeightedOrder([1] * LENGTH, samples=60)):
        loader = loader_of(True, order=other)
        with pytest.raises(StateMismatchError) as caught:
            loader.load_state_dict(state)
        message = str(caught.value)
        assert order_of(True).name in message
        assert other.name in message
        assert (
            "pass the weights, samples= and replacement= that the state was saved with" in message
        )
    with pytest.warns(RuntimeWarning, match="cannot be known"):
        loader_of(True, order=WeightedOrder(WEIGHTS)).load_state_dict(state, on_mismatch="warn")


def test_a_state_can_be_inspected_without_the_weights(tmp_path: Any) -> None:
    save_atomically(loader_of(True).state_dict(), tmp_path / "state.pt")
    report = str(inspect_checkpoint(tmp_path / "state.pt"))
    assert "only the program that has the weights" in " ".join(report.split())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("replacement", [True, False])
def test_a_sample_that_fails_is_replaced_by_another_of_the_draws(
    replacement: bool, num_workers: int
) -> None:
    class Bad(Indices):
        def __getitem__(self, index: int) -> int:
            if index in (4, 11):
                raise OSError(f"sample {index}")
            return index

    loader = ResumableDataLoader(
        Bad(LENGTH),
        5,
        order=order_of(replacement),
        seed=SEED,
        on_error="replace",
        num_workers=num_workers,
    )
    with pytest.warns(RuntimeWarning, match="replace"):
        seen = [index for batch in loader for index in ids(batch)]
    assert len(seen) == (60 if replacement else 20)
    assert not {4, 11} & set(seen)
    assert not ABSENT & set(seen)


def test_samplers_for_a_plain_loader_draw_the_same() -> None:
    order = order_of(True)
    assert list(ResumableSampler(LENGTH, 5, order=order, seed=SEED)) == undisturbed(True, 0)
    ranks = [
        list(
            ResumableDistributedSampler(
                LENGTH, 5, rank=rank, world_size=2, order=order, seed=SEED, tail="uneven"
            )
        )
        for rank in range(2)
    ]
    assert Counter(ranks[0] + ranks[1]) == Counter(undisturbed(True, 0))


def of_a_group() -> list[list[int]]:
    loader = ResumableDataLoader(Indices(LENGTH), 3, order=order_of(True), seed=SEED, tail="uneven")
    assert loader.setup.world_size == dist.get_world_size()
    return [ids(batch) for batch in loader]


@pytest.mark.slow
def test_ranks_of_a_group_share_one_sequence_of_draws() -> None:
    parts = ranks_of(2, of_a_group)
    joined = [index for batches in zip(*parts) for batch in batches for index in batch]
    assert joined == undisturbed(True, 0)


def test_draws_repeat_within_an_epoch_and_the_length_is_that_of_the_draws() -> None:
    loader = loader_of(True, batch_size=7)
    assert len(loader) == 9
    assert len(loader.dataset) == LENGTH  # type: ignore[arg-type]
    seen = np.concatenate([np.array(ids(batch)) for batch in loader])
    assert len(seen) == 60
    assert np.unique(seen).size < 29
