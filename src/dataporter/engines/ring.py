"""The ring: slots of shared memory that a worker writes batches to, over and over (C11).

A worker makes its slots itself, in the size that its batches have, and sends each to the training
process once. Both map it; it has no name, so nothing is left behind whoever is killed. A batch is a
lease of its slot: an array over the slot's memory that all tensors of the batch keep alive. When
the last of them is gone the training process gives the slot back, and the worker writes to it anew.
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

from dataporter.shared.memfile import create_memory

__all__ = ["Lease", "Slot", "TrainingSlots", "WorkerSlots"]

# The bytes of a slot, kept mapped by whatever is made of them.
Lease = NDArray[np.uint8]

# New slots are larger than the batch that asks for one, since the next may be larger than that.
# Pages that are never written to take no memory.
_ROOM = 1.25


@dataclass(slots=True)
class Slot:
    """A mapped slot, in either process.

    Attributes:
        number: tells it from the worker's other slots.
        memory: the mapping.
        address: where it begins.
        descriptor: of a slot that the training process has not been sent yet.
    """

    number: int
    memory: mmap.mmap
    address: int
    descriptor: int | None = None
    _holders: weakref.ref[Lease] | None = None

    @classmethod
    def map(cls, number: int, descriptor: int, size: int) -> Slot:
        memory = mmap.mmap(descriptor, size)
        return cls(number, memory, np.frombuffer(memory, dtype=np.uint8).ctypes.data)

    @classmethod
    def private(cls, size: int) -> Slot:
        """One that only this process has."""
        memory = mmap.mmap(-1, size)
        return cls(-1, memory, np.frombuffer(memory, dtype=np.uint8).ctypes.data)

    @property
    def size(self) -> int:
        return len(self.memory)

    @property
    def is_held(self) -> bool:
        """Whether anything made of the slot's last lease is still alive in this process."""
        return self._holders is not None and self._holders() is not None

    def lease(self, size: int, when_over: Any = None) -> Lease:
        """The slot's first bytes; ``when_over`` is called when nothing made of them is left."""
        lease = np.frombuffer(self.memory, dtype=np.uint8, count=size)
        self._holders = weakref.ref(lease, when_over)
        return lease


class WorkerSlots:
    """A worker's side: the slots that it may write to."""

    def __init__(self) -> None:
        self._free: list[Slot] = []
        self._sent: dict[int, Slot] = {}
        self._given_up: list[int] = []
        self._made = 0

    def take(self, size: int) -> Slot | None:
        """A slot to write to: the last that came back, since caches know it, or else a new one.

        ``size`` says how much is likely to be written; None where that is 0 and no slot is free.
        """
        while self._free:
            slot = self._free.pop()
            # What failed in the middle of making a batch may have kept a part of it.
            if not slot.is_held:
                return slot
            self.give_up(slot)
        return self.make(size) if size else None

    def make(self, size: int) -> Slot:
        """A new slot with room for ``size`` bytes."""
        capacity = -(-int(size * _ROOM) // mmap.PAGESIZE) * mmap.PAGESIZE
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
        """Nothing was sent in it."""
        self._free.append(slot)

    def give_up(self, slot: Slot) -> None:
        """It is too small, or held."""
        if slot.descriptor is None:
            self._given_up.append(slot.number)
        else:
            self.forget_descriptor(slot)

    def send(self, slot: Slot) -> None:
        """It is the training process's, until that gives it back."""
        self._sent[slot.number] = slot

    def forget_descriptor(self, slot: Slot) -> None:
        """The training process has it, or never will."""
        if slot.descriptor is not None:
            os.close(slot.descriptor)
            slot.descriptor = None

    def release(self, reusable: list[int], spent: list[int]) -> None:
        """The training process gives slots back, to be written to or never again."""
        self._free += [self._sent.pop(number) for number in reusable]
        for number in spent:
            del self._sent[number]

    def given_up(self) -> list[int]:
        """What was given up since this was last asked."""
        given_up, self._given_up = self._given_up, []
        return given_up


class TrainingSlots:
    """The training process's side of one worker's slots."""

    def __init__(self) -> None:
        self._slots: dict[int, Slot] = {}
        self._leased: set[int] = set()
        # A forked process goes on reading the batches that it has inherited, and nobody tells when
        # it is done, so these slots are not written to again.
        self._inherited: set[int] = set()
        # Filled by whichever thread drops the last tensor of a batch.
        self._over: deque[int] = deque()
        _ALL.add(self)

    def map(self, number: int, descriptor: int) -> None:
        """Map a slot that has come from the worker; the descriptor is closed."""
        try:
            self._slots[number] = Slot.map(number, descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)

    def unmap(self, numbers: Sequence[int]) -> None:
        """The worker has given these up."""
        for number in numbers:
            del self._slots[number]

    def lease(self, number: int, size: int) -> Lease:
        """The bytes of a batch; its slot comes back when nothing made of them is left."""
        self._leased.add(number)
        return self._slots[number].lease(size, partial(_append, self._over, number))

    def copy(self, number: int, size: int) -> Lease:
        """The same, but copied out: the slot comes back at once."""
        copied: Lease = self._slots[number].lease(size).copy()
        self.leave(number)
        return copied

    def leave(self, number: int) -> None:
        """Nobody wants the batch in this slot."""
        self._leased.add(number)
        self._over.append(number)

    @property
    def size(self) -> int:
        """Bytes mapped, used or not."""
        return sum(slot.size for slot in self._slots.values())

    @property
    def leases(self) -> int:
        """How many batches are held."""
        return len(self._leased) - len(self._over)

    def returned(self) -> tuple[list[int], list[int]]:
        """Slots for the worker, since this was last asked: reusable ones, and spent ones."""
        reusable, spent = [], []
        while self._over:
            number = self._over.popleft()
            self._leased.discard(number)
            if number in self._inherited:
                self._inherited.discard(number)
                del self._slots[number]
                spent.append(number)
            else:
                reusable.append(number)
        return reusable, spent

    def inherit(self) -> None:
        """The process was forked."""
        self._inherited |= self._leased - set(self._over)


def _append(numbers: deque[int], number: int, _: object) -> None:
    numbers.append(number)


def _inherit_all() -> None:
    for slots in list(_ALL):
        slots.inherit()


_ALL: weakref.WeakSet[TrainingSlots] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_inherit_all)
