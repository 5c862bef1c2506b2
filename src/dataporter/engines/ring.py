"""The ring: slots of shared memory that a worker reuses for its batches (C11).

A worker creates its slots in the size of its batches, and sends each to the training process once.
Both processes map it. It has no name, so nothing is left behind, whichever process is killed. A
batch holds a lease of its slot: an array over the slot's memory that all tensors of the batch keep
alive. Once the last of them is gone, the training process returns the slot for the next batch.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataporter.engines.page_lock import LockedPages, wanted_lock
from dataporter.shared.memfile import create_memory, explaining_limit, map_memory

__all__ = ["Lease", "Slot", "TrainingSlots", "WorkerSlots"]

# The bytes of a slot, kept mapped by every tensor and array that is a view of them.
Lease = NDArray[np.uint8]

# A new slot is this many times as large as the batch it is for, since the next may be larger. Pages
# that are never written take no memory.
_ROOM = 1.25


@dataclass(slots=True)
class Slot:
    """A mapped slot, in either process.

    Attributes:
        number: identifies it among the worker's slots.
        memory: the mapping, which keeps no descriptor open.
        address: where the mapping begins.
        descriptor: the file's, until the slot was sent to the training process.
        locked: its memory as page-locked memory, if it is.
    """

    number: int
    memory: memoryview
    address: int
    descriptor: int | None = None
    locked: LockedPages | None = None
    _holders: weakref.ref[Lease] | None = None

    @classmethod
    def map(cls, number: int, descriptor: int, size: int) -> Slot:
        memory = map_memory(descriptor, size)
        return cls(number, memory, np.frombuffer(memory, dtype=np.uint8).ctypes.data)

    @classmethod
    def private(cls, size: int) -> Slot:
        """A slot that only this process has."""
        memory = memoryview(mmap.mmap(-1, size))
        return cls(-1, memory, np.frombuffer(memory, dtype=np.uint8).ctypes.data)

    @property
    def size(self) -> int:
        return len(self.memory)

    @property
    def is_held(self) -> bool:
        """Whether a view of the slot's last lease is still alive in this process."""
        return self._holders is not None and self._holders() is not None

    def lease(self, size: int, on_end: Any = None) -> Lease:
        """The slot's first bytes; ``on_end`` is called once no view of them is left."""
        lease = np.frombuffer(self.memory, dtype=np.uint8, count=size)
        self._holders = weakref.ref(lease, on_end)
        if self.locked is not None:
            # A batch may outlive the slot; its memory stays locked as long as it is mapped.
            weakref.finalize(lease, _held_until_now, self.locked).atexit = False
        return lease

    def lock_as_wanted(self) -> None:
        """Page-lock the slot, or unlock it, for the batch that is delivered from it next."""
        page_lock = wanted_lock()
        if page_lock is None:
            self.locked = None
        elif self.locked is None and page_lock.lock(self.address, self.size):
            self.locked = LockedPages(page_lock, self.memory, self.address)


