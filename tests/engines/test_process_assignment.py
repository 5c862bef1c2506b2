"""Assignment: which worker serves a request, and that no batch shows it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from subjects import Augmented, Indices, digest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from worker_processes import inline, workers_of

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


class Patient(Indices):
    """Sample 2 is ready only once those that are outstanding beside it have been read."""

    def __init__(self, length: int, read: Path, beside: range) -> None:
        super().__init__(length)
        self.read = read
        self.beside = beside

    def __getitem__(self, index: int) -> int:
        until = time.monotonic() + 60
        while index == 2 and not all((self.read / str(other)).exists() for other in self.beside):
            assert time.monotonic() < until, sorted(path.name for path in self.read.iterdir())
            time.sleep(0.001)
        (self.read / str(index)).touch()
        return index


@pytest.mark.parametrize("kind", ["process", "thread"])
@pytest.mark.parametrize("workers", [2, 3])
def test_a_slow_sample_holds_up_no_other_request(tmp_path: Path, kind: Any, workers: int) -> None:
    loader = ResumableDataLoader(
        Patient(30, tmp_path, range(3, 2 + 2 * workers)),
        1,
        num_workers=workers,
        worker_kind=kind,
    )
    assert [batch.item() for batch in loader] == list(range(30))


class Unequal(Augmented):
    """One sample in five takes long; appends a byte to a file of its index for each read."""

    def __init__(self, length: int, tally: Path) -> None:
        super().__init__(length)
        self.tally = tally

    def __getitem__(self, index: int) -> dict[str, Any]:
        if get_worker_info() is not None:
            with (self.tally / str(index)).open("ab") as file:
                file.write(b".")
            time.sleep(0.02 if index % 5 == 0 else 0)
        return super().__getitem__(index)

    def tallied(self) -> set[int]:
        return {path.stat().st_size for path in self.tally.iterdir()}


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"prefetch_factor": 5},
    {"worker_init_fn": do_nothing},
    {"in_order": False},
]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda each: "-".join(each) or "default")
def test_each_sample_is_read_once_and_the_batches_are_the_same_whoever_reads_them(
    tmp_path: Path, arguments: dict[str, Any], persistent: bool
) -> None:
    data = Unequal(60, tmp_path)
    loader = ResumableDataLoader(
        data, 2, shuffle=True, seed=4, num_workers=3, persistent_workers=persistent, **arguments
    )
    order = sorted if "in_order" in arguments else list
    for epoch in range(1, 3):
        expected = inline(loader)
        assert order(map(digest, loader)) == order(expected)
        assert data.tallied() == {epoch}


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda each: "-".join(each) or "default")
@pytest.mark.filterwarnings("ignore:worker . was killed by SIGKILL")
def test_killing_workers_under_unequal_loads_changes_no_byte(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    loader = ResumableDataLoader(
        Unequal(120, tmp_path),
        2,
        shuffle=True,
        seed=4,
        num_workers=2,
        worker_restarts=100,
        multiprocessing_context="fork",
        **arguments,
    )
    before, expected, found = workers_of(), inline(loader), []
    for step, batch in enumerate(loader):
        found.append(digest(batch))
        # So seldom that no batch kills two; out of order, a batch may be late by any number.
        if step % 12 == 5 and (step == 5 or "in_order" not in arguments):
            victims = sorted(workers_of() - before, key=lambda process: process.pid)
            os.kill(victims[step // 12 % 2].pid, signal.SIGKILL)
    order = sorted if "in_order" in arguments else list
    assert order(found) == order(expected)


def test_a_jump_leaves_nothing_of_what_was_shared_out_before(tmp_path: Path) -> None:
    loader = ResumableDataLoader(
        Unequal(120, tmp_path), 2, shuffle=True, seed=4, num_workers=2, persistent_workers=True
    )
    twin = ResumableDataLoader(Augmented(120), 2, shuffle=True, seed=4)
    for step in (0, 31, 7, 7, 50, 3):
        loader.seek(epoch=step % 3, step=step)
        twin.seek(epoch=step % 3, step=step)
        found, expected = zip(*zip(loader, [batch for _, batch in zip(range(9), twin)]))
        assert [digest(batch) for batch in found] == [digest(batch) for batch in expected]


class Shards(IterableDataset[Any]):
    """Two shards, one of them slow."""

    num_shards = 2

    def shard(self, num_shards: int, index: int) -> Any:
        for number in range(12):
            time.sleep(0.01 * index)
            yield index, number, os.getpid()

    def __iter__(self) -> Any:
        yield from self.shard(2, 0)
        yield from self.shard(2, 1)


def test_a_shard_stays_with_its_worker() -> None:
    loader = ResumableDataLoader(Shards(), 2, num_workers=2, prefetch_factor=3, collate_fn=list)
    samples = [sample for batch in loader for sample in batch]
    for shard in range(2):
        assert [number for index, number, _ in samples if index == shard] == list(range(12))
    assert len({(index, pid) for index, _, pid in samples}) == 2
