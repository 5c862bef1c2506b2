"""Warnings point at the line of the user's program, however deep in the package they arise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from subjects import Indices
from torch.utils.data import Dataset, IterableDataset

from dataporter import ResumableDataLoader
from dataporter.errors import warn


class Failing(Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 1:
            raise ValueError("broken")
        return index


class Drawing(Dataset[float]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> float:
        return float(torch.rand(()))


class Counting(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


class Lying(Counting):
    def __len__(self) -> int:
        return 2


def mismatched_index() -> None:
    loader = ResumableDataLoader(Indices(12), 4, shuffle=True, seed=1)
    loader.load_state_dict(ResumableDataLoader(Indices(10), 2).state_dict(), on_mismatch="warn")


def mismatched_stream() -> None:
    loader = ResumableDataLoader(Counting(), 2, seed=1)
    other = ResumableDataLoader(Counting(), 2, seed=2)
    loader.load_state_dict(other.state_dict(), on_mismatch="warn")


def sample_left_out() -> None:
    for _ in ResumableDataLoader(Failing(), 2, on_error="skip"):
        pass


def sample_left_out_by_workers() -> None:
    for _ in ResumableDataLoader(Failing(), 2, on_error="skip", num_workers=1):
        pass


def thread_that_draws() -> None:
    next(iter(ResumableDataLoader(Drawing(), 2, num_workers=1, worker_kind="thread")))


def replayed_stream() -> None:
    loader = ResumableDataLoader(Counting(), 2, seed=1)
    batches = iter(loader)
    next(batches), next(batches)
    resumed = ResumableDataLoader(Counting(), 2, seed=1)
    resumed.load_state_dict(loader.state_dict())
    next(iter(resumed))


def longer_than_it_says() -> None:
    loader = ResumableDataLoader(Lying(), 2)
    len(loader)
    for _ in loader:
        pass


CALLS: list[Callable[[], Any]] = [
    mismatched_index,
    mismatched_stream,
    sample_left_out,
    sample_left_out_by_workers,
    thread_that_draws,
    replayed_stream,
    longer_than_it_says,
]


@pytest.mark.parametrize("call", CALLS)
def test_a_warning_points_at_the_users_line(call: Callable[[], Any]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    ours = [one for one in caught if issubclass(one.category, RuntimeWarning | UserWarning)]
    assert ours
    assert {one.filename for one in ours} == {__file__}


def test_a_warning_from_within_the_package_alone_has_a_line_too() -> None:
    """Without a frame of a user, the outermost one is named."""
    code = compile("f = lambda: warn('x', RuntimeWarning)", "inside.py", "exec")
    names: dict[str, Any] = {"__name__": "dataporter.inside", "warn": warn}
    exec(code, names)
    with pytest.warns(RuntimeWarning, match="x") as caught:
        names["f"]()
    assert caught[0].filename == __file__
