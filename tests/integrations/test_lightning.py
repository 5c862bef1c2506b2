"""Lightning: killed trainings resume exactly from its own checkpoints."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from benchmarks.frameworks.cases import LIGHTNING, Case, verdict
from benchmarks.frameworks.subject import LENGTH
from benchmarks.frameworks.trial import attempt

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", LIGHTNING, ids=lambda case: case.what)
def test_a_killed_training_resumes_exactly(case: Case, tmp_path: Path) -> None:
    assert verdict(case, "dataporter", tmp_path) is None


@pytest.mark.timeout(600)
def test_the_trial_detects_that_torchs_loader_repeats(tmp_path: Path) -> None:
    # The pass restarts, which repeats samples; Lightning itself warns of it.
    assert "repeated" in (verdict(LIGHTNING[0], "torch", tmp_path) or "")


@pytest.mark.timeout(600)
def test_another_number_of_ranks_reads_the_rest_once(tmp_path: Path) -> None:
    options = ("--every", "3")
    begun = attempt(
        "lightning", tmp_path / "2", 0, *options, "--devices", "2", kill_at=4, seconds=200
    )
    seen = Counter(index for entry in begun if entry.step < 3 for index in entry.ids)
    for ranks in (1, 3):
        home = tmp_path / str(ranks)
        shutil.copytree(tmp_path / "2" / "checkpoints", home / "checkpoints")
        resumed = attempt("lightning", home, 1, *options, "--devices", str(ranks), seconds=200)
        first = Counter(i for entry in resumed if entry.epoch == 0 for i in entry.ids)
        assert seen + first == Counter(range(LENGTH)), ranks
        for epoch in (1, 2):
            whole = Counter(i for entry in resumed if entry.epoch == epoch for i in entry.ids)
            assert set(whole) == set(range(LENGTH))
            assert whole.total() == LENGTH, ranks


@pytest.mark.timeout(600)
def test_the_example_resumes_where_it_was_killed(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "lightning_training.py"

    def start(directory: str, kill_at: str | None = None) -> list[str]:
        steps = []
        process = subprocess.Popen(
            [sys.executable, "-u", str(example), directory],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("epoch "):
                    steps.append(line)
                if kill_at is not None and line.startswith(kill_at):
                    process.kill()
        assert process.returncode == (0 if kill_at is None else -signal.SIGKILL)
        return steps

    alone = start("alone")
    assert len(alone) == 5 * 57
    killed = start("killed", kill_at="epoch 1, step 9:")
    resumed = start("killed")
    assert resumed == alone[len(alone) - len(resumed) :]
    assert len(alone) - len(resumed) == (len(killed) - 1) // 10 * 10
