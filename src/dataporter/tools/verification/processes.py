"""Processes: runs tasks in new processes, a few at a time, each within a time limit."""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataporter.errors import DataPorterError
from dataporter.tools.verification.folder import Folder
from dataporter.tools.verification.host import INSIDE, become
from dataporter.tools.verification.imports import Imports, share

__all__ = ["Outcome", "Processes", "Task", "VerificationError", "refuse_inside"]

_SECONDS_BETWEEN_LOOKS = 0.01
_SECONDS_TO_DIE = 10
_HOST = "from dataporter.tools.verification.host import main; main()"
# Variables that change when a cluster restarts a job, if they are set at all.
_RESTARTED = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "HOSTNAME")


class VerificationError(DataPorterError, RuntimeError):
    """The verification could not be carried out; this says nothing about the loader."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work for a new process.

    Attributes:
        work: the function that the process calls; a host receives it pickled.
        host: the host that forks the process, as ``"name"``, ``"name/environment"`` or
            ``"name/environment/number"``: hosts of different names have different hash seeds,
            and hosts of different environments (by default the name) different variables.
        seconds: after which the process is killed.
        expects_kill: whether the process ends by SIGKILL if all is well.
        is_fresh: whether it must import each of the user's modules itself.
    """

    work: Callable[[], Any]
    host: str
    seconds: float
    expects_kill: bool = False
    is_fresh: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a task.

    Attributes:
        found: what its work returned; None if it did not return.
        error: why, in one line; or the ``error`` of what was found.
        killed: whether SIGKILL ended the process as expected.
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
    """The processes of one verification; leaving the ``with`` block ends all of them.

    Args:
        forked: fork this process rather than hosts, for a function that no new interpreter can
            find.
        seed: from which the hosts' hash seeds are derived.
    """

    def __init__(self, *, forked: bool, seed: int = 0) -> None:
        self._forked = forked
        self._seed = seed
        self._hosts: dict[str, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._received: dict[str, bytes] = {}
        self._running: dict[int, _Running] = {}
        self._number = 0
        # Each host imports these once, so that its processes need not.
        self.imports = Imports()
        self._search = [os.path.abspath(entry) for entry in sys.path]

    def __enter__(self) -> Processes:
        self._folder = Folder()
        self.home = self._folder.__enter__()
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
        self._folder.__exit__()

    def run(
        self,
        tasks: Sequence[Task],
        at_once: int,
        on_done: Callable[[], None] = lambda: None,
        until: float | None = None,
    ) -> list[Outcome | None]:
        """Run tasks; the outcome of each, None for a task that was not started.

        Args:
            at_once: number of processes at a time.
            on_done: called after each task.
            until: time (``time.monotonic``) after which no task is started.
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
        file = self.home / f"task-{self._number}"
        if not self._forked:
            file.write_bytes(pickle.dumps(task.work))
        running = _Running(index, task, file, time.monotonic() + task.seconds)
        self._running[self._number] = running
        if self._forked:
            running.pid = _forked(task.work, file)
            return
        slow = () if task.is_fresh else self.imports.slow
        self._ask(self._name_of(task), self._number, str(file), slow)

    def _ask(
        self, name: str, number: int | None, file: str, slow: Sequence[tuple[str, str]]
    ) -> None:
        host = self._host(name)
        request = {
            "task": number,
            "file": file,
            "search": self._search,
            "libraries": self.imports.libraries,
            "slow": slow,
        }
        line = json.dumps(request).encode() + b"\n"
        assert host.stdin is not None
        host.stdin.write(line)
        host.stdin.flush()

    def share(self, imports: Imports) -> None:
        """Let the processes that follow find these modules imported."""
        self.imports = imports
        if self._forked:
            share(imports.libraries)

    def prepare(self, *hosts: str) -> None:
        """Start hosts, and let them import what is shared, before there is a task for them."""
        if self._forked:
            return
        for host in hosts:
            self._ask(host, None, "", self.imports.slow)

    def _name_of(self, task: Task) -> str:
        if not task.is_fresh or not self.imports.slow:
            return task.host
        seed_name, environment_name = [*task.host.split("/"), task.host][:2]
        return f"{seed_name}/{environment_name}/fresh {task.host.replace('/', ' ')}"

    def _host(self, name: str) -> subprocess.Popen[bytes]:
        if name not in self._hosts:
            seed_name, environment_name = [*name.split("/"), name][:2]
            environment = dict(os.environ)
            if environment.get("PYTHONHASHSEED", "random") == "random":
                environment["PYTHONHASHSEED"] = str(_hash_seed(self._seed, seed_name))
            for variable in _RESTARTED:
                environment.setdefault(variable, f"verification {environment_name}")
            host = subprocess.Popen(
                [sys.executable, "-c", _HOST],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # Ctrl-C reaches this process alone, which then ends the others in order.
                start_new_session=True,
            )
            self._hosts[name] = host
            self._received[name] = b""
            assert host.stdout is not None
            self._selector.register(host.stdout, selectors.EVENT_READ, name)
        return self._hosts[name]

    def _ended(self) -> list[int]:
        """The numbers of the tasks that have ended; kills those that exceed their time."""
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
                    "an interpreter that runs the verification's processes ended unexpectedly: "
                    "start the verification again"
                )
            *lines, self._received[key.data] = (self._received[key.data] + more).split(b"\n")
            for line in lines:
                reply = json.loads(line)
                running = self._running.get(reply["task"])
                if running is None:
                    continue
                running.pid = reply.get("pid", running.pid)
                running.status = reply.get("status", running.status)

    def _kill(self, running: _Running) -> None:
        if running.pid is None or running.status is not None:
            return
        for kill in (os.killpg, os.kill):  # its group may not exist yet
            with suppress(ProcessLookupError):
                kill(running.pid, signal.SIGKILL)
        if self._forked:
            with suppress(ChildProcessError):
                os.waitpid(running.pid, 0)

    def _outcome(self, running: _Running) -> Outcome:
        killed = running.status == -signal.SIGKILL
        if running.status is not None and running.pid is not None:
            # Its workers would end by themselves, but only after seconds.
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
        if running.task.expects_kill and killed:
            return Outcome(None, None, killed=True)
        output = running.file.with_suffix(".out")
        if output.exists():
            found = pickle.loads(output.read_bytes())
            output.unlink()
            return Outcome(found, getattr(found, "error", None))
        if running.status is None:
            return Outcome(None, f"it did not end within {running.task.seconds:.0f} seconds")
        return Outcome(None, f"its process {_end(running.status)}{_last_line(running.file)}")


def _forked(work: Callable[[], Any], file: Path) -> int:
    pid = os.fork()
    if pid == 0:
        become(file, work)
    return pid


def _hash_seed(seed: int, name: str) -> int:
    """One for each name, which is the same when the verification is repeated."""
    return 1 + zlib.crc32(f"{seed} {name}".encode()) % ((1 << 32) - 1)


def _end(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with code {status}"


def _last_line(file: Path) -> str:
    log = file.with_suffix(".log")
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), None)
    return f" and printed: {last}" if last else " and printed nothing"


def refuse_inside() -> None:
    """Refuse to start a verification in a process of another one.

    Raises:
        VerificationError: this is such a process.
    """
    if os.environ.get(INSIDE):
        raise VerificationError(
            "verify() was called while a verification imported this module, so each verification "
            'would start another one: put the call under `if __name__ == "__main__":`'
        )
