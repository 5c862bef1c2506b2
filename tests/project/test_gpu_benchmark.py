"""The benchmark of a GPU, without one: every part runs, no figure is shown, the status says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import gpu
from benchmarks.tables import Goal

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_without_a_gpu_every_part_runs_and_no_figure_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "tests", lambda _: Goal("the tests pass", "none ran", reached=True))
    measured = []

    def keep(plan: gpu.Plan) -> None:
        measured.append(measure(plan))

    measure = gpu.measure
    monkeypatch.setattr(gpu, "measure", keep)
    output = tmp_path / "gpu.md"
    assert gpu.main(["--output", str(output)]) == gpu.NO_GPU == 3
    assert not output.exists()
    shown = capsys.readouterr().out
    assert "no figure exists" in " ".join(shown.split())
    assert "GB/s" not in shown
    (table,) = measured
    assert len(table.rows) == 3 * 4 + 3 * 3
    assert len(table.goals) == 1 + 3


def test_the_last_rounds_are_left_out_where_the_time_is_up() -> None:
    def plan(until: float) -> gpu.Plan:
        return gpu.Plan(torch.device("meta"), workers=1, rounds=3, seconds=0.1, until=until)

    contestants = {"one": lambda: 1.0, "two": lambda: 2.0}
    assert plan(until=float("-inf")).play(contestants).figures == {"one": [1.0], "two": [2.0]}
    assert plan(until=float("inf")).play(contestants).figures == {
        "one": [1.0] * 3,
        "two": [2.0] * 3,
    }


def test_tests_that_fail_are_a_goal_that_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "TESTS", ("tests/loader/there_is_no_such_file.py",))
    plan = gpu.Plan(torch.device("meta"), workers=1, rounds=1, seconds=0.1, until=0.0)
    assert not gpu.tests(plan).reached
