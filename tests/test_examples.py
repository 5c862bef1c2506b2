"""The examples do what they tell their readers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

BASIC_RESUME = Path(__file__).parents[1] / "examples" / "basic_resume.py"


def start(example: Path, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(example), *arguments],
        cwd=directory,
        # Two trainings at a time with a thread for each core wait mostly for one another.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have SIGINT ignored, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def steps_of(lines: list[str]) -> list[str]:
    """The lines about a step: its place, its loss and its first samples."""
    return [line for line in lines if line.startswith("epoch ")]


@pytest.mark.slow
def test_basic_resume_interrupted_equals_basic_resume_left_alone(tmp_path: Path) -> None:
    running_before = set(psutil.Process().children())
    started = [alone := start(BASIC_RESUME, tmp_path, "alone.pt")]
    try:
        started.append(interrupted := start(BASIC_RESUME, tmp_path))
        assert interrupted.stdout is not None
        before = []
        for line in interrupted.stdout:
            before.append(line.rstrip("\n"))
            if line.startswith("epoch 1, step 26:"):
                interrupted.send_signal(signal.SIGINT)
                break
        rest, errors = interrupted.communicate(timeout=30)
        before += rest.splitlines()
        assert interrupted.returncode == 130, errors
        assert errors == ""
        assert before[-1] == "Stopped. Start again to go on."
        assert (tmp_path / "checkpoint.pt").exists()

        started.append(resumed := start(BASIC_RESUME, tmp_path))
        after = resumed.communicate(timeout=60)[0].splitlines()
        expected = steps_of(alone.communicate(timeout=60)[0].splitlines())
    finally:
        for process in started:
            process.kill()
    assert alone.returncode == resumed.returncode == 0

    place = re.fullmatch(r"Going on from checkpoint\.pt: (epoch 1, step \d+)\.", after[0])
    assert place is not None, after[0]
    kept = [line.split(":")[0] for line in expected].index(place[1])
    first, second = steps_of(before), steps_of(after)
    assert len(expected) == 5 * 57
    assert first[:kept] + second == expected
    assert first == expected[: len(first)]
    assert after[-1].startswith("Finished 5 epochs.")
    assert [path.name for path in tmp_path.iterdir()] == []
    assert set(psutil.Process().children()) <= running_before
