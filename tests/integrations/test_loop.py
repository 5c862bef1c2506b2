"""The trial itself: a loop by hand is exact with our loader, and not with torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.frameworks.subject import EPOCHS, LENGTH
from benchmarks.frameworks.trial import (
    TrainingFailedError,
    attempt,
    difference,
    samples_of_epochs,
)


@pytest.mark.parametrize("kill_at", [7, 12, 29])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_loop_resumes_exactly(tmp_path: Path, kill_at: int, workers: int) -> None:
    alone = attempt("loop", tmp_path / "alone", 0, "--workers", str(workers))
    assert [entry.step for entry in alone] == list(range(36))
    assert all(
        set(counted) == set(range(LENGTH)) and counted.total() == LENGTH
        for counted in samples_of_epochs(alone).values()
    )
    assert len(samples_of_epochs(alone)) == EPOCHS
    killed = attempt("loop", tmp_path / "killed", 0, kill_at=kill_at)
    assert killed == alone[: kill_at + 1]
    resumed = attempt("loop", tmp_path / "killed", 1)
    assert resumed[0].step == kill_at // 5 * 5
    assert difference(alone, resumed) is None


def test_the_trial_detects_that_a_loader_without_a_state_repeats(tmp_path: Path) -> None:
    alone = attempt("loop", tmp_path / "alone", 0, "--loader", "torch")
    attempt("loop", tmp_path / "killed", 0, "--loader", "torch", kill_at=7)
    resumed = attempt("loop", tmp_path / "killed", 1, "--loader", "torch")
    assert "repeated" in (difference(alone, resumed) or "")


def test_a_training_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailedError, match="invalid choice"):
        attempt("loop", tmp_path, 0, "--loader", "none")
