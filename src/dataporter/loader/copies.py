"""Copies of batches to a device: started before they are used, each batch kept until its end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from dataporter.engines import PageLock
from dataporter.structure import parts_of, rebuilt

__all__ = ["Copies", "Copy", "Device", "PlainDevice", "Started", "moved"]

# Batches whose copies may still run, besides the one that was started last. A training loop that
# is further ahead of the device than that waits here, and holds no more slots of a worker than the
# worker lends (crew.py).
_MOST_KEPT = 2


class Copy(Protocol):
    """A copy that may still run after the call that has started it.

    Attributes:
        batch: the batch on the device, which is complete only once the copy is done.
    """

    batch: Any

    def precede(self) -> None:
        """Let what the device is given from now on wait for this copy."""

    def is_done(self) -> bool:
        """Whether the copy is done, without waiting."""

    def wait(self) -> None:
        """Wait until the copy is done."""


class Device(Protocol):
    """Where batches are copied to.

    Attributes:
        page_lock: locks the memory from which the device copies; None where none is locked.
    """

    page_lock: PageLock | None

    def copy(self, batch: Any) -> Copy:
        """Start to copy a batch. Its memory must be neither freed nor changed before the end."""


class Started(NamedTuple):
    """A batch, and its copy."""

    source: Any
    copy: Copy


class Copies:
    """The copies to a device that were started and may still run."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._ahead: deque[Started] = deque()
        self._kept: deque[Started] = deque()

    def start(self, batch: Any) -> None:
        """Start to copy a batch, which is kept until its copy is done."""
        self._ahead.append(Started(batch, self.device.copy(batch)))

    def next(self) -> Started:
        """The batch that was started first and not returned yet; the device may use the copy."""
        started = self._ahead.popleft()
        started.copy.precede()
        self._kept.append(started)
        while self._kept and self._kept[0].copy.is_done():
            self._kept.popleft()
        while len(self._kept) > _MOST_KEPT:
            self._kept[0].copy.wait()
            self._kept.popleft()
        return started

    def close(self) -> None:
        """Wait for all copies, also of batches that nobody wants any more."""
        while self._ahead:
            # Their memory on the device is free from now on, but not before the copy is done.
            self._ahead[0].copy.precede()
            self._kept.append(self._ahead.popleft())
        while self._kept:
            self._kept[0].copy.wait()
            self._kept.popleft()


class PlainDevice:
    """A device whose copies torch orders with all other work, and for which it keeps the memory."""

    page_lock: PageLock | None = None

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # In older versions of torch, a copy to MPS that is not awaited may read freed memory.
        self._non_blocking = device.type != "mps"

    def copy(self, batch: Any) -> Copy:
        return _Done(
            moved(batch, lambda value: value.to(self._device, non_blocking=self._non_blocking))
        )


class _Done:
    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def precede(self) -> None:
        pass

    def is_done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


def moved(value: Any, move: Callable[[Any], Any]) -> Any:
    """The batch with its movable parts moved, in containers of the same types."""
    if isinstance(value, torch.Tensor) or (hasattr(value, "to") and callable(value.to)):
        return move(value)
    parts = parts_of(value)
    if parts is None:
        return value
    return rebuilt(value, {part.key: moved(part.value, move) for part in parts})
