"""A host: an interpreter of its own that forks a process for each job it is given.

It has imported torch, this package and the libraries that the loader needs, and nothing of the
user's, so each of its processes is as new as an interpreter that was just started, which would take
seconds each; and one host's hash seed is not another's.

It reads lines of JSON, ``{"job": number, "file": path, "search": [...], "libraries": [...]}``, and
writes lines ``{"job": number, "pid": ...}`` and ``{"job": number, "status": ...}``.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import random
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Imported here once, and not by each process.
from dataporter.tools.verification import probe, recording, throughput  # noqa: F401
from dataporter.tools.verification.recording import write

__all__ = ["become", "main"]

_SECONDS_BETWEEN_LOOKS = 0.01
# They start threads when they are imported, and do not work in forks of such a process.
_HOSTILE = frozenset({"jax", "tensorflow"})
# Somebody who starts a verification while his module is imported by one would start another in
# each process of it, and so on.
INSIDE = "DATAPORTER_VERIFICATION"


def become(file: Path, work: Callable[[], Any] | None = None) -> None:
    """Do some work, by default that which the file has, and end the process."""
    status = 1
    try:
        # Reached by its group, with all workers, when it has to be stopped.
        os.setsid()
        log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ[INSIDE] = "1"
        # As in a new interpreter, where nobody has seeded anything yet.
        random.seed()
        np.random.seed()
        torch.seed()
        torch.set_num_threads(1)
        if work is None:
            with file.open("rb") as opened:
                work = pickle.load(opened)
        write(work(), file.with_suffix(".out"))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Workers are daemons of multiprocessing, which only an orderly exit would end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM) if os.getpgid(0) == os.getpid() else None
        os._exit(status)


def _import(libraries: list[str]) -> None:
    if not _HOSTILE.isdisjoint(name.partition(".")[0] for name in libraries):
        return
    for name in libraries:
        if name not in sys.modules:
            # What one cannot import by itself, the process that needs it imports in its own way.
            with suppress(BaseException):
                importlib.import_module(name)


def main() -> None:
    """Serve until the other end is closed."""
    running: dict[int, int] = {}
    # By a descriptor of its own: what libraries print when they are imported is not for the reader.
    told = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    heard = b""
    while True:
        readable, _, _ = select.select([0], [], [], _SECONDS_BETWEEN_LOOKS)
        if readable:
            more = os.read(0, 1 << 16)
            if not more:
                break
            *lines, heard = (heard + more).split(b"\n")
            for line in lines:
                asked = json.loads(line)
                _import(asked["libraries"])
                pid = os.fork()
                if pid == 0:
                    sys.path[:] = [*asked["search"], *sys.path]
                    become(Path(asked["file"]))
                running[pid] = asked["job"]
                told.write(json.dumps({"job": asked["job"], "pid": pid}).encode() + b"\n")
                told.flush()
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                told.write(json.dumps({"job": running.pop(pid), "status": code}).encode() + b"\n")
                told.flush()
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    # There is nothing to put away, which torch would take its time for.
    os._exit(0)
