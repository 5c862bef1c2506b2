"""Page locks: a device copies from page-locked slots by itself, while the training continues.

Such a copy may end after the call that started it, so whoever starts one keeps the batch until
then. A `DevicePrefetcher` does. It asks for its batches within `locking`, and their slots are
page-locked. A training loop that asks for a batch itself gets a slot that is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

__all__ = ["LockedPages", "PageLock", "locking", "wanted_lock"]


class PageLock(Protocol):
    """Locks memory to where it is, so that a device can read it without the processor."""

    def lock(self, address: int, size: int) -> bool:
        """Lock memory that begins and ends with a page; returns whether it is locked."""

    def unlock(self, address: int) -> None:
        """Unlock the memory that was locked at this address."""


_wanted: ContextVar[PageLock | None] = ContextVar("wanted page lock", default=None)


@contextmanager
def locking(page_lock: PageLock | None) -> Iterator[None]:
    """Ask, within the block, for batches in memory that ``page_lock`` has locked."""
    token = _wanted.set(page_lock)
    try:
        yield
    finally:
        _wanted.reset(token)


def wanted_lock() -> PageLock | None:
    """The lock of the block of ``locking`` that the present call is in, or None."""
    return _wanted.get()


class LockedPages:
    """The locked memory of a slot: unlocked once nobody holds this, and unmapped only then.

    Args:
        page_lock: has locked the memory.
        memory: the mapping.
        address: where the mapping begins.
    """

    def __init__(self, page_lock: PageLock, memory: memoryview, address: int) -> None:
        self._page_lock = page_lock
        self._memory = memory
        self._address = address
        self._owner = os.getpid()

    def __del__(self) -> None:
        # A fork has a copy of this, but its memory was not locked by it.
        if os.getpid() == self._owner:
            self._page_lock.unlock(self._address)
