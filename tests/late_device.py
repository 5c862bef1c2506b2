"""A device whose copies run as late as those of a real one may, and the page lock of it."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dataporter.loader.copies import moved


class RecordingLock:
    """A page lock that locks nothing, and knows what is locked."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.locked: dict[int, int] = {}
        self.unlocked = 0

    def lock(self, address: int, size: int) -> bool:
        if self.refuses:
            return False
        assert address % mmap.PAGESIZE == 0
        assert size % mmap.PAGESIZE == 0
        for other, other_size in self.locked.items():
            assert address + size <= other or other + other_size <= address, "locked twice"
        self.locked[address] = size
        return True

    def unlock(self, address: int) -> None:
        assert is_mapped(address), "unmapped before it was unlocked"
        del self.locked[address]
        self.unlocked += 1

    def holds(self, tensor: torch.Tensor) -> bool:
        address = tensor.data_ptr()
        return any(
            begin <= address and address + tensor.nbytes <= begin + size
            for begin, size in self.locked.items()
        )


class LateDevice:
    """Like CUDA, it holds no reference to what it copies from: it reads the memory there.

    A copy runs when somebody waits for it, or earlier, when ``is_done`` says so.

    Attributes:
        precedes: the copies, by number, after which the device's work was ordered.
        waiting: the copies that have not run yet.
    """

    def __init__(self, is_done: Callable[[], bool], page_lock: RecordingLock | None = None) -> None:
        self.page_lock = page_lock
        self.is_done = is_done
        self.copies = 0
        self.precedes: list[int] = []
        self.waiting: list[LateCopy] = []
        self.sources_were_locked: list[bool] = []

    def copy(self, batch: Any) -> LateCopy:
        copy = LateCopy(self, self.copies, batch)
        self.copies += 1
        self.waiting.append(copy)
        return copy


class LateCopy:
    def __init__(self, device: LateDevice, number: int, batch: Any) -> None:
        self._device = device
        self._number = number
        self._reads: list[tuple[torch.Tensor, int]] = []
        self.batch = moved(batch, self._begin)

    def _begin(self, source: torch.Tensor) -> torch.Tensor:
        assert source.is_contiguous()
        lock = self._device.page_lock
        self._device.sources_were_locked.append(lock is not None and lock.holds(source))
        target = torch.zeros_like(source)
        self._reads.append((target, source.data_ptr()))
        return target

    def precede(self) -> None:
        self._device.precedes.append(self._number)

    def is_done(self) -> bool:
        if self._device.is_done():
            self.wait()
            return True
        return False

    def wait(self) -> None:
        for target, address in self._reads:
            ctypes.memmove(target.data_ptr(), address, target.nbytes)
        self._reads.clear()
        if self in self._device.waiting:
            self._device.waiting.remove(self)


def is_mapped(address: int) -> bool:
    if sys.platform != "linux":
        return True
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(each, 16) for each in line.split(maxsplit=1)[0].split("-"))
        if begin <= address < end:
            return True
    return False
