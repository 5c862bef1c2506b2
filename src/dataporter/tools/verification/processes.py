"""Processes: gives jobs to new processes, a few at a time, and waits for none without end."""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataporter.errors import DataPorterError
from dataporter.tools.verification.host import INSIDE, become

__all__ = ["Outcome", "Processes", "Task", "VerificationError", "refuse_inside"]

_SECONDS_BETWEEN_LOOKS = 0.01
_SECONDS_TO_DIE = 10
_HOST = "from dataporter.tools.verification.host import main; main()"
# What a job that restarts in a cluster finds changed about its environment, where it is set at all.
_RESTARTED = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "HOSTNAME")


class VerificationError(DataPorterError, RuntimeError):
    """The verification could not be carried out, which says nothing about the loader."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a new process is to do.

    Attributes:
        work: called in it; a host's process receives it pickled.
        host: on which host, as ``"name"``, ``"name/environment"`` or
            ``"name/environment/which"``: those of another name have another hash seed, those of
            another environment (by default the name) other variables.
        expects_kill: whether it is to end by SIGKILL.
    """

    work: Callable[[], Any]
    host: str
    seconds: float
    expects_kill: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task.

    Attributes:
        found: what the process has left; None where it left nothing.
        error: why, in one line.
        killed: whether SIGKILL ended it.
    """

    found: Any
    error: str | None = None
    killed: bool = False


@dataclass(slots=True)
class _Running:
    index: int
    task: Task
    file: Path
    deadline: float
    pid: int | None = None
    status: int | None = None


class Processes:
    """The processes of one verification; leaving the ``with`` block leaves none of them alive.

    Args:
        forked: fork this process instead, for a function that no new interpreter can find.
        seed: of the hosts' hash seeds.
    """

    def __init__(self, *, forked: bool, seed: int = 0) -> None:
        self._forked = forked
        self._seed = seed
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._heard: dict[str, bytes] = {}
        self._running: dict[int, _Running] = {}
        self._number = 0
        # Imported once by each host, and not by each of its processes.
        self.libraries: tuple[str, ...] = ()
        self._search = [os.path.abspath(entry) for entry in sys.path]

    def __enter__(self) -> Processes:
        self._directory = tempfile.TemporaryDirectory(prefix="dataporter-verify-")
        self.home = Path(self._directory.name)
        return self

    def __exit__(self, *exception: object) -> None:
        for running in list(self._running.values()):
            self._kill(running)
        for host in self._hosts.values():
            assert host.stdin is not None
            assert host.stdout is not None
            host.stdin.close()
            try:
                host.wait(_SECONDS_TO_DIE)
            except subprocess.TimeoutExpired:
                host.kill()
                host.wait(_SECONDS_TO_DIE)
            host.stdout.close()
        self._selector.close()
        self._directory.cleanup()

    def run(
        self,
        tasks: Sequence[Task],
        at_once: int,
        on_done: Callable[[], None] = lambda: None,
        until: float | None = None,
    ) -> list[Outcome | None]:
        """Carry tasks out; what became of each, None where it was not begun.

        Args:
            at_once: how many processes there are at a time.
            on_done: called after each task.
            until: when (``time.monotonic``) no further one is begun.
        """
        outcomes: list[Outcome | None] = [None] * len(tasks)
        waiting = list(enumerate(tasks))[::-1]
        while waiting or self._running:
            if until is not None and time.monotonic() > until:
                waiting.clear()
            while waiting and len(self._running) < at_once:
                self._start(*waiting.pop())
            for number in self._ended():
                running = self._running.pop(number)
                outcomes[running.index] = self._outcome(running)
                on_done()
        return outcomes

    def _start(self, index: int, task: Task) -> None:
        self._number += 1
        file = self.home / f"job-{self._number}"
        if not self._forked:
            file.write_bytes(pickle.dumps(task.work))
        running = _Running(index, task, file, time.monotonic() + task.seconds)
        self._running[self._number] = running
        if self._forked:
            running.pid = _forked(task.work, file)
            return
        host = self._host(task.host)
        asked = {
            "job": self._number,
            "file": str(file),
            "search": self._search,
            "libraries": self.libraries,
        }
        line = json.dumps(asked).encode() + b"\n"
        assert host.stdin is not None
        host.stdin.write(line)
        host.stdin.flush()

    def _host(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self._hosts:
            seed_of, environment_of = [*name.split("/"), name][:2]
            environment = dict(os.environ)
            if environment.get("PYTHONHASHSEED", "random") == "random":
                environment["PYTHONHASHSEED"] = str(_hash_seed(self._seed, seed_of))
            for variable in _RESTARTED:
                environment.setdefault(variable, f"verification {environment_of}")
            host = subprocess.Popen(
                [sys.executable, "-c", _HOST],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # Ctrl-C comes to this process alone, which then stops everything in order.
                start_new_session=True,
            )
            self._hosts[name] = host
            self._heard[name] = b""
            assert host.stdout is not None
            self._selector.register(host.stdout, selectors.EVENT_READ, name)
        return self._hosts[name]

    def _ended(self) -> list[int]:
        """The jobs that have ended since; those that take too long are ended."""
        if self._forked:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            for running in self._running.values():
                assert running.pid is not None
                pid, status = os.waitpid(running.pid, os.WNOHANG)
                if pid:
                    running.status = os.waitstatus_to_exitcode(status)
        else:
            self._listen()
        ended = []
        for number, running in self._running.items():
            if running.status is not None:
                ended.append(number)
            elif time.monotonic() > running.deadline and running.pid is not None:
                self._kill(running)
                ended.append(number)
        return ended

    def _listen(self) -> None:
        for key, _ in self._selector.select(_SECONDS_BETWEEN_LOOKS):
            more = os.read(key.fd, 1 << 16)
            if not more:
                raise VerificationError(
                    "an interpreter that was started for the verification has ended by itself"
                )
            *lines, self._heard[key.data] = (self._heard[key.data] + more).split(b"\n")
            for line in lines:
                told = json.loads(line)
                running = self._running.get(told["job"])
                if running is None:
                    continue
                running.pid = told.get("pid", running.pid)
                running.status = told.get("status", running.status)

    def _kill(self, running: _Running) -> None:
        if running.pid is None or running.status is not None:
            return
        for kill in (os.killpg, os.kill):  # it may not have its group yet
            with suppress(ProcessLookupError):
                kill(running.pid, signal.SIGKILL)
        if self._forked:
            with suppress(ChildProcessError):
                os.waitpid(running.pid, 0)

    def _outcome(self, running: _Running) -> Outcome:
        killed = running.status == -signal.SIGKILL
        if running.status is not None and running.pid is not None:
            # Its workers would notice by themselves, but only after seconds.
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        if running.task.expects_kill and killed:
            return Outcome(None, None, killed=True)
        left = running.file.with_suffix(".out")
        if left.exists():
            found = pickle.loads(left.read_bytes())
            left.unlink()
            return Outcome(found, getattr(found, "error", None))
        if running.status is None:
            return Outcome(None, f"it had no end after {running.task.seconds:.0f} seconds")
        return Outcome(None, f"its process {_end(running.status)}{_said(running.file)}")


def _forked(work: Callable[[], Any], file: Path) -> int:
    pid = os.fork()
    if pid == 0:
        become(file, work)
    return pid


def _hash_seed(seed: int, name: str) -> int:
    """Hosts of different names have different ones, and the same in a verification repeated."""
    return 1 + zlib.crc32(f"{seed} {name}".encode()) % ((1 << 32) - 1)


def _end(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with code {status}"


def _said(file: Path) -> str:
    log = file.with_suffix(".log")
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), None)
    return f" and said: {said}" if said else " and said nothing"


def refuse_inside() -> None:
    """A module that is imported by a verification must not start one itself.

    Raises:
        VerificationError: this is a process of a verification.
    """
    if os.environ.get(INSIDE):
        raise VerificationError(
            "verify() was called while a verification imported this module, which would go on "
            'without end: put the call under `if __name__ == "__main__":`'
        )
