"""The mixture demo: exact through kills and a change, and it finds every fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from dataporter.tools.demo.mixtures import (
    STEPS,
    Life,
    Lived,
    MixtureRun,
    own_order,
    prove,
    run_mixtures,
)
from dataporter.tools.demo.runs import DemoError
from dataporter.tools.demo.steps import Step
from dataporter_cli import main

TEXTS = {name: np.zeros((90, 4), np.uint8) for name in ("code", "prose", "headers")}
CHANGE = 40


@pytest.mark.slow
def test_the_demo_is_exact_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    command = [sys.executable, "-c", "from dataporter_cli import main; main()", "demo", "--mixture"]
    found = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")], capture_output=True, text=True, timeout=115
    )
    assert found.returncode == 0, found.stdout + found.stderr
    said = " ".join(found.stdout.split())
    assert "Exact: of each source" in said
    assert "added 'headers', weights {code: 0.7, prose: 0.3} → {code: 0.4, prose: 0.2" in said
    runs = sorted(path.name for path in (tmp_path / "kept" / "lives").glob("run-*"))
    assert runs == ["run-1", "run-2", "run-3"]
    assert set(psutil.Process().children()) <= before


def trained() -> MixtureRun:
    """An exact run, two samples a step: one of code and one of prose, later one of headers too."""
    orders = {name: own_order(TEXTS, name, STEPS) for name in TEXTS}

    def step(number: int, *names: str) -> Step:
        begins = {"code": 0, "prose": 0, "headers": CHANGE}
        samples = tuple(orders[name][number - begins[name]] for name in names)
        return Step(0, number, samples, f"bytes {samples}", f"loss {number}")

    first, last = Life(1, {"code": 1, "prose": 1}, 23), Life(2, dict.fromkeys(TEXTS, 1), None)
    alone = tuple(step(number, "code", "prose") for number in range(STEPS))
    whole = tuple((each,) for each in alone)
    later = tuple(
        (step(number, "code", "prose"), step(number, "headers")) for number in range(CHANGE, STEPS)
    )
    return MixtureRun(
        (
            Lived(first, whole[:24], 20, ()),
            Lived(first, whole[20:44], 20, ()),
            Lived(last, later, len(later), ("the mixture has changed",)),
        ),
        alone,
    )


def test_an_exact_run_has_no_faults() -> None:
    proof = prove(trained(), TEXTS)
    assert proof.faults == ()
    assert proof.change == CHANGE
    assert proof.losses == (48, 48)
    assert [(s.name, s.before, s.after, s.in_order) for s in proof.sources] == [
        ("code", CHANGE, STEPS - CHANGE, STEPS),
        ("prose", CHANGE, STEPS - CHANGE, STEPS),
        ("headers", 0, STEPS - CHANGE, STEPS - CHANGE),
    ]
    assert [source.passes for source in proof.sources] == [STEPS / 90, STEPS / 90, 80 / 90]


def put(life: int, place: int, change: Callable[[Step], Step]) -> MixtureRun:
    run = trained()
    lived = run.lives[life]
    first, *rest = lived.steps[place]
    steps = (*lived.steps[:place], (change(first), *rest), *lived.steps[place + 1 :])
    lives = (*run.lives[:life], replace(lived, steps=steps), *run.lives[life + 1 :])
    return replace(run, lives=lives)


def another_loss(step: Step) -> Step:
    return step._replace(loss="others")


def another_sample(step: Step) -> Step:
    return step._replace(samples=(89 - step.samples[0], *step.samples[1:]))


def one_sample_less(step: Step) -> Step:
    return step._replace(samples=step.samples[1:])


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (put(0, 3, another_loss), "1 steps on the first mixture are not as without a kill"),
        (put(0, 22, another_loss), "1 steps on the first mixture"),
        (put(1, 7, another_loss), "1 steps on the first mixture"),
        (put(2, 5, another_sample), "code: 1 of 120 samples are not the next ones"),
        (put(2, 5, one_sample_less), "are not the next ones"),
        (put(2, 79, lambda step: step._replace(step=7)), "the steps are not those of one epoch"),
    ],
)
def test_every_fault_is_found(run: MixtureRun, says: str) -> None:
    assert any(says in fault for fault in prove(run, TEXTS).faults)


@pytest.mark.slow
def test_a_failing_training_is_an_error_with_its_output(tmp_path: Path) -> None:
    lives = (Life(1, {"code": 1}, None),)
    with pytest.raises(DemoError, match=r"rank 0: .* code 1 .*nothing\.npz"):
        run_mixtures(lives, tmp_path, tmp_path / "nothing.npz", lambda done: None)


def test_worlds_of_its_own_are_refused() -> None:
    found = CliRunner().invoke(main, ["demo", "--mixture", "--world", "2,1"])
    assert found.exit_code == 2
    assert "leave --world out" in found.stderr
