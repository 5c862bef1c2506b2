"""Data that changed between save and load: found out, or named by the user."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from subjects import Indices
from torch.utils.data import Dataset, DistributedSampler, TensorDataset, random_split

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    ResumableDistributedSampler,
    ResumableSampler,
    StateMismatchError,
    create_resumable_dataloader,
)
from dataporter.loader.loader import Mark


def loader_of(dataset: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(dataset, **{"batch_size": 4, "seed": 1, **arguments})


class Files(Dataset[int]):
    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> int:
        return int(self.files[index])


NAMES = [f"{number}" for number in range(64)]
SHUFFLED: dict[str, Any] = {
    "shuffled": {"shuffle": True},
    "simple": {"strategy": "simple"},
    "in a world": {"rank": 0, "world_size": 2},
    "its own sampler": {"sampler": DistributedSampler(range(64), 1, 0)},  # type: ignore[arg-type]
}
OTHER: dict[str, Callable[[int], Any]] = {
    "files in another order": lambda run: Files(NAMES if run == 0 else NAMES[::-1]),
    "an unseeded split": lambda run: random_split(Indices(128), [64, 64])[0],  # type: ignore[arg-type]
    "other values": lambda run: TensorDataset(torch.arange(64) + run),
    "other values in a dict": lambda run: {"x": torch.arange(64) + run},
}


@pytest.mark.parametrize("arguments", SHUFFLED)
@pytest.mark.parametrize("name", OTHER)
def test_a_resume_on_other_data_of_the_same_length_is_refused(name: str, arguments: str) -> None:
    loader = loader_of(OTHER[name](0), **SHUFFLED[arguments])
    for _ in zip(range(3), loader):
        pass
    again = loader_of(OTHER[name](1), **SHUFFLED[arguments])
    with pytest.raises(StateMismatchError, match=r"dataset_fingerprint.*the data changed"):
        again.load_state_dict(loader.state_dict())
    assert again.step == 0
    with pytest.warns(RuntimeWarning, match="dataset_fingerprint"):
        again.load_state_dict(loader.state_dict(), on_mismatch="warn")
    assert again.step == 3


def test_data_changed_in_place_is_other_data() -> None:
    values = torch.arange(64)
    loader = loader_of(TensorDataset(values))
    next(iter(loader))
    state = loader.state_dict()
    values[63] = 0
    for resumed in (loader, loader_of(TensorDataset(values))):
        with pytest.raises(StateMismatchError, match="dataset_fingerprint"):
            resumed.load_state_dict(state)


class Counted(Dataset[int]):
    """Data whose fingerprint costs something."""

    def __init__(self) -> None:
        self.asked = 0

    @property
    def fingerprint(self) -> str:
        self.asked += 1
        return "counted"

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        return index


NEEDING: dict[str, Callable[[ResumableDataLoader[Any]], Any]] = {
    "a save": lambda loader: loader.state_dict(),
    "a pass": lambda loader: next(iter(loader)),
}


@pytest.mark.parametrize("arguments", SHUFFLED)
@pytest.mark.parametrize("name", NEEDING)
def test_the_fingerprint_is_found_once_and_not_before_it_is_needed(
    name: str, arguments: str
) -> None:
    dataset = Counted()
    loader = loader_of(dataset, **SHUFFLED[arguments])
    assert len(loader) == loader.remaining
    assert isinstance(loader.mark(), Mark)
    assert dataset.asked == 0
    for _ in range(3):
        NEEDING[name](loader)
    assert dataset.asked == 1


def test_it_is_that_of_the_data_before_the_first_pass() -> None:
    class Normalising(Files):
        def __getitem__(self, index: int) -> int:
            value = super().__getitem__(index)
            self.files[index] = f"{value / 64}"
            return value

    state = loader_of(Normalising(list(NAMES))).state_dict()
    loader = loader_of(Normalising(list(NAMES)))
    next(iter(loader))
    assert loader.state_dict()["dataset_fingerprint"] == state["dataset_fingerprint"]


def test_a_fingerprint_of_the_users_counts_instead_of_any_other() -> None:
    def state(dataset: Any, fingerprint: str | None) -> dict[str, Any]:
        return loader_of(dataset, fingerprint=fingerprint).state_dict()

    for dataset in (Counted(), TensorDataset(torch.arange(64)), Indices(64)):
        assert state(dataset, "v1")["dataset_fingerprint"] == "v1"
        loader_of(dataset, fingerprint="v1").load_state_dict(state(dataset, "v1"))
        with pytest.raises(StateMismatchError, match=r"'v1'.*'v2'"):
            loader_of(dataset, fingerprint="v2").load_state_dict(state(dataset, "v1"))
    shorter = create_resumable_dataloader(Indices(64), fingerprint="v1", seed=1)
    assert shorter.state_dict()["dataset_fingerprint"] == "v1"
    for kind in (ResumableSampler, ResumableDistributedSampler):
        sampler = kind(Indices(64), 4, seed=1, fingerprint="v1")
        assert sampler.state_dict(delivered=0)["dataset_fingerprint"] == "v1"


@pytest.mark.parametrize("wrong", ["", 7, b"v1"])
def test_a_fingerprint_is_a_text(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="fingerprint="):
        loader_of(Indices(64), fingerprint=wrong)


def test_a_state_that_knows_nothing_of_the_data_is_accepted() -> None:
    unknown = loader_of(Indices(64)).state_dict()
    assert unknown["dataset_fingerprint"] is None
    loader_of(Indices(64), fingerprint="v1").load_state_dict(unknown)
    loader_of(range(64)).load_state_dict(unknown)


def test_a_state_that_knows_its_data_is_refused_where_nothing_is_known_of_them() -> None:
    known = loader_of(Indices(64), fingerprint="v1").state_dict()
    with pytest.raises(StateMismatchError, match=r"dataset_fingerprint.*'v1'.*None"):
        loader_of(Indices(64)).load_state_dict(known)


@pytest.mark.parametrize("kind", [ResumableSampler, ResumableDistributedSampler])
def test_samplers_find_other_data_and_take_a_length_for_any(kind: Any) -> None:
    state = loader_of(TensorDataset(torch.arange(64)), strategy="distributed").state_dict()
    kind(TensorDataset(torch.arange(64)), 4).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="dataset_fingerprint"):
        kind(TensorDataset(torch.arange(1, 65)), 4).load_state_dict(state)
    counting = kind(64, 4)
    counting.load_state_dict(state)
    saved = counting.state_dict(delivered=0)
    assert saved["dataset_fingerprint"] == state["dataset_fingerprint"]
    loader_of(TensorDataset(torch.arange(64)), strategy="distributed").load_state_dict(saved)
