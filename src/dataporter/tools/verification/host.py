"""A host: a separate interpreter that forks a process for each task.

It has imported torch, this package, the libraries that the loader needs, and those of the user's
modules that take seconds to import, but no others. So its processes are as good as new
interpreters, each of which would take seconds to start. Hosts have different hash seeds.

It reads lines of JSON, ``{"task": number, "file": path, "search": [...], "libraries": [...],
"slow": [[name, directory], ...]}``, and writes lines ``{"task": number, "pid": ...}`` and
``{"task": number, "status": ...}``. Without a task it only imports.
"""

from __future__ import annotations

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

# Imported here once, so that the processes need not.
from dataporter.tools.verification import probe, recording, throughput  # noqa: F401
from dataporter.tools.verification.forks import renew_server
from dataporter.tools.verification.imports import share
from dataporter.tools.verification.recording import write

__all__ = ["become", "main"]

_SECONDS_BETWEEN_LOOKS = 0.01
# Set in the processes: a module that calls verify() at import would start another verification in
# each of them, and so on.
INSIDE = "DATAPORTER_VERIFICATION"


def become(file: Path, work: Callable[[], Any] | None = None) -> None:
    """Do some work, by default the work in the file, and end the process."""
    status = 1
    try:
        # Its group lets the parent kill it with all its workers.
        os.setsid()
        log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ[INSIDE] = "1"
        renew_server()
        # As in a new interpreter, where nothing has been seeded.
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
        # Workers are daemons of multiprocessing, which os._exit() leaves alive.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM) if os.getpgid(0) == os.getpid() else None
        os._exit(status)


def main() -> None:
    """Serve until standard input is closed."""
    renew_server()
    running: dict[int, int] = {}
    # A separate descriptor keeps the replies apart from what libraries print at import.
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    received = b""
    while True:
        readable, _, _ = select.select([0], [], [], _SECONDS_BETWEEN_LOOKS)
        if readable:
            more = os.read(0, 1 << 16)
            if not more:
                break
            *lines, received = (received + more).split(b"\n")
            for line in lines:
                request = json.loads(line)
                share(request["libraries"], request["slow"])
                if request["task"] is None:
                    continue
                pid = os.fork()
                if pid == 0:
                    sys.path[:] = [*request["search"], *sys.path]
                    become(Path(request["file"]))
                running[pid] = request["task"]
                replies.write(json.dumps({"task": request["task"], "pid": pid}).encode() + b"\n")
                replies.flush()
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                replies.write(
                    json.dumps({"task": running.pop(pid), "status": code}).encode() + b"\n"
                )
                replies.flush()
    for pid in running:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    # An orderly exit of torch takes seconds, and nothing is left to clean up.
    os._exit(0)
