"""Samplers that are not split by rank: refused or named, in every way that a world is found."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from subjects import Indices, ids
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from worlds import outcome, ranks_of

from dataporter import ConfigurationError, ResumableDataLoader

LENGTH = 24
OF_TWO = {"rank": 1, "world_size": 2, "seed": 1}


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Own:
    def __iter__(self) -> Any:
        return iter(range(LENGTH))


# Each sampler with the line to write in its place.
REPLICATED: dict[str, tuple[Callable[[], Any], str]] = {
    "weighted": (
        lambda: WeightedRandomSampler([1.0] * LENGTH, 8),
        "Write order=WeightedOrder(weights, samples=8) instead",
    ),
    "weighted, distinct": (
        lambda: WeightedRandomSampler([1.0] * LENGTH, 8, replacement=False),
        "Write order=WeightedOrder(weights, samples=8, replacement=False) instead",
    ),
    "random": (lambda: RandomSampler(range(LENGTH)), "Write shuffle=True instead"),
    "random, a part": (
        lambda: RandomSampler(range(LENGTH), num_samples=5),
        "Write order=WeightedOrder([1] * len(dataset), samples=5, replacement=False) instead",
    ),
    "random with replacement": (
        lambda: RandomSampler(range(LENGTH), replacement=True, num_samples=50),
        "Write order=WeightedOrder([1] * len(dataset), samples=50) instead",
    ),
    "sequential": (lambda: SequentialSampler(range(LENGTH)), "Write shuffle=False instead"),
}
SUBSET = "Write Subset(dataset, indices) as the dataset, shuffle=True instead"


def first(sampler: Any, **arguments: Any) -> list[int]:
    loader = ResumableDataLoader(Indices(LENGTH), 2, sampler=sampler, **arguments)
    return ids(next(iter(loader)))


@pytest.mark.parametrize("name", REPLICATED)
def test_given_ranks_refuse_a_sampler_that_all_of_them_seed_alike(name: str) -> None:
    build, line = REPLICATED[name]
    with pytest.raises(ConfigurationError) as caught:
        first(build(), **OF_TWO)
    assert "same batches on all 2 ranks" in str(caught.value)
    assert line in str(caught.value)
    assert "rank=0, world_size=1" in str(caught.value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(first(build(), rank=0, world_size=1)) == 2
        assert len(first(build())) == 2


def test_a_strategy_that_needs_an_order_names_it() -> None:
    sampler = WeightedRandomSampler([1.0] * LENGTH, 8)
    with pytest.raises(ConfigurationError, match=r"or order=WeightedOrder.weights, samples=8. in"):
        first(sampler, strategy="distributed")


def test_a_batch_sampler_of_torch_is_refused_with_its_batch_size() -> None:
    batches: Any = BatchSampler(RandomSampler(range(LENGTH)), 3, False)
    loader = ResumableDataLoader(Indices(LENGTH), batch_sampler=batches, **OF_TWO)
    with pytest.raises(ConfigurationError, match=r"batch_sampler: .*with batch_size=3 instead"):
        next(iter(loader))


@pytest.mark.parametrize(
    ("sampler", "line"),
    [
        (lambda: SubsetRandomSampler(range(8)), SUBSET),
        (
            lambda: WeightedRandomSampler([1.0] * LENGTH, 8, generator=generator()),
            "Write order=WeightedOrder(weights, samples=8) instead",
        ),
    ],
)
def test_given_ranks_are_warned_of_draws_that_may_be_each_rank_s(
    sampler: Callable[[], Any], line: str
) -> None:
    with pytest.warns(RuntimeWarning, match="may give all of them the same batches") as caught:
        assert len(first(sampler(), **OF_TWO)) == 2
    assert line in str(caught[0].message)


@pytest.mark.parametrize(
    "sampler",
    [
        Own(),
        [1, 2, 3],
        DistributedSampler(range(LENGTH), 2, 1),  # type: ignore[arg-type]
    ],
)
def test_given_ranks_may_have_samplers_that_may_know_them(sampler: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(first(sampler, **OF_TWO)) == 2


def test_torchrun_s_environment_is_named_where_no_group_joins_the_ranks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.warns(RuntimeWarning, match="does not know that there are 2 ranks"):
        first(RandomSampler(range(LENGTH)))
    with pytest.raises(ConfigurationError, match="same batches on all 2 ranks"):
        first(RandomSampler(range(LENGTH)), seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first(RandomSampler(range(LENGTH)), rank=0, world_size=1)
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setenv("RANK", "0")
        first(RandomSampler(range(LENGTH)))


def before_a_group(meeting: str) -> dict[str, Any]:
    """Loaders that are built before the process group, and used after."""
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    builds: dict[str, Any] = {name: build for name, (build, _) in REPLICATED.items()}
    builds |= {
        "subset": lambda: SubsetRandomSampler(range(8)),
        "own": Own,
        "divided": lambda: DistributedSampler(range(LENGTH), 2, 0),
    }
    seeded = {
        name: ResumableDataLoader(Indices(LENGTH), 2, sampler=build(), seed=1)
        for name, build in builds.items()
    }
    unseeded = ResumableDataLoader(Indices(LENGTH), 2, sampler=RandomSampler(range(LENGTH)))
    alone = ResumableDataLoader(
        Indices(LENGTH), 2, sampler=RandomSampler(range(LENGTH)), rank=0, world_size=1
    )
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)

    def read(loader: Any) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = outcome(lambda: ids(next(iter(loader))))
        return result, [str(one.message) for one in caught]

    found = {name: read(loader) for name, loader in seeded.items()}
    return found | {"unseeded": read(unseeded), "alone": read(alone)}


@pytest.mark.slow
def test_a_group_that_is_initialised_later_is_found_at_the_first_pass(tmp_path: Path) -> None:
    for found in ranks_of(2, before_a_group, f"file://{tmp_path}/meeting"):
        for name, (_, line) in REPLICATED.items():
            (kind, message, _), _ = found[name]
            assert kind == "ConfigurationError"
            assert line in message
        for name in ("subset", "own", "unseeded"):
            batch, (message,) = found[name]
            assert len(batch) == 2
            assert "built before their process group" in message
        for name in ("divided", "alone"):
            batch, messages = found[name]
            assert len(batch) == 2
            assert not messages
