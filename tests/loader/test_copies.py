"""Copies to a device: no batch is overwritten before its copy is done, however late that is."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from late_device import LateDevice, RecordingLock
from subjects import digest, outcome_in_a_fork
from worker_processes import Filled, inline

from dataporter import DevicePrefetcher, ResumableDataLoader
from dataporter.engines import locking
from dataporter.loader import device as prefetching
from dataporter.loader.copies import Copies

LATE: dict[str, tuple[bool, ...]] = {
    "as late as possible": (False,),
    "at once": (True,),
    "now and then": (False, True, False, False, False, True, True),
}


def pattern(done: tuple[bool, ...]) -> Callable[[], bool]:
    return chain.from_iterable(repeat(done)).__next__


def loader(**arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"batch_size": 4, "shuffle": True, "seed": 5, **arguments}
    return ResumableDataLoader(Filled(), **arguments)


@pytest.fixture
def put_on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DevicePrefetcher[Any]]:
    """Prefetchers onto a late device."""

    def build(reading: Any, device: LateDevice) -> DevicePrefetcher[Any]:
        monkeypatch.setattr(prefetching, "device_for", lambda _: device)
        return DevicePrefetcher(reading, "meta")

    return build


@pytest.mark.parametrize("done", LATE.values(), ids=LATE)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_no_batch_is_overwritten_before_its_copy_is_done(
    workers: int, done: tuple[bool, ...], put_on: Callable[..., DevicePrefetcher[Any]]
) -> None:
    reading = loader(num_workers=workers)
    expected = inline(reading)
    device = LateDevice(pattern(done), RecordingLock())
    batches = list(put_on(reading, device))
    assert [digest(batch) for batch in batches] == expected
    assert device.waiting == []
    assert device.precedes == list(range(len(expected)))
    assert set(device.sources_were_locked) == {workers > 0}


def batch_of(number: int, memory: list[Any], overwritten: list[int]) -> torch.Tensor:
    """A batch that is overwritten as soon as nobody holds it, as a worker does with a slot."""
    memory.append(np.full(4, number))
    lease = memory[-1][:]

    def overwrite(numbers: Any = memory[-1]) -> None:
        numbers.fill(-1)
        overwritten.append(number)

    weakref.finalize(lease, overwrite)
    return torch.from_numpy(lease)


@given(st.lists(st.sampled_from(["start", "next"]), max_size=30), st.lists(st.booleans()))
@settings(deadline=None)
def test_each_batch_is_held_until_its_copy_is_done_and_few_are(
    steps: list[str], done: list[bool]
) -> None:
    device = LateDevice(chain(done, repeat(False)).__next__)
    copies = Copies(device)
    memory: list[Any] = []
    overwritten: list[int] = []
    delivered: list[torch.Tensor] = []
    for step in steps:
        ahead = len(memory) - len(delivered)
        if step == "start":
            copies.start(batch_of(len(memory), memory, overwritten))
        elif ahead:
            delivered.append(copies.next().copy.batch)
            assert device.precedes == list(range(len(delivered)))
            assert len(memory) - len(overwritten) <= ahead - 1 + 2
    copies.close()
    assert [batch.tolist() for batch in delivered] == [[n] * 4 for n in range(len(delivered))]
    assert device.precedes == list(range(len(memory)))
    assert sorted(overwritten) == list(range(len(memory)))


@pytest.mark.parametrize("stop", [1, 3])
def test_a_pass_that_is_abandoned_waits_for_its_copies(
    stop: int, put_on: Callable[..., DevicePrefetcher[Any]]
) -> None:
    device = LateDevice(pattern((False,)))
    batches = iter(put_on(loader(), device))
    for _ in islice(batches, stop):
        pass
    assert device.waiting
    del batches
    gc.collect()
    assert device.waiting == []
    # Also the one that was ahead: its memory on the device is free from then on.
    assert device.precedes == list(range(stop + 1))


def test_what_raises_ends_the_pass_when_all_copies_are_done(
    put_on: Callable[..., DevicePrefetcher[Any]],
) -> None:
    def failing() -> Iterator[torch.Tensor]:
        yield from (torch.ones(2), torch.ones(2))
        raise OSError("the disk is gone")

    device = LateDevice(pattern((False,)))
    with pytest.raises(OSError, match="the disk is gone"):
        list(put_on(failing(), device))
    assert device.waiting == []


def test_batches_lie_in_locked_slots_for_a_prefetcher_and_not_for_a_loop(
    put_on: Callable[..., DevicePrefetcher[Any]],
) -> None:
    reading = loader(num_workers=2, persistent_workers=True)
    page_lock = RecordingLock()
    device = LateDevice(pattern((False,)), page_lock)
    prefetcher = put_on(reading, device)
    list(prefetcher)
    assert all(device.sources_were_locked)
    # The loop may copy a batch, and drop it before the copy is done.
    assert not any(page_lock.holds(batch["x"]) for batch in reading)
    device.sources_were_locked.clear()
    batches = iter(prefetcher)
    next(batches)
    assert all(device.sources_were_locked)
    del batches, prefetcher, reading
    gc.collect()
    assert page_lock.locked == {}
    assert page_lock.unlocked > 0


def test_a_batch_that_outlives_its_loader_stays_locked_as_long_as_it_is_mapped() -> None:
    reading = loader(num_workers=1)
    page_lock = RecordingLock()
    with locking(page_lock):
        batches = iter(reading)
        held = next(batches)
    assert page_lock.holds(held["x"])
    del batches, reading
    gc.collect()
    assert page_lock.holds(held["x"])
    assert len(page_lock.locked) == 1
    del held
    gc.collect()
    assert page_lock.locked == {}


def test_a_fork_unlocks_nothing() -> None:
    page_lock = RecordingLock()
    held: list[Any] = []
    with locking(page_lock):
        held.append(iter(loader(num_workers=1)))
        held.append(next(held[0]))

    def unlocked_here() -> int:
        held.clear()
        gc.collect()
        return page_lock.unlocked

    assert outcome_in_a_fork(unlocked_here) == 0
    assert page_lock.holds(held[1]["x"])


def test_slots_that_cannot_be_locked_deliver_the_same(
    put_on: Callable[..., DevicePrefetcher[Any]],
) -> None:
    reading = loader(num_workers=2)
    expected = inline(reading)
    device = LateDevice(pattern((False,)), RecordingLock(refuses=True))
    batches = list(put_on(reading, device))  # complete once all copies are done
    assert [digest(batch) for batch in batches] == expected
    assert not any(device.sources_were_locked)
