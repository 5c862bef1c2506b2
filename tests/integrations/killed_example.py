"""Runs an example uninterrupted, and again with a kill and a restart."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def uninterrupted_and_resumed(
    directory: Path, example: str, killed_at: str
) -> tuple[list[str], list[str]]:
    """The lines that an example prints uninterrupted, and after a kill and a restart.

    Args:
        killed_at: the example gets SIGKILL when it prints a line that contains this.
    """
    command = [sys.executable, "-u", str(EXAMPLES / example)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(folder: str) -> subprocess.Popen[str]:
        errors = (directory / "errors.txt").open("a")
        return subprocess.Popen(
            [*command, folder],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )

    def lines_of(folder: str) -> list[str]:
        started = start(folder)
        try:
            lines = started.communicate(timeout=240)[0].splitlines()
        finally:
            started.kill()
        assert started.returncode == 0, (directory / "errors.txt").read_text()[-2000:]
        return lines

    alone = lines_of("alone")
    killed = start("killed")
    assert killed.stdout is not None
    try:
        assert any(killed_at in line for line in killed.stdout), "the line never came"
    finally:
        killed.kill()
        killed.communicate(timeout=110)
    return alone, lines_of("killed")
