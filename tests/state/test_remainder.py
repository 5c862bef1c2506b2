"""The rest of an epoch over data that changed, and what a resume by force does to it."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Indices, ids
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
)

from dataporter import (
    BlockShuffledOrder,
    ConfigurationError,
    InvalidStateError,
    ResumableDataLoader,
    SharedSequence,
    StateMismatchError,
    UnsupportedDatasetError,
    remainder,
)


def loader_of(dataset: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(dataset, **{"batch_size": 4, "seed": 1, **arguments})


ORDERS: list[dict[str, Any]] = [
    {},
    {"shuffle": True},
    {"order": "torch"},
    {"order": BlockShuffledOrder(block=3, buffer=2)},
    {"shuffle": True, "strategy": "simple"},
]


@st.composite
def states(draw: st.DrawFn, length: int) -> dict[str, Any]:
    """A state within an epoch, after changes of the batch size, with early batches."""
    arguments = draw(st.sampled_from(ORDERS))
    loader = loader_of(range(length), batch_size=draw(st.integers(1, 7)), **arguments)
    loader.seek(epoch=draw(st.integers(0, 2)), step=draw(st.integers(0, len(loader))))
    state = loader.state_dict()
    if "strategy" not in arguments and draw(st.booleans()) and state["position"] + 2 < length:
        start = draw(st.integers(state["position"] + 1, length - 1))
        state["early"] = [[start, draw(st.integers(start + 1, length)), 0]]
        state["step"] += 1
    return state


@settings(max_examples=cases(100))
@given(data=st.data(), before=st.integers(1, 40), present=st.integers(0, 40))
def test_each_sample_comes_once_over_both(data: st.DataObject, before: int, present: int) -> None:
    state = data.draw(states(before))
    loader = loader_of(range(before))
    loader = loader_of(range(before), **_arguments_of(state))
    loader.load_state_dict(state)
    seen, unseen = loader.seen(), loader.unseen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rest: list[int] = list(remainder(range(present), state))
    assert sorted([*seen[seen < present], *rest]) == list(range(present))
    assert rest[: len(rest) - max(0, present - before)] == unseen[unseen < present].tolist()


def _arguments_of(state: dict[str, Any]) -> dict[str, Any]:
    order = state["order"]
    order = BlockShuffledOrder(block=3, buffer=2) if order.startswith("blocks") else order
    return {"order": order, "batch_size": state["batch_size"], "strategy": state["strategy"]}


@pytest.mark.parametrize("arguments", [{}, {"shuffle": True, "num_workers": 2}])
def test_a_loader_over_it_finishes_the_epoch_and_resumes(arguments: dict[str, Any]) -> None:
    loader = loader_of(TensorDataset(torch.arange(26)), shuffle=True)
    first = [index for _, (batch,) in zip(range(3), loader) for index in batch.tolist()]
    grown = TensorDataset(torch.arange(33))
    rest = remainder(grown, loader.state_dict())

    def run(start: dict[str, Any] | None, steps: int) -> tuple[list[int], dict[str, Any]]:
        again = remainder(TensorDataset(torch.arange(33)), loader.state_dict())
        finishing = loader_of(again, **arguments)
        if start is not None:
            finishing.load_state_dict(start)
        batches = iter(finishing)
        read = [index for _ in range(steps) for index in next(batches)[0].tolist()]
        return read, finishing.state_dict()

    one, state = run(None, 2)
    other, _ = run(state, 4)
    assert sorted([*first, *one, *other]) == list(range(33))
    if not arguments:
        plain = [index for (batch,) in DataLoader(rest, 4) for index in batch.tolist()]
        assert [*one, *other] == plain
    elsewhere = remainder(TensorDataset(torch.arange(34)), loader.state_dict())
    with pytest.raises(StateMismatchError, match="dataset_fingerprint"):
        loader_of(elsewhere, **arguments).load_state_dict(
            {**state, "dataset_length": len(elsewhere)}
        )


def test_its_indices_are_pythons_numbers_in_a_small_copyable_sequence() -> None:
    loader = loader_of(Indices(9))
    next(iter(loader))
    rest = remainder(Indices(9), loader.state_dict())
    for indices in (
        rest.indices,
        copy.deepcopy(rest.indices),
        pickle.loads(pickle.dumps(rest)).indices,
    ):
        assert list(indices) == [4, 5, 6, 7, 8]
        assert {type(index) for index in indices} == {int}
        assert list(indices[1:3]) == [5, 6]
        assert np.asarray(indices).dtype == np.int64
        assert np.asarray(indices, dtype=np.int32).tolist() == [4, 5, 6, 7, 8]
    assert repr(rest.indices) == "<5 indices>"


def test_it_reads_a_dict_and_the_states_of_a_joined_world() -> None:
    loader = loader_of({"x": torch.arange(9)}, rank=1, world_size=2, batch_size=2)
    next(iter(loader))
    rest = remainder({"x": torch.arange(12)}, loader.state_dict())
    (batch,) = ResumableDataLoader(rest, batch_size=99)
    assert batch["x"].tolist() == list(range(4, 12))


class Listed(Dataset[str]):
    def __init__(self, files: list[str]) -> None:
        self.files = files
        self.classes = ["a", "b"]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        return self.files[index]


NAMES = [f"/data/{number:03d}.jpg" for number in range(30)]
# By kind, a dataset of these numbers.
KINDS: dict[str, Callable[[list[int]], Any]] = {
    "a tensor": torch.tensor,
    "an array": np.array,
    "a list": list,
    "a shared sequence": SharedSequence,
    "a dict": lambda numbers: {"x": torch.tensor(numbers)},
    "tensors": lambda numbers: TensorDataset(torch.tensor(numbers), torch.tensor(numbers)),
    "a subset": lambda numbers: Subset(TensorDataset(torch.arange(99)), numbers),
    "a concatenation": lambda numbers: ConcatDataset(
        [
            TensorDataset(torch.tensor(part))
            for part in (numbers[:5], numbers[5:20], numbers[20:])
            if part
        ]
    ),
    "stacked": lambda numbers: StackDataset(
        a=torch.tensor(numbers), b=TensorDataset(torch.tensor(numbers))
    ),
    "stacked in a tuple": lambda numbers: StackDataset(torch.tensor(numbers)),
    "files": lambda numbers: Listed([NAMES[number] for number in numbers]),
}


@pytest.mark.parametrize("present", [30, 24])
@pytest.mark.parametrize("name", KINDS)
def test_that_a_dataset_grew_at_its_end_is_checked(name: str, present: int) -> None:
    make = KINDS[name]
    state = loader_of(make(list(range(24)))).state_dict()
    numbers = list(range(present))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(remainder(make(numbers), state)) == present
    numbers[3], numbers[4] = numbers[4], numbers[3]
    with pytest.raises(StateMismatchError, match="an index means another sample"):
        remainder(make(numbers), state)
    with pytest.warns(RuntimeWarning, match="by the indices alone"):
        assert len(remainder(make(numbers), state, on_mismatch="warn")) == present


UNKNOWN: dict[str, tuple[Any, Any]] = {
    "a custom dataset": (Indices(24), Indices(30)),
    "one in a concatenation": (ConcatDataset([Indices(24)]), ConcatDataset([Indices(30)])),  # type: ignore[list-item]
    "one that shrank": (torch.arange(24), torch.arange(20)),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_where_that_is_not_known_a_warning_says_so(name: str) -> None:
    before, present = UNKNOWN[name]
    state = loader_of(before).state_dict()
    with pytest.warns(RuntimeWarning, match=f"had 24 samples and has {len(present)}.*not checked"):
        assert len(remainder(present, state)) == len(present)


class Reversed:
    name, version = "reversed", 1

    def epoch_length(self, dataset_length: int) -> int:
        return dataset_length

    def indices(self, positions: Any, *, seed: int, epoch: int, dataset_length: int) -> Any:
        return dataset_length - 1 - positions


def test_a_custom_order_is_passed() -> None:
    loader = loader_of(list(range(9)), order=Reversed())
    next(iter(loader))
    state = loader.state_dict()
    assert list(remainder(list(range(10)), state, order=Reversed())) == [4, 3, 2, 1, 0, 9]
    with pytest.raises(ConfigurationError, match=r"'reversed', version 1.*order="):
        remainder(list(range(10)), state)
    with pytest.raises(ConfigurationError, match="order="):
        remainder(list(range(10)), state, order=BlockShuffledOrder())


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


def refused() -> dict[str, tuple[Any, dict[str, Any], type[Exception], str]]:
    state = loader_of(list(range(9))).state_dict()
    sampled = loader_of(list(range(9)), sampler=list(range(9))).state_dict()
    return {
        "a stream": (Stream(), state, UnsupportedDatasetError, "IterableDataset"),
        "the state of a stream": (
            [1],
            ResumableDataLoader(Stream()).state_dict(),
            InvalidStateError,
            "iterable",
        ),
        "the state of a sampler": ([1], sampled, ConfigurationError, r"loader.unseen\(\)"),
        "no length": (object(), state, UnsupportedDatasetError, "no length"),
        "a damaged state": ([1], {**state, "position": 99}, InvalidStateError, "contradict"),
        "no state": ([1], {"model": {}}, InvalidStateError, "not"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_has_no_remainder_is_refused(name: str) -> None:
    dataset, state, error, text = refused()[name]
    with pytest.raises(error, match=text):
        remainder(dataset, state)


# ---- on_mismatch="warn"


def test_a_resume_by_force_says_beforehand_what_it_repeats_and_loses() -> None:
    loader = loader_of(Indices(5260), shuffle=True)
    loader.seek(step=20)
    state = loader.state_dict()
    shorter = loader_of(Indices(5240), shuffle=True)
    with pytest.warns(RuntimeWarning) as caught:
        shorter.load_state_dict(state, on_mismatch="warn")
    message = str(caught[0].message)
    seen = set(loader.seen().tolist())
    rest = {index for batch in shorter for index in ids(batch)}
    again, lost = len(seen & rest), len(set(range(5240)) - seen - rest)
    gone = len(set(range(5240, 5260)) - seen)
    assert again > 0
    assert lost > 0
    assert f"{again} samples that were delivered come again, {lost} others do not come" in message
    assert f"and {gone} are no longer in the dataset" in message
    assert "remainder(dataset, state)" in message
    assert "unchanged" not in message
    assert "changes nothing" not in message


@settings(max_examples=cases(50))
@given(data=st.data(), before=st.integers(1, 40), present=st.integers(1, 40))
def test_the_numbers_are_those_of_the_pass_that_follows(
    data: st.DataObject, before: int, present: int
) -> None:
    state = data.draw(states(before))
    seed = data.draw(st.sampled_from([1, 2]))
    old = loader_of(range(before), **_arguments_of(state))
    old.load_state_dict(state)
    seen, unseen = set(old.seen().tolist()), set(old.unseen().tolist())
    arguments = {**_arguments_of(state), "order": data.draw(st.sampled_from(["shuffled", "torch"]))}
    loader = loader_of(range(present), **{**arguments, "seed": seed})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader.load_state_dict(state, on_mismatch="warn")
    forced = [str(each.message) for each in caught if "all the same" in str(each.message)]
    if not forced:
        return
    rest = set(loader.unseen().tolist())
    again, lost = len(seen & rest), len(unseen.intersection(range(present)) - rest)
    gone, new = len(unseen - set(range(present))), len(set(range(before, present)) - rest)
    assert re.search(rf" {again} samples that were delivered come again", forced[0])
    for number, text in ((gone, "are no longer in"), (new, "new ones come in")):
        assert (text in forced[0]) == (number > 0)
        assert number == 0 or re.search(rf" {number} {text}", forced[0])
    assert re.search(rf" {lost} others do not come", forced[0])


def test_where_they_are_not_known_it_says_so() -> None:
    loader = loader_of(list(range(9)), order=Reversed())
    loader.seek(step=1)
    with pytest.warns(RuntimeWarning, match="cannot be known"):
        loader_of(list(range(9))).load_state_dict(loader.state_dict(), on_mismatch="warn")
    sampled = loader_of(list(range(9)), sampler=list(range(9)))
    sampled.seek(step=1)
    with pytest.warns(RuntimeWarning, match="cannot be known"):
        loader_of(list(range(8)), sampler=list(range(8))).load_state_dict(
            sampled.state_dict(), on_mismatch="warn"
        )


def test_a_warning_that_is_an_error_changes_nothing() -> None:
    loader = loader_of(Indices(20), shuffle=True)
    loader.seek(step=2)
    other = loader_of(Indices(30), shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="come again"):
            other.load_state_dict(loader.state_dict(), on_mismatch="warn")
    assert (other.epoch, other.step) == (0, 0)
