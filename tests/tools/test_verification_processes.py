"""Processes of a verification: what they inherit, how long they may take, and what they leave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from subjects import Augmented

from dataporter import ResumableDataLoader, verify
from dataporter.tools.verification.folder import Folder
from dataporter.tools.verification.processes import Processes, Task

_SECONDS = 60


@pytest.fixture
def server() -> None:
    """The server of the method "forkserver", as a loader with workers starts it."""
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join(_SECONDS)
    assert process.exitcode == 0


def has_torch() -> bool:
    """Whether a new worker of this process finds torch imported."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.apply(eval, ("'torch' in __import__('sys').modules",))


@pytest.mark.usefixtures("server")
def test_a_fork_starts_its_own_server_which_has_imported_torch() -> None:
    with Processes(forked=True) as processes:
        (outcome,) = processes.run([Task(has_torch, "one", _SECONDS)], 1)
    assert outcome is not None
    assert (outcome.found, outcome.error) == (True, None)


def test_the_time_for_cases_begins_once_the_loader_has_delivered() -> None:
    def make() -> Any:
        time.sleep(0.6)
        return ResumableDataLoader(Augmented(20), 4, seed=1)

    report = verify(make, workers=[0], measure=False, diagnose=False, max_seconds=0.3)
    assert "exact" in {case.verdict for case in report.cases}


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_folder_is_left_however_a_verification_ends(end: int, tmp_path: Path) -> None:
    def verifying(entered: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with Folder() as home:
            (home / "task").touch()
            entered.send(home)
            time.sleep(_SECONDS)

    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=verifying, args=(child,))
    process.start()
    child.close()
    home = parent.recv()
    assert home.is_dir()
    assert process.pid is not None
    os.kill(process.pid, end)
    process.join(_SECONDS)
    until = time.monotonic() + _SECONDS
    while home.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not home.exists()


def test_no_folder_is_left_after_the_end() -> None:
    with Folder() as home:
        (home / "task").touch()
    assert not home.exists()
