"""Persistent workers read ahead over the end of an epoch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from subjects import Indices

from dataporter import ResumableDataLoader

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


class Slow(Indices):
    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


def asked_of(loader: Any) -> list[tuple[int, int]]:
    """(epoch, step) of the requests that the persistent workers have for the next epoch."""
    return [
        (t.request.epoch, t.request.step)
        for t in loader._serving._engine._pass._ahead.following.tickets
    ]


def test_persistent_workers_read_the_next_epoch_during_the_last_training_steps() -> None:
    loader = ResumableDataLoader(
        Slow(8), 1, shuffle=True, seed=1, num_workers=2, persistent_workers=True
    )
    first = [batch.item() for batch in loader]
    assert asked_of(loader) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    expected = [batch.item() for batch in replay(loader)]
    assert [batch.item() for batch in loader] == expected != first


def replay(loader: Any) -> ResumableDataLoader[Any]:
    twin = ResumableDataLoader(Slow(8), 1, shuffle=True, seed=1)
    twin.load_state_dict(loader.state_dict())
    return twin


@pytest.mark.parametrize("change", ["set_epoch", "seek", "load_state_dict", "dropped"])
def test_prefetched_batches_are_dropped_when_the_position_is_moved(change: str) -> None:
    loader = ResumableDataLoader(
        Slow(8), 1, shuffle=True, seed=1, num_workers=2, persistent_workers=True
    )
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    if change != "dropped":
        list(batches)
    if change == "set_epoch":
        loader.set_epoch(7)
    elif change == "seek":
        loader.seek(epoch=3, step=5)
    elif change == "load_state_dict":
        loader.load_state_dict(state)
    else:
        del batches
    expected = [batch.item() for batch in replay(loader)]
    if change == "dropped":
        expected = [batch.item() for batch in skipped_to_next(loader)]
    assert [batch.item() for batch in loader] == expected
    assert [batch.item() for batch in replay_next(loader)] == [batch.item() for batch in loader]


def skipped_to_next(loader: Any) -> ResumableDataLoader[Any]:
    twin = ResumableDataLoader(Slow(8), 1, shuffle=True, seed=1)
    twin.seek(epoch=loader.epoch + 1)
    return twin


def replay_next(loader: Any) -> ResumableDataLoader[Any]:
    return replay(loader)


class Counted(Slow):
    def __init__(self, length: int, read: Path) -> None:
        super().__init__(length)
        self.read = read

    def __getitem__(self, index: int) -> int:
        time.sleep(0.2)
        (self.read / str(index)).touch()
        return index


class Tallied(Indices):
    """Appends a byte to a file for each read, in whichever process."""

    def __init__(self, length: int, tally: Path) -> None:
        super().__init__(length)
        self.tally = tally

    def __getitem__(self, index: int) -> int:
        with self.tally.open("ab") as file:
            file.write(b".")
        return index


def test_prefetched_batches_of_the_next_epoch_are_not_read_again(tmp_path: Path) -> None:
    tally = tmp_path / "tally"

    def readings(expected: int) -> int:
        """How many there are, a moment after those expected have arrived."""
        until = time.monotonic() + 10
        while tally.stat().st_size < expected and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        return tally.stat().st_size

    loader = ResumableDataLoader(
        Tallied(8, tally), 1, shuffle=True, num_workers=2, persistent_workers=True
    )
    for epoch in range(1, 4):
        assert len(list(loader)) == 8
        assert readings(8 * epoch + 4) == 8 * epoch + 4, "an epoch more, and four batches ahead"


def test_requests_that_were_cancelled_are_not_read(tmp_path: Path) -> None:
    loader = ResumableDataLoader(
        Counted(100, tmp_path), 1, num_workers=1, prefetch_factor=8, persistent_workers=True
    )
    next(iter(loader))
    loader.seek(epoch=0, step=50)
    assert next(iter(loader)).item() == 50
    read = {int(file.name) for file in tmp_path.iterdir()}
    assert 50 in read
    assert len(read & set(range(50))) <= 3, "0, and what was being read when the position was moved"
