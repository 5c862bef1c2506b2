"""Patience: look again for a moment before going to sleep, where what is awaited comes soon."""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

__all__ = ["AdaptiveSpin"]

Found = TypeVar("Found")

# A processor that has gone idle takes 100 us and more to wake up in a virtual machine, as long as a
# small batch takes to read. Sleeping at once gave 6,200 batches of 66 kB a second, looking for
# 0.3 ms before 6,800, and for 1 ms 7,700 (medians of 7 rounds, taking turns).
_LOOKS_FOR = 1e-3  # s
# Yielding lets whoever has work to do go first; without it one would stand in their way.
_CAN_YIELD = hasattr(os, "sched_yield")


class AdaptiveSpin:
    """For one place that waits. Where the waits were long of late, it goes to sleep at once.

    The adaptive spinning of mutexes, for what comes over a socket.
    """

    def __init__(self) -> None:
        self._usual = 0.0  # s, and no more than can be told apart from never

    def wait(self, look: Callable[[], Found | None], sleep: Callable[[], Found]) -> Found:
        """What ``look`` finds within a moment, or else what ``sleep`` waits for."""
        began = now = perf_counter()
        found = None
        if self._usual < _LOOKS_FOR and _CAN_YIELD:
            while found is None and now - began < _LOOKS_FOR:
                os.sched_yield()
                found = look()
                now = perf_counter()
        if found is None:
            found = sleep()
            now = perf_counter()
        self._usual += (min(now - began, 4 * _LOOKS_FOR) - self._usual) / 4
        return found
