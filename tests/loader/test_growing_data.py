"""A dataset that grows or shrinks: its length counts as of the start of an epoch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from budgets import cases, slow_except
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import ids
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)
from worlds import outcome, ranks_of

from dataporter import DatasetChangedError, ResumableDataLoader, StateMismatchError


class Growing(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.numbers = list(range(length))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        return self.numbers[index]

    def resize(self, length: int) -> None:
        self.numbers[:] = range(length)


def loader_of(dataset: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(dataset, **{"batch_size": 4, "seed": 1, **arguments})


def batches_of(loader: Any) -> list[Any]:
    return [ids(batch) for batch in loader]


LOADERS: dict[str, dict[str, Any]] = {
    "sequential": {},
    "shuffled": {"shuffle": True},
    "simple": {"shuffle": True, "strategy": "simple"},
    "torch's order": {"order": "torch"},
    "blocks": {"order": "blocks"},
    "dropping": {"shuffle": True, "drop_last": True},
    "in a world": {"shuffle": True, "rank": 1, "world_size": 2},
    "limited": {"shuffle": True, "steps_per_epoch": 7},
    "workers": {"shuffle": True, "num_workers": 2},
    "persistent workers": {"shuffle": True, "num_workers": 2, "persistent_workers": True},
    "reading ahead": {
        "shuffle": True,
        "num_workers": 1,
        "persistent_workers": True,
        "prefetch_next_epoch": True,
    },
    "threads": {"num_workers": 2, "worker_kind": "thread", "persistent_workers": True},
}


@pytest.mark.filterwarnings("ignore:this pass has no batch")
@pytest.mark.parametrize("length", [30, 7])
@pytest.mark.parametrize(
    "name", slow_except(["sequential", "in a world", "persistent workers"], LOADERS)
)
def test_the_next_epoch_has_the_new_length(name: str, length: int) -> None:
    arguments = LOADERS[name]
    dataset = Growing(19)
    loader = loader_of(dataset, **arguments)
    before = batches_of(loader)
    assert before == batches_of(loader_of(Growing(19), **arguments))
    dataset.resize(length)
    fresh = loader_of(Growing(length), **arguments)
    fresh.seek(epoch=1)
    assert (len(loader), loader.remaining) == (len(fresh), fresh.remaining)
    assert len(loader.sampler) == len(fresh.sampler)  # type: ignore[arg-type]
    assert (loader.samples_at(1, 0) == fresh.samples_at(1, 0)).all()
    assert loader.state_dict() == fresh.state_dict()
    assert ids(loader.peek()) == ids(fresh.peek())
    batches, expected = iter(loader), iter(fresh)
    assert ids(next(batches)) == ids(next(expected))
    state = loader.state_dict()
    assert state == fresh.state_dict()
    rest = batches_of(batches)
    assert rest == batches_of(expected)
    resumed = loader_of(Growing(length), **arguments)
    resumed.load_state_dict(state)
    assert batches_of(resumed) == rest
    assert loader.sampler.num_samples == len(fresh.sampler)  # type: ignore[attr-defined,arg-type]


GROWN: dict[str, Callable[[], tuple[Any, Callable[[], Any]]]] = {}


def grows(make: Callable[[], tuple[Any, Callable[[], Any]]]) -> None:
    GROWN[make.__name__] = make


@grows
def a_dict() -> tuple[Any, Callable[[], Any]]:
    columns = {"x": torch.arange(9)}
    return columns, lambda: columns.update(x=torch.arange(21))


@grows
def a_subset() -> tuple[Any, Callable[[], Any]]:
    subset = Subset(TensorDataset(torch.arange(30)), list(range(9)))
    return subset, lambda: subset.indices.extend(range(9, 21))  # type: ignore[attr-defined]


@grows
def a_list() -> tuple[Any, Callable[[], Any]]:
    numbers = list(range(9))
    return numbers, lambda: numbers.extend(range(9, 21))


@pytest.mark.parametrize("kind", [SequentialSampler, RandomSampler])
@pytest.mark.parametrize("name", GROWN)
def test_it_does_whatever_the_dataset_is_and_with_samplers_that_follow(
    name: str, kind: Any
) -> None:
    dataset, grow = GROWN[name]()
    rows = range(9) if isinstance(dataset, dict) else dataset
    loader = loader_of(dataset)
    sampled = None if isinstance(dataset, dict) else loader_of(dataset, sampler=kind(rows))
    for each in filter(None, [loader, sampled]):
        assert sum(map(len, map(flat, each))) == 9
    grow()
    for each in filter(None, [loader, sampled]):
        assert len(each) == 6
        assert sorted(number for batch in each for number in flat(batch)) == list(range(21))
        assert each.state_dict()["dataset_length"] == 21


def flat(batch: Any) -> list[int]:
    batch = batch["x"] if isinstance(batch, dict) else batch
    batch = batch[0] if isinstance(batch, list) else batch
    numbers: list[int] = batch.tolist()
    return numbers


def test_lengths_are_torchs_in_each_epoch() -> None:
    ours, theirs = Growing(8), Growing(8)
    loader, plain = loader_of(ours), DataLoader(theirs, 4)
    for length in (8, 30, 30, 5, 1):
        ours.resize(length)
        theirs.resize(length)
        assert len(loader) == len(plain)
        assert batches_of(loader) == batches_of(plain)


def test_a_pass_under_way_keeps_its_length() -> None:
    dataset = Growing(10)
    loader = loader_of(dataset)
    batches = iter(loader)
    next(batches)
    dataset.resize(30)
    assert (len(loader), loader.remaining) == (3, 2)
    assert loader.state_dict()["dataset_length"] == 10
    assert len(list(batches)) == 2
    assert (len(loader), loader.remaining) == (8, 8)
    assert loader.state_dict()["dataset_length"] == 30


def test_a_loop_that_lags_behind_saves_the_epoch_that_it_is_in() -> None:
    dataset = Growing(10)
    loader = loader_of(dataset)
    list(loader)
    dataset.resize(30)
    next(iter(loader))
    for read_ahead, epoch, length in ((0, 1, 30), (1, 1, 30), (2, 0, 10)):
        state = loader.state_dict(at=loader.mark(read_ahead=read_ahead))
        assert (state["epoch"], state["dataset_length"]) == (epoch, length)


@pytest.mark.filterwarnings("ignore:iter")
def test_a_pass_that_was_left_is_over_and_the_next_one_has_the_new_length() -> None:
    dataset = Growing(10)
    loader = loader_of(dataset)
    next(iter(loader))
    dataset.resize(30)
    assert len(loader) == 8
    assert (loader.remaining, loader.state_dict()["dataset_length"]) == (2, 10)
    assert len(batches_of(loader)) == 8


def test_in_mid_epoch_another_length_is_an_error_that_says_what_to_write() -> None:
    dataset = Growing(10)
    loader = loader_of(dataset)
    loader.seek(step=1)
    state = loader.state_dict()
    dataset.resize(30)
    assert (len(loader), loader.remaining, loader.state_dict()) == (3, 2, state)
    with pytest.raises(DatasetChangedError, match=r"10 samples .* 30 now.*remainder.*set_epoch"):
        next(iter(loader))
    assert loader.step == 1
    loader.set_epoch(loader.epoch + 1)
    assert len(batches_of(loader)) == 8
    dataset.resize(40)
    loader.seek(epoch=1, step=9)
    assert batches_of(loader) == [[36, 37, 38, 39]]


STATES = {"the start": 0, "the end": None, "mid-epoch": 2}


@pytest.mark.filterwarnings("ignore:this pass has no batch")
@pytest.mark.parametrize("name", [*list(LOADERS)[:7]])
@pytest.mark.parametrize("place", STATES)
def test_a_state_from_an_epochs_start_or_end_loads_into_a_grown_dataset(
    place: str, name: str
) -> None:
    arguments = LOADERS[name]
    saving = loader_of(Growing(26), **arguments)
    steps = STATES[place]
    saving.seek(epoch=3, step=len(saving) if steps is None else steps)
    state = saving.state_dict()
    loader = loader_of(Growing(39), **arguments)
    if place == "mid-epoch":
        with pytest.raises(StateMismatchError, match=r"dataset_length.*26.*39"):
            loader.load_state_dict(state)
        assert loader.epoch == 0
        return
    with pytest.warns(RuntimeWarning, match="had 26 samples .* has 39 now"):
        loader.load_state_dict(state)
    fresh = loader_of(Growing(39), **arguments)
    fresh.seek(epoch=3, step=len(fresh) if steps is None else 0)
    assert loader.state_dict() == fresh.state_dict()
    for _ in range(2):
        assert batches_of(loader) == batches_of(fresh)


def test_what_else_differs_is_refused_at_an_epochs_start_as_well() -> None:
    state = loader_of(Growing(26)).state_dict()
    with pytest.raises(StateMismatchError, match=r"dataset_length(.|\n)*seed"):
        loader_of(Growing(39), seed=2).load_state_dict(state)
    renamed = loader_of(Growing(26), fingerprint="v1").state_dict()
    with pytest.raises(StateMismatchError, match="dataset_fingerprint"):
        loader_of(Growing(26), fingerprint="v2").load_state_dict(renamed)


@pytest.mark.filterwarnings("ignore:this pass has no batch")
@settings(max_examples=cases(30))
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    where=st.tuples(st.integers(0, 3), st.integers(0, 8)),
    name=st.sampled_from(list(LOADERS)[:7]),
)
def test_a_run_over_growing_data_resumes_anywhere(
    lengths: list[int], where: tuple[int, int], name: str
) -> None:
    arguments = LOADERS[name]
    dataset = Growing(lengths[0])
    loader = loader_of(dataset, **arguments)
    run: list[list[Any]] = []
    state = None
    for epoch, length in enumerate(lengths):
        dataset.resize(length)
        run.append([])
        for step, batch in enumerate(loader):
            if where == (epoch, step):
                state = loader.state_dict(at=loader.mark())
                break_at = step + 1
            run[-1].append(ids(batch))
        fresh = loader_of(Growing(length), **arguments)
        fresh.seek(epoch=epoch)
        assert run[-1] == batches_of(fresh)
    if state is None:
        return
    dataset = Growing(lengths[where[0]])
    resumed = loader_of(dataset, **arguments)
    resumed.load_state_dict(state)
    assert batches_of(resumed) == run[where[0]][break_at:]
    for epoch, length in enumerate(lengths[where[0] + 1 :], start=where[0] + 1):
        dataset.resize(length)
        assert batches_of(resumed) == run[epoch]


def growing_rank() -> Any:
    rank = torch.distributed.get_rank()
    dataset = Growing(12)
    loader = ResumableDataLoader(dataset, 2, shuffle=True, seed=1)
    list(loader)
    dataset.resize(20)
    alike = batches_of(loader)
    state = loader.state_dict()
    dataset.resize(24 + rank)
    apart = outcome(lambda: batches_of(loader))
    standing = loader.state_dict() == {**state, "dataset_length": 24 + rank}
    loaded = outcome(lambda: loader.load_state_dict(state))
    dataset.resize(20)
    return alike, apart, standing, loaded, batches_of(loader)


def test_all_ranks_of_a_group_grow_alike() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranks = ranks_of(2, growing_rank)
    expected = loader_of(Growing(20), batch_size=4, shuffle=True)
    for epoch, place in ((1, 0), (2, 4)):
        expected.seek(epoch=epoch)
        together = [
            [*one, *other] for one, other in zip(ranks[0][place], ranks[1][place], strict=True)
        ]
        assert together == batches_of(expected)
    for _, apart, standing, loaded, _ in ranks:
        assert standing
        for kind, message, _ in (apart, loaded):
            assert kind == "RankMismatchError"
            assert "24 on rank 0; 25 on rank 1" in message