class WorkerSlots:
    """The worker's side: the slots it may write to."""

    def __init__(self) -> None:
        self._free: list[Slot] = []
        self._sent: dict[int, Slot] = {}
        self._given_up: list[int] = []
        self._made = 0

    def take(self, size: int) -> Slot | None:
        """The slot that was returned last, since it is still in caches, or else a new one.

        ``size`` is the expected number of bytes; None is returned if it is 0 and no slot is free.
        """
        while self._free:
            slot = self._free.pop()
            # A fetch that failed half-way may have kept a part of its batch.
            if not slot.is_held:
                return slot
            self.give_up(slot)
        return self.make(size) if size else None

    def make(self, size: int) -> Slot:
        """A new slot with room for ``size`` bytes."""
        capacity = -(-int(size * _ROOM) // mmap.PAGESIZE) * mmap.PAGESIZE
        with explaining_limit("memory for a batch"):
            descriptor = create_memory(capacity)
            try:
                slot = Slot.map(self._made, descriptor, capacity)
            except BaseException:
                os.close(descriptor)
                raise
        slot.descriptor = descriptor
        self._made += 1
        return slot

    def put_back(self, slot: Slot) -> None:
        """Return a slot in which nothing was sent."""
        self._free.append(slot)

    def give_up(self, slot: Slot) -> None:
        """Never use this slot again: it is too small, or held."""
        if slot.descriptor is None:
            self._given_up.append(slot.number)
        else:
            self.forget_descriptor(slot)

    def send(self, slot: Slot) -> None:
        """Leave the slot to the training process until that returns it."""
        self._sent[slot.number] = slot

    def take_back(self, slot: Slot) -> None:
        """Forget a slot that could not be sent."""
        del self._sent[slot.number]
        self.forget_descriptor(slot)

    def forget_descriptor(self, slot: Slot) -> None:
        """Close the descriptor: the training process has its own, or needs none."""
        if slot.descriptor is not None:
            os.close(slot.descriptor)
            slot.descriptor = None

    def release(self, reusable: list[int], spent: list[int]) -> None:
        """Take back slots from the training process, or forget them.

        Args:
            reusable: slots to write to again.
            spent: slots never to write to again.
        """
        self._free += [self._sent.pop(number) for number in reusable]
        for number in spent:
            del self._sent[number]

    def given_up(self) -> list[int]:
        """The slots given up since the last call."""
        given_up, self._given_up = self._given_up, []
        return given_up


class TrainingSlots:
    """The training process's side of one worker's slots."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}
        self._leased: set[int] = set()
        # A forked process may read the batches it has inherited at any later time, so these slots
        # are never written to again.
        self._inherited: set[int] = set()
        # Filled by the thread that drops the last tensor of a batch.
        self._ended: deque[int] = deque()
        _ALL.add(self)

    def map(self, number: int, descriptor: int) -> None:
        """Map a slot received from the worker, and close its descriptor."""
        try:
            with explaining_limit("a worker's memory for its batches"):
                self._slots[number] = Slot.map(number, descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def unmap(self, numbers: Sequence[int]) -> None:
        """Forget the slots that the worker has given up."""
        for number in numbers:
            del self._slots[number]

    def lease(self, number: int, size: int) -> Lease:
        """The bytes of a batch; its slot is returned once no view of them is left."""
        self._leased.add(number)
        slot = self._slots[number]
        slot.lock_as_wanted()
        return slot.lease(size, partial(_append, self._ended, number))

    def copy(self, number: int, size: int) -> Lease:
        """A copy of the bytes of a batch; its slot is returned at once."""
        copied: Lease = self._slots[number].lease(size).copy()
        self.discard(number)
        return copied

    def discard(self, number: int) -> None:
        """Return a slot whose batch is not used."""
        self._leased.add(number)
        self._ended.append(number)

    @property
    def size(self) -> int:
        """Bytes that are mapped, in use or not."""
        return sum(slot.size for slot in self._slots.values())

    @property
    def leases(self) -> int:
        """How many batches are in use."""
        return len(self._leased) - len(self._ended)

    def returned(self) -> tuple[list[int], list[int]]:
        """Slots to return to the worker since the last call: reusable ones and spent ones."""
        reusable, spent = [], []
        while self._ended:
            number = self._ended.popleft()
            self._leased.discard(number)
            if number in self._inherited:
                self._inherited.discard(number)
                del self._slots[number]
                spent.append(number)
            else:
                reusable.append(number)
        return reusable, spent

    def inherit(self) -> None:
        """Note that a forked process has inherited the batches that are in use."""
        self._inherited |= self._leased - set(self._ended)


def _held_until_now(_: LockedPages) -> None:
    """What a finalizer calls that has only kept its argument."""


def _append(numbers: deque[int], number: int, _: object) -> None:
    numbers.append(number)


def _inherit_all() -> None:
    for slots in list(_ALL):
        slots.inherit()


_ALL: weakref.WeakSet[TrainingSlots] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_inherit_all)
