"""on_error="replace": another sample takes the place, the same one whoever reads and resumes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, SubsetRandomSampler

from dataporter import ConfigurationError, Order, ResumableDataLoader, SampleError, sample_rng

pytestmark = pytest.mark.filterwarnings("ignore:.*failed .on_error=")


class Bad(Dataset[Any]):
    """Fails for some indices, after it has drawn from every generator."""

    def __init__(self, length: int, bad: set[int]) -> None:
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        drawn = float(torch.rand(())), float(np.random.random()), float(sample_rng().random())
        if index in self.bad:
            raise ValueError(f"sample {index} is broken")
        return index, *drawn


def rows(loader: ResumableDataLoader[Any], steps: int | None = None) -> list[Any]:
    batches = itertools.islice(loader, steps)
    return [row for batch in batches for row in zip(*(part.tolist() for part in batch))]


BAD = {0, 3, 4, 11, 17, 18, 19}


def loader_of(batch_size: int = 4, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"shuffle": True, "seed": 5, "on_error": "replace", **arguments}
    return ResumableDataLoader(Bad(23, BAD), batch_size, **arguments)


def test_the_place_is_filled_and_draws_what_it_would_have_drawn() -> None:
    whole = ResumableDataLoader(Bad(23, set()), 4, shuffle=True, seed=5)
    expected, found = rows(whole), rows(loader_of())
    assert len(found) == len(expected) == 23
    for (index, *drawn), (instead, *drawn_instead) in zip(expected, found):
        assert drawn_instead == drawn
        assert instead not in BAD
        assert instead == index or index in BAD
    replaced = [one[0] for one, other in zip(found, expected) if one != other]
    assert len(set(replaced)) > 2, "always the same replacement"


@settings(max_examples=cases(30))
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 5),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["shuffled", "blocks", "torch", "sequential"]),
)
def test_it_is_the_same_with_any_batches_ranks_and_resumes(
    batch_size: int, other: int, stop: int, ranks: int, order: str
) -> None:
    arguments = {"order": order, "shuffle": None, "strategy": "distributed"}
    whole = loader_of(batch_size, **arguments)
    expected = rows(loader_of(batch_size, **arguments))
    start = rows(whole, min(stop, len(whole)))  # and not the end of the pass
    state = whole.state_dict()
    found = list(start)
    for rank in range(ranks):
        part = loader_of(other, rank=rank, world_size=ranks, tail="uneven", **arguments)
        part.load_state_dict({**state, "tail": "uneven"})
        found += rows(part)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "arguments", [{"num_workers": 2}, *slow({"num_workers": 3, "multiprocessing_context": "spawn"})]
)
def test_it_is_the_same_with_workers(arguments: Any) -> None:
    inline, workers = loader_of(), loader_of(**arguments)
    assert rows(workers) == rows(inline)
    assert list(workers.failures) == list(inline.failures)


def test_each_epoch_has_its_own_replacements() -> None:
    loader = loader_of(23, order="sequential", shuffle=None)
    first, second = rows(loader), rows(loader)
    assert [row[0] for row in first] != [row[0] for row in second]


def test_replacements_that_fail_are_in_the_ledger_too() -> None:
    loader = ResumableDataLoader(
        Bad(20, set(range(12))), 20, seed=1, on_error="replace", strategy="advanced"
    )
    list(loader)
    failures = list(loader.failures)
    assert loader.failures.total > 12
    assert {failure.index for failure in failures} == set(range(12))
    assert sum(failure.count for failure in failures) == loader.failures.total


def test_no_sample_is_tried_twice_in_one_place() -> None:
    loader = ResumableDataLoader(Bad(2, {0}), 2, seed=1, on_error="replace")
    for _ in range(20):
        assert [row[0] for row in rows(loader)] == [1, 1]
    assert loader.failures.total == 20


def test_ten_attempts_and_the_error_names_first_and_last() -> None:
    loader = ResumableDataLoader(Bad(50, set(range(50))), 10, seed=1, on_error="replace")
    with pytest.raises(SampleError) as caught:
        list(loader)
    message = str(caught.value)
    assert "sample index 0 (epoch 0, step 0, position 0)" in message
    assert "in its place, the last: sample index" in message
    assert "on_error='skip'" in message
    assert isinstance(caught.value.__context__, ValueError)
    assert loader.failures.total == 0, "the batch was not delivered"


class EvenOnly:
    """An order that leaves the odd indices out."""

    name, version = "even", 1

    def epoch_length(self, dataset_length: int) -> int:
        return dataset_length // 2

    def indices(self, positions: Any, *, seed: int, epoch: int, dataset_length: int) -> Any:
        return 2 * positions


def test_a_sample_that_the_order_leaves_out_takes_no_place() -> None:
    order: Order = EvenOnly()
    loader = ResumableDataLoader(Bad(40, {4, 8, 10}), 5, order=order, seed=1, on_error="replace")
    indices = [row[0] for row in rows(loader)]
    assert len(indices) == 20
    assert all(index % 2 == 0 for index in indices)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_custom_sampler_s_batch_is_filled_from_itself(workers: int) -> None:
    train = [index for index in range(23) if index % 4]
    batches: list[list[int]] = []

    def build() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Bad(23, BAD), 6, sampler=SubsetRandomSampler(train), seed=2, on_error="replace",
            num_workers=workers,
        )  # fmt: skip

    loader = build()
    for step, batch in enumerate(loader):
        asked = loader.samples_at(0, step)
        batches.append(batch[0].tolist())
        assert len(batches[-1]) == len(asked)
        assert set(batches[-1]) <= set(asked) - BAD
    stopped, resumed = build(), build()
    next(iter(stopped))
    resumed.load_state_dict(stopped.state_dict())
    assert [batch[0].tolist() for batch in resumed] == batches[1:]


def test_indices_that_are_no_numbers_are_filled_from_the_batch_as_well() -> None:
    class Keyed(Dataset[Any]):
        def __getitem__(self, key: Any) -> str:
            if key == ("b", 1):
                raise ValueError(key)
            return str(key)

    keys = [[("a", 0), ("b", 1), "c"]]
    loader = ResumableDataLoader(Keyed(), batch_sampler=keys, on_error="replace", collate_fn=list)
    ((first, second, third),) = loader
    assert (first, third) == ("('a', 0)", "c")
    assert second in (first, third)
    assert loader.failures[0].index == ("b", 1)


def test_a_batch_without_other_samples_is_an_error() -> None:
    loader = ResumableDataLoader(Bad(4, {2}), sampler=[1, 2, 3], on_error="replace")
    with pytest.raises(SampleError, match="the batch has no other sample to take its place"):
        list(loader)


class Numbers(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda on_error: ResumableDataLoader(Numbers(), 2, on_error=on_error), "of a stream"),
        (
            lambda on_error: ResumableDataLoader(
                Bad(4, set()), batch_size=None, sampler=[1, 2], on_error=on_error
            ),
            "batch_size=None",
        ),
    ],
)
def test_where_nothing_can_be_chosen_it_is_refused(build: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"on_error='replace'.*{said}.*on_error='skip'"):
        build("replace")
    loader = build("skip")
    loader.on_error = "replace"
    with pytest.raises(ConfigurationError, match="on_error='replace'"):
        list(loader)


# ---- functions


def two(error: Exception, index: int) -> Any:
    return "two"


def two_and_a_default(error: Exception, index: int, scale: int = 3) -> Any:
    return scale


def third(error: Exception, index: int, context: Any) -> Any:
    return context


def by_name(error: Exception, index: int, *, failure: Any) -> Any:
    return failure


def by_name_with_default(error: Exception, index: int, scale: int = 1, failure: Any = None) -> Any:
    return scale, failure


class Method:
    def __call__(self, error: Exception, index: int, failure: Any) -> Any:
        return failure


@pytest.mark.parametrize(
    "function", [third, by_name, by_name_with_default, Method(), lambda *args, failure: failure]
)
@pytest.mark.parametrize("workers", [0, *slow(2)])
def test_a_function_may_take_the_failure(function: Any, workers: int) -> None:
    loader = ResumableDataLoader(
        Bad(8, {5}), 2, on_error=function, collate_fn=list, num_workers=workers, seed=1
    )
    found = [sample for batch in loader for sample in batch][5]
    failure = found[-1] if isinstance(found, tuple) else found
    assert failure == loader.failures[0]
    assert (failure.index, failure.epoch, failure.step, failure.position) == (5, 0, 2, 5)
    assert (failure.error, failure.message) == ("ValueError", "sample 5 is broken")


def so_named(failure: Exception, index: int) -> Any:
    return str(failure)


@pytest.mark.parametrize(
    ("function", "result"),
    [(two, "two"), (two_and_a_default, 3), (so_named, "sample 1 is broken")],
)
def test_a_function_of_two_parameters_is_called_with_two(function: Any, result: Any) -> None:
    loader = ResumableDataLoader(Bad(2, {1}), 2, on_error=function, collate_fn=list)
    assert next(iter(loader))[1] == result


def one(error: Exception) -> None: ...
def four(error: Exception, index: int, failure: Any, more: Any) -> None: ...
def keyword(error: Exception, index: int, *, other: Any) -> None: ...


@pytest.mark.parametrize("function", [one, four, keyword, lambda: None])
def test_a_function_that_cannot_be_called_is_refused_at_once(function: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"on_error=.* takes \(.*third argument"):
        ResumableDataLoader(Bad(2, {1}), 2, on_error=function)
