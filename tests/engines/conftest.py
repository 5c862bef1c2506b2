"""Fixtures of the tests of engines."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import psutil
import pytest
from worker_processes import shared_memory, used_by_others, workers_of


@pytest.fixture
def nothing_is_left_behind() -> Iterator[None]:
    processes, memory = workers_of(), shared_memory()
    yield
    gc.collect()
    _, alive = psutil.wait_procs(workers_of() - processes, timeout=5)
    assert alive == []
    # Other programs have files there as well: these come and go, or are in use.
    left, until = shared_memory() - memory, time.monotonic() + 5
    while left and time.monotonic() < until:
        time.sleep(0.05)
        left &= shared_memory()
    assert left <= used_by_others()
