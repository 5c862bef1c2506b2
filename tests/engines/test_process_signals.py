"""Signals and forks of the training process, which leave its workers alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
from subjects import Indices, digest, outcome_in_a_fork
from worker_processes import Filled, inline, workers_of

from dataporter import ResumableDataLoader

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


class Growing(Indices):
    """Each sample needs a new slot, whose descriptor arrives before its message."""

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.1)
        return torch.full((1000 * 2**index,), index)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
def test_time_in_which_the_training_process_was_stopped_does_not_time_out_workers() -> None:
    batches = iter(ResumableDataLoader(Growing(10), 1, num_workers=1, timeout=0.5))
    found = [int(next(batches)[0, -1])]
    stopped = f"sleep 0.25; kill -STOP {os.getpid()}; sleep 1.5; kill -CONT {os.getpid()}"
    with subprocess.Popen(["sh", "-c", stopped]):
        found += [int(batch[0, -1]) for batch in batches]
    assert found == list(range(10))


def test_the_training_s_sigterm_handler_does_not_run_in_workers() -> None:
    def handler(*_: object) -> None:
        raise RuntimeError("save what there is")

    def read(loader: ResumableDataLoader[Any], others: set[psutil.Process]) -> Iterator[str]:
        for step, batch in enumerate(loader):
            yield digest(batch)
            if step == 2:
                for worker in workers_of() - others:
                    worker.terminate()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        loader = ResumableDataLoader(Filled(), 4, shuffle=True, seed=1, num_workers=2)
        expected, others = inline(loader), workers_of()
        with pytest.warns(RuntimeWarning, match=r"SIGTERM.*nothing is lost"):
            found = list(read(loader, others))
        assert found == expected
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP", "SIGALRM"])
def test_the_training_s_handlers_of_other_signals_do_not_run_in_workers(name: str) -> None:
    """SLURM signals all processes of a job; the training saves, and the workers continue."""

    def handler(*_: object) -> None:
        raise RuntimeError("save what there is")

    number = getattr(signal, name)
    before = signal.signal(number, handler)
    try:
        loader = ResumableDataLoader(
            Filled(), 4, shuffle=True, seed=1, num_workers=2, worker_restarts=0
        )
        expected, others = inline(loader), workers_of()
        batches = iter(loader)
        found = [digest(next(batches))]
        for worker in workers_of() - others:
            worker.send_signal(number)
        found += [digest(batch) for batch in batches]
    finally:
        signal.signal(number, before)
    assert found == expected


def test_the_training_s_handlers_do_not_run_in_a_worker_that_is_starting() -> None:
    """The signal is sent again and again, also before the worker has set its handlers."""

    def handler(*_: object) -> None:
        raise RuntimeError("save what there is")

    def loader() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Filled(), 4, shuffle=True, seed=1, num_workers=2, worker_restarts=0
        )

    expected, others, over = inline(loader()), workers_of(), threading.Event()

    def tell() -> None:
        while not over.is_set():
            for process in workers_of() - others:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGUSR1)

    telling = threading.Thread(target=tell, daemon=True)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        telling.start()
        for _ in range(5):
            assert [digest(batch) for batch in loader()] == expected
    finally:
        over.set()
        telling.join(10)
        signal.signal(signal.SIGUSR1, before)


class Blocked(Indices):
    """The signals that are blocked in the process that reads."""

    def __getitem__(self, index: int) -> list[int]:
        return sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def test_a_worker_blocks_the_signals_that_the_training_blocks() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        loader = ResumableDataLoader(
            Blocked(4), None, num_workers=2, multiprocessing_context="fork", collate_fn=list
        )
        assert list(loader) == [[signal.SIGUSR2]] * 4
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        signal.signal(signal.SIGUSR1, before)


# ---- a training that forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("persistent", [False, True])
def test_a_fork_of_the_training_starts_new_workers_and_leaves_the_training_s_alone(
    persistent: bool,
) -> None:
    loader = ResumableDataLoader(
        Filled(40), 2, shuffle=True, seed=1, num_workers=2, persistent_workers=persistent
    )
    expected = inline(loader)
    batches = iter(loader)
    found = [digest(next(batches)) for _ in range(3)]

    def look() -> list[str]:
        loader.seek(epoch=0)
        return [digest(batch) for batch in loader]

    assert outcome_in_a_fork(look) == expected
    assert "begin another" in outcome_in_a_fork(lambda: digest(next(batches)))
    assert found + [digest(batch) for batch in batches] == expected
