"""Assignment: which worker serves a request, and that no batch shows it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from subjects import Indices
from torch.utils.data import DataLoader, get_worker_info

from dataporter import ResumableDataLoader

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

LENGTH = 24


class Asking(Indices):
    """Its samples say which worker reads them."""

    def __init__(self, length: int, name: str) -> None:
        super().__init__(length)
        self.name = name

    def __getitem__(self, index: int) -> tuple[int, int]:
        info = get_worker_info()
        assert info is not None
        return index, getattr(info, self.name) - (info.seed - info.id if self.name == "seed" else 0)


class ByProcess(Indices):
    def __getitem__(self, index: int) -> tuple[int, int]:
        return index, os.getpid()


def do_nothing(worker: int) -> None: ...


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("name", ["id", "seed"])
def test_workers_take_torchs_turns_where_the_dataset_asks_which_one_it_is_in(
    name: str, persistent: bool
) -> None:
    arguments: dict[str, Any] = {"num_workers": 3, "persistent_workers": persistent}
    ours = ResumableDataLoader(Asking(LENGTH, name), 1, collate_fn=list, **arguments)
    theirs = DataLoader(Asking(LENGTH, name), 1, collate_fn=list, **arguments)
    for _ in range(2):
        assert list(ours) == list(theirs)


def test_workers_take_turns_where_worker_init_fn_may_make_them_differ() -> None:
    loader = ResumableDataLoader(
        ByProcess(LENGTH), 1, collate_fn=list, num_workers=3, worker_init_fn=do_nothing
    )
    readers = [batch[0][1] for batch in loader]
    assert readers == (readers[:3] * LENGTH)[:LENGTH]
    assert len(set(readers)) == 3
