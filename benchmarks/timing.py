"""Timing: how fast a pass over a loader runs, how long a call takes, how much memory it needs."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from timeit import Timer
from typing import Any

import torch

__all__ = [
    "peak_allocated",
    "peak_resident",
    "samples_per_second",
    "seconds_once",
    "seconds_per_call",
]

_LONGEST_CALL = 600.0


def samples_per_second(
    loader: Iterable[Any], *, batch_size: int, at_most: float, warm_up: int = 0
) -> float:
    """Samples per second over one pass, or its first ``at_most`` seconds.

    ``warm_up`` batches are taken before the clock starts: the start-up of workers is not measured,
    and the batches prefetched meanwhile would otherwise count as free.
    """
    batches = iter(loader)
    for _ in range(warm_up):
        next(batches)
    count = 0
    begin = now = perf_counter()
    for _ in batches:
        count += 1
        now = perf_counter()
        if now - begin > at_most:
            break
    return count * batch_size / (now - begin)


def seconds_per_call(call: Callable[[], object], *, at_least: float) -> float:
    """Median of five runs of timeit, each of about ``at_least`` seconds."""
    timer = Timer(call)
    once = max(timer.timeit(1), 1e-9)
    number = max(1, int(at_least / once))
    return median(timer.repeat(5, number)) / number


def seconds_once(call: Callable[[], object]) -> float:
    """Seconds of a single call, for a call that cannot be repeated."""
    begin = perf_counter()
    call()
    return perf_counter() - begin


def peak_allocated(call: Callable[[], object]) -> int:
    """The peak in bytes of Python and NumPy memory over that before; without torch's tensors."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def peak_resident(call: Callable[[], object]) -> int:
    """The largest growth of the process in bytes, whatever allocated them.

    Measured in a forked child, whose peak starts at the parent's memory. Accurate to a few MB.

    Raises:
        TimeoutError: the call took more than ten minutes.
        EOFError: the child died during the call.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def measure() -> None:
        # OpenMP's threads do not survive a fork, and the child would wait for them forever.
        torch.set_num_threads(1)
        before = _peak()
        call()
        sender.send(_peak() - before)

    child = context.Process(target=measure)
    child.start()
    sender.close()
    try:
        if not receiver.poll(_LONGEST_CALL):
            raise TimeoutError(f"no answer from {call!r} within {_LONGEST_CALL} s")
        return int(receiver.recv())
    finally:
        child.kill()
        child.join()


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
