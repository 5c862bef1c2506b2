"""Samples that fail: each counts once, when its batch is delivered, across kills and resumes."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import ids
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset

from dataporter import (
    Failure,
    LossyConversionError,
    ResumableDataLoader,
    SampleError,
    TooManyFailuresError,
    sample_rng,
)
from dataporter.datasets.names import name_of
from dataporter.loader.rebuild import rebuild
from dataporter.state.ledger import MOST_BYTES, MOST_RECORDS

pytestmark = pytest.mark.filterwarnings("ignore:.*failed .on_error=")


def is_bad(index: int) -> bool:
    return index % 5 == 2


class Bad(Dataset[Any]):
    """Indices, some of which raise; each sample draws from every generator."""

    def __init__(self, length: int, bad: Callable[[int], bool] = is_bad):
        self.length, self.bad = length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        drawn = torch.rand(()), np.random.random(), sample_rng().random()
        if self.bad(index):
            raise ValueError(f"sample {index} is broken")
        return index, *drawn


def loader_of(length: int = 30, batch_size: int = 4, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"on_error": "skip", "shuffle": True, "seed": 3, **arguments}
    return ResumableDataLoader(Bad(length), batch_size, **arguments)


def drawn(batch: Any) -> list[list[float]]:
    return [part.tolist() for part in batch]


def ledger(loader: ResumableDataLoader[Any]) -> Any:
    return list(loader.failures), loader.failures.total


# ---- counted at delivery


@pytest.mark.parametrize(
    "arguments", [{}, {"num_workers": 2}, {"worker_kind": "thread", "num_workers": 1}]
)
def test_a_failure_counts_when_its_batch_is_delivered(arguments: Any) -> None:
    loader = loader_of(shuffle=False, **arguments)
    batches = iter(loader)
    assert list(loader.failures) == []
    assert ids(next(batches)[0]) == [0, 1, 3]
    failure = Failure(2, None, 0, 0, 2, "ValueError", "sample 2 is broken")
    assert list(loader.failures) == [failure]
    next(batches)
    assert list(loader.failures) == [
        failure,
        Failure(7, None, 0, 1, 7, "ValueError", "sample 7 is broken"),
    ]
    del batches
    assert loader.failures.total == 2


def test_a_sample_that_fails_in_each_epoch_has_one_record() -> None:
    loader = loader_of(10)
    for _ in range(3):
        list(loader)
    assert [(failure.index, failure.count, failure.epoch) for failure in loader.failures] == [
        (index, 3, 0)
        for index in sorted(
            (2, 7), key=[int(i) for s in range(3) for i in loader.samples_at(0, s)].index
        )
    ]
    assert loader.failures.total == 6
    assert loader.failures.left_out == 0


ON_ERROR = {
    "skip": "skip",
    "replace": "replace",
    "function": lambda error, index: (index, torch.zeros(()), 0.0, 0.0),
}


@settings(max_examples=cases(40))
@given(
    st.sampled_from(sorted(ON_ERROR)),
    st.integers(1, 40),
    st.integers(1, 7),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_the_ledger_of_a_resumed_run_is_that_of_the_uninterrupted_one(
    on_error: str, length: int, batch_size: int, stops: list[int]
) -> None:
    def build() -> ResumableDataLoader[Any]:
        data = Bad(length, lambda index: index % 5 == 2 and length > 7)
        if batch_size == 1 and on_error == "skip":
            data.bad = lambda index: False  # would leave nothing of a batch
        return ResumableDataLoader(
            data, batch_size, shuffle=True, seed=1, on_error=ON_ERROR[on_error]
        )

    def passes(loader: ResumableDataLoader[Any]) -> Iterator[Any]:
        while loader.epoch < 2:
            for batch in loader:
                yield drawn(batch), ledger(loader), loader.state_dict()

    try:
        expected = list(passes(build()))
    except SampleError:
        return
    loader, done = build(), 0
    for stop in stops:
        part = list(itertools.islice(passes(loader), stop))
        assert part == expected[done : done + stop]
        done += len(part)
        state = json.loads(json.dumps(loader.state_dict()))
        loader = build()
        loader.load_state_dict(state)
        assert loader.state_dict() == state
    assert list(passes(loader)) == expected[done:]


@pytest.mark.parametrize("workers", [0, *slow(2)])
def test_a_mark_has_the_failures_of_its_batch(workers: int) -> None:
    loader = loader_of(num_workers=workers)
    states, marks = [loader.state_dict()], [loader.mark()]
    for _ in loader:
        states.append(loader.state_dict())
        marks.append(loader.mark())
        behind = loader.state_dict(at=loader.mark(read_ahead=1))
        assert behind == states[-2]
    assert [loader.state_dict(at=mark) for mark in marks] == states
    assert (
        loader.state_dict(at=loader.mark(read_ahead=2))["failures"][0] == states[-2]["failures"][0]
    )
    assert loader.state_dict()["failures"][0] == states[-1]["failures"][0] == 6


def test_the_ledger_stays_where_the_position_is_set() -> None:
    loader = loader_of()
    next(iter(loader)), list(loader)
    before = ledger(loader)
    assert before[1] > 0
    loader.set_epoch(7)
    assert ledger(loader) == before
    loader.seek(epoch=1, step=2)
    assert ledger(loader) == before
    again = copy.deepcopy(loader)
    list(again)
    assert ledger(loader) == before
    assert ledger(pickle.loads(pickle.dumps(again)))[1] > before[1]
    loader.load_state_dict(loader_of().state_dict())
    assert ledger(loader) == ([], 0)


def test_an_iterator_that_was_left_has_no_limit() -> None:
    loader = loader_of(shuffle=False, max_failures=1)
    old = iter(loader)
    next(old)
    loader.set_epoch(0)  # again
    new = iter(loader)
    next(new)
    assert ids(next(old)[0]) == [4, 5, 6]
    with pytest.raises(TooManyFailuresError):
        next(new)


def test_a_loader_that_is_rebuilt_keeps_its_ledger() -> None:
    loader = loader_of()
    list(loader)
    before = ledger(loader)
    rebuild(loader, batch_size=3)
    assert ledger(loader) == before
    loader.set_epoch(0)
    rebuild(loader, batch_size=5)
    assert ledger(loader) == before


def test_an_iterator_that_was_left_counts_nothing() -> None:
    loader = loader_of(shuffle=False)
    old, new = iter(loader), iter(loader)
    next(old)
    next(new)
    failed = loader.failures.total
    next(old)
    assert loader.failures.total == failed
    assert loader.state_dict()["failures"][0] == failed


@given(st.lists(st.tuples(st.integers(0, 300), st.text(max_size=400)), max_size=200))
@settings(max_examples=cases(30))
def test_a_state_stays_small_and_its_total_exact(failed: list[tuple[int, str]]) -> None:
    class Wordy(Bad):
        def __getitem__(self, index: int) -> Any:
            index, text = failed[index]
            raise (ValueError, OSError)[index % 2](text)

        def sample_name(self, index: int) -> str:
            return failed[index][1]

    loader = ResumableDataLoader(Wordy(len(failed)), 7, on_error=lambda error, index: 0)
    list(loader)
    state = loader.state_dict()
    assert state["failures"][0] == len(failed) == loader.failures.total
    assert len(json.dumps(state["failures"][2])) <= MOST_BYTES + 2
    assert len(loader.failures) <= MOST_RECORDS
    counted = sum(failure.count for failure in loader.failures)
    assert counted + loader.failures.left_out == len(failed)
    resumed = ResumableDataLoader(Wordy(len(failed)), 7)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    assert ledger(resumed) == ledger(loader)


@pytest.mark.parametrize(("text", "kept"), [("", [MOST_RECORDS]), ("x" * 500, range(20, 40))])
def test_the_first_records_that_fit_are_kept(text: str, kept: Any) -> None:
    class Failing(Bad):
        def __getitem__(self, index: int) -> Any:
            raise ValueError(text)

        def sample_name(self, index: int) -> str:
            return text

    loader = ResumableDataLoader(Failing(100), 7, on_error=lambda error, index: 0)
    list(loader), list(loader)
    assert len(loader.failures) in kept
    assert [failure.index for failure in loader.failures] == list(range(len(loader.failures)))
    assert {failure.count for failure in loader.failures} == {2}
    assert loader.failures.left_out == 2 * (100 - len(loader.failures))
    assert len(json.dumps(loader.state_dict()["failures"])) < MOST_BYTES + 100


def test_each_type_of_error_has_its_record() -> None:
    class Flaky(Bad):
        errors: Any = (ValueError, OSError, ValueError)

        def __getitem__(self, index: int) -> Any:
            raise self.errors[loader.epoch](loader.epoch)

    loader = ResumableDataLoader(Flaky(1), on_error=lambda error, index: 0)
    for _ in range(3):
        list(loader)
    found = [(failure.error, failure.message, failure.count) for failure in loader.failures]
    assert found == [("ValueError", "0", 2), ("OSError", "1", 1)]


def test_the_state_has_the_failures_of_its_epoch() -> None:
    loader = loader_of(shuffle=False)
    for step, _ in enumerate(loader):
        total, in_epoch, _ = loader.state_dict()["failures"]
        assert (total, in_epoch) == (in_epoch, len([i for i in range(4 * step + 4) if is_bad(i)]))
    assert loader.state_dict()["failures"][:2] == [6, 0]
    next(iter(loader))
    assert loader.state_dict()["failures"][:2] == [7, 1]
    loader.seek(epoch=5, step=2)
    assert loader.state_dict()["failures"][:2] == [7, 0]


def test_the_sequence_cannot_be_changed_and_shows_itself() -> None:
    loader = loader_of(shuffle=False)
    next(iter(loader))
    failures = loader.failures
    with pytest.raises(AttributeError):
        failures[0].count = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        failures[0] = None  # type: ignore[index]
    assert failures[:1] == (failures[0],)
    assert failures[0] in failures
    assert repr(failures) == (
        "<1 failure:\n"
        "  sample index 2 (epoch 0, step 0, position 2): ValueError: sample 2 is broken>"
    )


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("workers", [0, *slow(2)])
def test_what_a_record_cannot_hold_is_described(workers: int) -> None:
    class Odd(Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: Any) -> Any:
            raise Unprintable if index == 0 else ValueError("x" * 1000 + "\udc80")

    odd = [0, np.int64(1), ("a", [2, 3.5]), "b\udc80"]
    loader = ResumableDataLoader(
        Odd(), batch_sampler=[odd], on_error=lambda error, index: 0, num_workers=workers
    )
    list(loader)
    found = list(loader.failures)
    assert [failure.index for failure in found] == [0, 1, ("a", (2, "3.5")), "b\\udc80"]
    assert found[0].error.endswith("test_failures.Unprintable")
    assert found[0].message == ""
    assert len(found[1].message) == 160
    state = json.loads(json.dumps(loader.state_dict()))
    loader.load_state_dict(state)
    assert list(loader.failures) == found


@pytest.mark.parametrize("on_error", ["skip", "replace"])
@pytest.mark.parametrize("named", [True, False])
def test_a_conversion_error_names_a_sample_only_where_each_has_its_row(
    on_error: Any, named: bool
) -> None:
    class Large(Bad):
        def __getitem__(self, index: int) -> Any:
            if self.bad(index) and not named:
                raise ValueError(index)
            return {"x": 1000 if index == 3 else 1}

    loader = ResumableDataLoader(
        Large(4), 4, on_error=on_error, converter={"x": "int8"}, seed=1, order="sequential"
    )
    with pytest.raises(LossyConversionError) as caught:
        list(loader)
    assert ("has index 3" in str(caught.value.__notes__)) == named
    assert loader.failures.total == 0, "the batch was not delivered"


# ---- the sample's name


class Named(Bad):
    def sample_name(self, index: int) -> str:
        return f"scan {index}"


class Folder(Bad):
    def __init__(self, length: int, attribute: str, entry: Callable[[int], Any]) -> None:
        super().__init__(length)
        setattr(self, attribute, [entry(index) for index in range(length)])


@pytest.mark.parametrize(
    ("dataset", "index", "name"),
    [
        (Named(9), 7, "scan 7"),
        (Folder(9, "samples", lambda i: (f"{i}.png", 0)), 7, "7.png"),
        (Folder(9, "imgs", lambda i: (Path("a", f"{i}.png"), 0)), 7, str(Path("a", "7.png"))),
        (Folder(9, "files", lambda i: f"{i}.txt"), -2, "7.txt"),
        (Folder(9, "paths", lambda i: Path(f"{i}")), 7, "7"),
        (Folder(9, "samples", lambda i: torch.ones(1)), 7, None),
        (Subset(Named(9), [8, 7]), 1, "scan 7"),
        (ConcatDataset([Named(3), Named(5)]), 4, "scan 1"),
        (ConcatDataset([Named(3), Named(5)]), -1, "scan 4"),
        (StackDataset(Bad(9), Named(9)), 7, "scan 7"),
        (Bad(9), 7, None),
        (Named(9), None, "scan None"),
    ],
)
def test_a_dataset_names_its_samples(dataset: Any, index: Any, name: str | None) -> None:
    assert name_of(dataset, index) == name


def test_a_list_of_another_length_names_nothing() -> None:
    dataset = Folder(9, "files", str)
    dataset.length = 8
    assert name_of(dataset, 7) is None


def test_a_name_that_fails_does_not_hide_the_failure() -> None:
    class Broken(Bad):
        def sample_name(self, index: int) -> str:
            raise KeyError(index)

    loader = ResumableDataLoader(Broken(4), 4, on_error="skip")
    list(loader)
    assert [(failure.index, failure.name) for failure in loader.failures] == [(2, None)]


def test_a_long_path_keeps_its_end() -> None:
    dataset = Folder(4, "files", lambda i: "/".join(["folder"] * 60) + f"/{i}.png")
    loader = ResumableDataLoader(dataset, 4, on_error="skip")
    list(loader)
    name = loader.failures[0].name
    assert name is not None
    assert (len(name), name[:3], name[-6:]) == (160, "...", "/2.png")
