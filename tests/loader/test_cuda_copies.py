"""CUDA copies on streams that know what is done before what: none reads or writes too early."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dataporter import _torch
from dataporter.loader import cuda_copies
from dataporter.loader.cuda_copies import CudaDevice, CudaPageLock

DEVICE = torch.device("meta", 0)


class Stream:
    """What must be done before the next work on it begins."""

    device = DEVICE

    def __init__(self, *_: Any) -> None:
        self.before: set[str] = set()

    def run(self, work: str) -> frozenset[str]:
        """Give it work; returns what is done before that."""
        before = frozenset(self.before)
        self.before.add(work)
        return before

    def wait_stream(self, other: Stream) -> None:
        self.before |= other.before

    def wait_event(self, event: SimpleNamespace) -> None:
        self.before |= event.before

    def record_event(self) -> SimpleNamespace:
        return SimpleNamespace(
            before=frozenset(self.before), query=lambda: False, synchronize=lambda: None
        )


class Machine:
    """A fake of torch.cuda."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = Stream()
        self.copies: dict[int, frozenset[str]] = {}
        self.recorded: list[tuple[int, Stream]] = []
        self.pinned: list[int] = []
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.on)

        def copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
            assert non_blocking
            assert (target.shape, target.dtype) == (source.shape, source.dtype)
            self.copies[source.data_ptr()] = self.current.run(f"copy {source.data_ptr()}")

        def pin(tensor: torch.Tensor) -> torch.Tensor:
            self.pinned.append(tensor.data_ptr())
            return tensor

        monkeypatch.setattr(torch.Tensor, "copy_", copy)
        monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda one, s: self.recorded.append((id(one), s))
        )

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_copy_is_ordered_after_earlier_work_and_before_later_work(machine: Machine) -> None:
    device = CudaDevice(DEVICE)
    source = torch.arange(6.0)
    machine.current.run("an earlier step")
    copy = device.copy({"x": source})
    assert copy.batch["x"].device.type == DEVICE.type
    # The memory of the target may be what the earlier step still uses.
    assert "an earlier step" in machine.copies[source.data_ptr()]
    assert machine.current.run("this step") == {"an earlier step"}
    copy.precede()
    assert f"copy {source.data_ptr()}" in machine.current.run("the next step")
    assert machine.recorded == []


def test_copies_run_in_order_and_beside_the_step_that_began_before_them(machine: Machine) -> None:
    device = CudaDevice(DEVICE)
    first, second = torch.ones(2), torch.ones(2)
    device.copy(first).precede()
    later = device.copy(second)
    machine.current.run("the step that uses the first")
    assert "the step that uses the first" not in machine.copies[second.data_ptr()]
    assert f"copy {first.data_ptr()}" in machine.copies[second.data_ptr()]
    later.precede()


def test_memory_used_on_another_stream_than_its_own_is_recorded_there(machine: Machine) -> None:
    copy = CudaDevice(DEVICE).copy([torch.ones(2), torch.ones(3)])
    targets = [id(target) for target in copy.batch]
    with machine.on(Stream()):
        copy.precede()
        assert machine.recorded == [(target, machine.current) for target in targets]


def test_memory_that_is_not_page_locked_is_copied_to_such_memory_first(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked, other = torch.ones(2), torch.ones(2)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda one: one is locked)
    CudaDevice(DEVICE).copy([locked, other])
    assert machine.pinned == [other.data_ptr()]
    assert set(machine.copies) == {locked.data_ptr(), other.data_ptr()}


Boxes = namedtuple("Boxes", ["box", "text"])


class Box:
    """Knows how to move itself."""

    def to(self, device: torch.device, *, non_blocking: bool) -> tuple[str, torch.device, bool]:
        torch.cuda.current_stream(device).run("the box")
        return ("moved", device, non_blocking)


def test_what_moves_itself_does_so_on_the_stream_of_the_training(machine: Machine) -> None:
    source = torch.ones(2)
    copy = CudaDevice(DEVICE).copy({"boxes": Boxes(Box(), "text"), "x": source})
    assert copy.batch["boxes"] == Boxes(("moved", DEVICE, True), "text")
    # The event of the copy, until which the batch is kept, comes after it.
    assert "the box" in machine.copies[source.data_ptr()]
    assert "the box" in machine.current.before


def test_memory_that_cuda_does_not_lock_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def refuse(address: int, size: int) -> str:
        asked.append((address, size))
        return "operation not supported"

    monkeypatch.setattr(cuda_copies, "lock_pages", refuse)
    page_lock = CudaPageLock()
    with pytest.warns(RuntimeWarning, match="4,096 bytes .*operation not supported"):
        assert not page_lock.lock(1 << 20, 4096)
    assert not page_lock.lock(1 << 21, 4096)
    assert asked == [(1 << 20, 4096)]


class Runtime:
    """A fake of torch's CUDA runtime."""

    def __init__(self, error: int) -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.calls.append(("register", address, size, flags))
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address))
        return 0

    def cudaGetErrorString(self, error: int) -> str:
        return f"error {error}"


@pytest.mark.parametrize("error", [0, 712])
def test_pages_are_locked_for_all_devices_and_an_error_is_left_to_nobody(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(error)
    kernels: list[str] = []

    def kernel(*_: Any, device: str) -> None:
        kernels.append(device)
        raise RuntimeError("CUDA error: left by an earlier call")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "ones", kernel)
    assert _torch.lock_pages(4096, 8192) == (f"error {error}" if error else None)
    assert kernels == (["cuda"] if error else [])
    _torch.unlock_pages(4096)
    assert runtime.calls == [("register", 4096, 8192, 1), ("unregister", 4096)]
