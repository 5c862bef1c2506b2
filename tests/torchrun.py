"""Worlds of real ranks, started by torch's own launcher, none of which outlives its test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def torchrun(
    program: Path, ranks: int, *arguments: object, directory: Path
) -> Iterator[subprocess.Popen[str]]:
    """The launcher, with its output in pipes; its ranks and their workers are gone afterwards."""
    started = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={ranks}", program, *map(str, arguments)),
        ],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        processes = [started.pid]
        if started.poll() is None:
            # Each rank is in a session of its own.
            processes += [child.pid for child in psutil.Process(started.pid).children(True)]
        for process in processes:
            if psutil.pid_exists(process):
                psutil.Process(process).kill()
        started.communicate(timeout=20)


def finished(started: subprocess.Popen[str], seconds: float = 80) -> str:
    """What the world printed, once it has come to a good end."""
    output, errors = started.communicate(timeout=seconds)
    assert started.returncode == 0, errors
    return output
