"""Threads: the inline engine's batches, exact with sample_rng, and a warning where they are not."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import pytest
import torch
from budgets import slow
from subjects import Indices, digest, ids, outcome_in_a_fork

from dataporter import ConfigurationError, ResumableDataLoader, WorkerTimeoutError, sample_rng


class Explicit(Indices):
    def __getitem__(self, index: int) -> Any:
        return {"index": index, "noise": sample_rng().normal(size=3), "by": threading.get_ident()}


class Global(Indices):
    def __getitem__(self, index: int) -> float:
        return random.random()


def stripped(batch: Any) -> Any:
    return {key: value for key, value in batch.items() if key != "by"}


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("stop", [0, 3, 10])
@pytest.mark.filterwarnings("error", "ignore:this pass has no batch")
def test_threads_give_what_the_inline_engine_gives_after_any_stop(
    persistent: bool, stop: int
) -> None:
    def loader(workers: int) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Explicit(40),
            4,
            shuffle=True,
            seed=5,
            num_workers=workers,
            worker_kind="thread",
            persistent_workers=persistent and workers > 0,
        )

    reference = loader(0)
    expected = [digest(stripped(batch)) for _ in range(2) for batch in reference]
    first, second = loader(2), loader(1)
    batches = iter(first)
    found = [digest(stripped(next(batches))) for _ in range(stop)]
    second.load_state_dict(first.state_dict())
    found += [digest(stripped(batch)) for batch in second]
    found += [digest(stripped(batch)) for batch in second]
    assert found[: len(expected)] == expected


def test_threads_read_the_samples() -> None:
    loader = ResumableDataLoader(Explicit(40), 4, num_workers=2, worker_kind="thread")
    readers = {thread for batch in loader for thread in batch["by"].tolist()}
    assert threading.get_ident() not in readers


def test_a_dataset_that_draws_from_a_global_generator_causes_a_warning() -> None:
    loader = ResumableDataLoader(Global(8), 2, num_workers=2, worker_kind="thread")
    with pytest.warns(RuntimeWarning, match=r"draws from Python's random.*sample_rng"):
        list(loader)


class Failing(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 4:
            raise LookupError("no such file")
        return index


def test_a_sample_that_raises_is_an_error_and_can_be_skipped() -> None:
    batches = iter(ResumableDataLoader(Failing(8), 2, num_workers=2, worker_kind="thread"))
    assert ids(next(batches)) + ids(next(batches)) == [0, 1, 2, 3]
    with pytest.raises(LookupError, match="no such file"):
        next(batches)
    assert ids(next(batches)) == [6, 7]


class Hanging(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 2:
            time.sleep(3)
        return index


def test_a_thread_that_hangs_is_timed_out() -> None:
    loader = ResumableDataLoader(Hanging(6), 1, num_workers=2, worker_kind="thread", timeout=0.3)
    with pytest.raises(WorkerTimeoutError, match="step 2"):
        list(loader)


def test_the_threads_end_with_their_loader() -> None:
    """At once, and not at the next garbage collection."""
    gc.collect()
    before = threading.active_count()
    gc.disable()
    for _ in range(5):
        loader = ResumableDataLoader(Indices(50), 1, num_workers=4, worker_kind="thread")
        next(iter(loader))
        del loader
    gc.enable()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_of_the_training_starts_new_threads() -> None:
    loader = ResumableDataLoader(
        Indices(12), 2, num_workers=2, worker_kind="thread", persistent_workers=True
    )
    batches = iter(loader)
    found = ids(next(batches))

    def look() -> list[int]:
        loader.seek(epoch=0)
        return [index for batch in loader for index in ids(batch)]

    assert outcome_in_a_fork(look) == list(range(12))
    assert "begin another" in outcome_in_a_fork(lambda: ids(next(batches)))
    assert found + [index for batch in batches for index in ids(batch)] == list(range(12))


def test_worker_init_fn_is_called_once_in_each_thread() -> None:
    called: list[int] = []
    loader = ResumableDataLoader(
        Indices(30), 1, num_workers=2, worker_kind="thread", worker_init_fn=called.append
    )
    list(loader)
    assert sorted(called) in ([0], [0, 1])


def test_batches_out_of_order_are_counted_exactly() -> None:
    loader = ResumableDataLoader(
        Indices(40), 2, num_workers=3, worker_kind="thread", in_order=False, seed=1, shuffle=True
    )
    batches = iter(loader)
    found = [index for _ in range(7) for index in ids(next(batches))]
    resumed = ResumableDataLoader(Indices(40), 2, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    found += [index for batch in resumed for index in ids(batch)]
    assert sorted(found) == list(range(40))


def test_an_unknown_kind_of_worker_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'process' or 'thread'"):
        ResumableDataLoader(Indices(4), worker_kind="fibre")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_draws_of_the_training_loop_cause_no_warning() -> None:
    for _ in ResumableDataLoader(Explicit(20), 2, num_workers=2, worker_kind="thread"):
        random.random(), torch.rand(1)
    warnings.resetwarnings()


SLOW = """
import sys, time
import torch
from dataporter import ResumableDataLoader

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 1000

    def __getitem__(self, index):
        time.sleep(0 if index < 4 else 300)
        return index

batches = iter(
    ResumableDataLoader(Slow(), 2, num_workers=2, prefetch_factor=8, worker_kind="thread")
)
print(next(batches).tolist(), flush=True)
"""


BUSY = """
import sys
import torch
from dataporter import ResumableDataLoader

class Busy:
    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        rows = torch.ones(100, 100)
        for _ in range(20):
            rows = rows @ rows.softmax(0)
        return rows

batches = iter(
    ResumableDataLoader(Busy(), 4, num_workers=4, prefetch_factor=8, worker_kind="thread")
)
next(batches)
if "error" in sys.argv:
    raise KeyError("the end")
"""


@pytest.mark.parametrize("end", ["", *slow("error")])
def test_a_program_that_ends_while_threads_run_torch_is_not_aborted(end: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUSY, end],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == (1 if end else 0), ended.stderr
    assert "terminate called" not in ended.stderr


def test_python_exits_although_threads_still_have_batches_to_read() -> None:
    """Python would wait for the threads of a ThreadPoolExecutor, 16 times 300 s."""
    ended = subprocess.run(
        [sys.executable, "-c", SLOW], capture_output=True, text=True, timeout=100, check=True
    )
    assert ended.stdout.strip() == "[0, 1]"
    assert not ended.stderr
