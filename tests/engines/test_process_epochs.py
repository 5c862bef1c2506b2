"""Persistent workers over the end of an epoch: what they read ahead and what they must not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import Indices, ids

from dataporter import DataPorterError, ResumableDataLoader

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


PERSISTENT: Any = {"num_workers": 2, "persistent_workers": True, "prefetch_next_epoch": True}


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
    loader = ResumableDataLoader(Slow(8), 1, shuffle=True, seed=1, **PERSISTENT)
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
    loader = ResumableDataLoader(Slow(8), 1, shuffle=True, seed=1, **PERSISTENT)
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

    loader = ResumableDataLoader(Tallied(8, tally), 1, shuffle=True, **PERSISTENT)
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


class Staged(Indices):
    """Its samples say the stage of a curriculum that the training sets between epochs."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.stage = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getitem__(self, index: int) -> int:
        return int(self.stage)


@pytest.mark.parametrize("kind", ["process", "thread"])
def test_what_the_training_changes_between_two_passes_counts_in_the_next_one(kind: Any) -> None:
    data = Staged(8)
    loader = ResumableDataLoader(data, 1, num_workers=2, persistent_workers=True, worker_kind=kind)
    for stage in range(3):
        data.stage.fill_(stage)
        assert [ids(batch) for batch in loader] == [[stage]] * 8
        time.sleep(0.05)


@pytest.mark.parametrize("call", ["set_epoch", "sampler.set_epoch", "seek", "load_state_dict"])
def test_what_was_read_ahead_is_dropped_where_anything_was_called_in_between(call: str) -> None:
    data = Staged(8)
    loader = ResumableDataLoader(data, 1, shuffle=True, seed=1, **PERSISTENT)
    for stage in range(3):
        data.stage.fill_(stage)
        if call == "set_epoch":
            loader.set_epoch(stage)
        elif call == "sampler.set_epoch":
            loader.sampler.set_epoch(stage)
        elif call == "seek":
            loader.seek(epoch=stage)
        else:
            loader.load_state_dict(loader.state_dict())
        assert [ids(batch) for batch in loader] == [[stage]] * 8
        time.sleep(0.05)


@pytest.mark.parametrize("prefetch_next_epoch", [False, True])
def test_an_iterator_that_has_delivered_everything_ends_whoever_has_the_workers(
    prefetch_next_epoch: bool,
) -> None:
    loader = ResumableDataLoader(
        Indices(8), 2, **{**PERSISTENT, "prefetch_next_epoch": prefetch_next_epoch}
    )
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    assert len(list(loader)) == 4, "the validation at the end of an epoch, on the same loader"
    assert next(batches, None) is None
    unfinished = iter(loader)
    next(unfinished)
    list(loader)
    with pytest.raises(DataPorterError, match=r"a later iterator .* has taken over"):
        next(unfinished)
