"""The demo: its comparison misses nothing; its real run is exact and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from dataporter import __version__
from dataporter.tools.demo import show as demo_show
from dataporter.tools.demo.runs import Run, Scenario
from dataporter.tools.demo.steps import Step, StepLog, write_step
from dataporter.tools.demo.verdict import coverage, differences, judge, redone
from dataporter_cli import main

COMMAND = str(Path(sys.executable).with_name("dataporter"))
LENGTH = 1797
BATCH_SIZE = 32
STEPS = 57


def epoch_of_steps(epoch: int, shuffle: int) -> list[Step]:
    order = np.random.default_rng([epoch, shuffle]).permutation(LENGTH)
    return [
        Step(
            epoch=epoch,
            step=step,
            samples=tuple(order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE].tolist()),
            digest=f"bytes of {epoch}, {step}",
            loss=float(1 / (1 + epoch * STEPS + step)).hex(),
        )
        for step in range(STEPS)
    ]


REFERENCE = [step for epoch in range(3) for step in epoch_of_steps(epoch, shuffle=0)]
# Killed after step 26 of epoch 1; its checkpoint holds 20 steps of that epoch.
FIRST = REFERENCE[: STEPS + 27]
KEPT = STEPS + 20
RESUMED = REFERENCE[KEPT:]


def tampered(steps: list[Step], at: int, **fields: object) -> list[Step]:
    return [*steps[:at], steps[at]._replace(**fields), *steps[at + 1 :]]


def other_sample(steps: list[Step], at: int) -> list[Step]:
    return tampered(steps, at, samples=steps[at].samples[::-1])


def other_byte(steps: list[Step], at: int) -> list[Step]:
    return tampered(steps, at, digest=steps[at].digest + "!")


def other_loss(steps: list[Step], at: int) -> list[Step]:
    loss = np.nextafter(float.fromhex(steps[at].loss), 9.0)
    return tampered(steps, at, loss=float(loss).hex())


def missing(steps: list[Step], at: int) -> list[Step]:
    return [*steps[:at], *steps[at + 1 :]]


def twice(steps: list[Step], at: int) -> list[Step]:
    return [*steps[:at], steps[at], *steps[at:]]


def exchanged(steps: list[Step], at: int) -> list[Step]:
    return [*steps[:at], steps[at + 1], steps[at], *steps[at + 2 :]]


TAMPERING = pytest.mark.parametrize(
    ("tamper", "what"),
    [
        (other_sample, "sample ids differ"),
        (other_byte, "batch bytes differ"),
        (other_loss, "losses differ"),
        (missing, "missing"),
        (twice, "2 times"),
        (exchanged, "out of order"),
    ],
)
Tamper = Callable[[list[Step], int], list[Step]]


def test_equal_runs_have_no_differences() -> None:
    verdict = judge(REFERENCE, FIRST, KEPT, RESUMED)
    assert verdict.exact
    assert verdict.same == {"samples": 171, "digest": 171, "loss": 171}
    assert redone(FIRST, KEPT, RESUMED) == (7, 7)


@TAMPERING
@pytest.mark.parametrize("at", [0, 30, len(REFERENCE) - 2])
def test_one_wrong_step_is_found_and_named(tamper: Tamper, what: str, at: int) -> None:
    found = differences(REFERENCE, tamper(REFERENCE, at))
    assert [str(difference) for difference in found] in (
        [f"epoch {step.epoch}, step {step.step}: {what}"] for step in REFERENCE[at : at + 2]
    )


@TAMPERING
@pytest.mark.parametrize("at", [0, 3, 50])
def test_one_wrong_step_after_the_resume_is_not_exact(tamper: Tamper, what: str, at: int) -> None:
    verdict = judge(REFERENCE, FIRST, KEPT, tamper(RESUMED, at))
    assert any(difference.what == what for difference in verdict.differences)


@TAMPERING
@pytest.mark.parametrize("at", [0, KEPT - 1, KEPT + 3])
def test_one_wrong_step_before_the_kill_is_not_exact(tamper: Tamper, what: str, at: int) -> None:
    assert not judge(REFERENCE, tamper(FIRST, at), KEPT, RESUMED).exact


def test_steps_too_few_or_too_many_are_not_exact() -> None:
    assert not judge(REFERENCE, FIRST, KEPT, ()).exact
    assert not judge(REFERENCE, FIRST, KEPT, RESUMED[:-1]).exact
    assert not judge(REFERENCE, FIRST, KEPT, RESUMED[1:]).exact
    assert not judge(REFERENCE[:-1], FIRST, KEPT, RESUMED).exact


def test_redone_steps_that_differ_are_counted() -> None:
    assert redone(FIRST, KEPT, other_loss(RESUMED, 3)) == (7, 6)
    assert redone(FIRST, KEPT, ()) == (7, 0)


def test_coverage_counts_repeated_and_unseen_samples() -> None:
    assert coverage(REFERENCE, 1, LENGTH).is_whole
    reshuffled = [*REFERENCE[:KEPT], *epoch_of_steps(1, shuffle=1)[: STEPS - 20]]
    seen = coverage(reshuffled, 1, LENGTH)
    assert seen.counts.sum() == STEPS * BATCH_SIZE
    assert seen.never_seen == LENGTH - len({i for s in reshuffled[STEPS:] for i in s.samples}) > 0
    assert seen.repeated > 0


def test_a_log_is_read_up_to_the_last_complete_line(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "steps.jsonl")
    assert log.read() == []
    with log.path.open("a") as file:
        write_step(file, FIRST[0])
        assert log.read() == FIRST[:1]
        file.write('{"epoch": 0, "st')
        file.flush()
        assert log.read() == FIRST[:1]
        file.write('ep": 1, "samples": [2], "digest": "d", "loss": "0x1p+0"}\n')
        file.flush()
        assert log.read() == [FIRST[0], Step(0, 1, (2,), "d", "0x1p+0")]


# ---- the command, with invented runs


def demo_of(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reference: list[Step] = REFERENCE,
    resumed: list[Step] = RESUMED,
) -> tuple[int, str]:
    """Exit code and output of the demo if its last exact run logs ``resumed``."""

    def run_scenarios(scenarios: list[Scenario], *_: object) -> list[Run]:
        alone, *killed = scenarios
        return [
            Run(alone, tuple(reference), len(reference), ()),
            *(Run(one, tuple(FIRST), KEPT, tuple(RESUMED)) for one in killed[:1]),
            *(Run(one, tuple(FIRST), KEPT, tuple(resumed)) for one in killed[1:]),
        ]

    monkeypatch.setattr(demo_show, "run_scenarios", run_scenarios)
    result = CliRunner().invoke(main, ["demo", f"--output={tmp_path / 'demo.png'}"])
    return result.exit_code, result.output


def test_equal_runs_exit_with_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exit_code, output = demo_of(monkeypatch, tmp_path)
    assert exit_code == 0, output
    assert "Exact: every sample" in output


@TAMPERING
def test_one_difference_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tamper: Tamper, what: str
) -> None:
    exit_code, output = demo_of(monkeypatch, tmp_path, resumed=tamper(RESUMED, 11))
    assert exit_code == 1, output
    assert "NOT exact" in output
    assert (
        f"2, then 3 workers: epoch 1, step 3{2 if what == 'out of order' else 1}: {what}" in output
    )


def test_a_resume_that_trains_nothing_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exit_code, output = demo_of(monkeypatch, tmp_path, resumed=[])
    assert exit_code == 1, output
    assert "missing" in output


def test_runs_that_are_equally_wrong_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reference = [step for step in REFERENCE if step.key != (2, 56)]
    monkeypatch.setattr("test_demo.RESUMED", reference[KEPT:])
    exit_code, output = demo_of(monkeypatch, tmp_path, reference, reference[KEPT:])
    assert exit_code == 1, output
    assert "uninterrupted: epoch 2 did not have every sample exactly once" in output


# ---- the command's errors


def refused(*arguments: str) -> str:
    """The one line that the command prints."""
    result = CliRunner().invoke(main, ["demo", *arguments])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr


@pytest.mark.parametrize("library", ["sklearn", "matplotlib"])
def test_a_missing_library_is_one_line_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "dataporter.tools.demo.show")
    monkeypatch.delitem(sys.modules, "dataporter.tools.demo.plot")
    assert refused() == (
        f"dataporter: demo: {library} is not installed, which this command needs: pip install "
        "matplotlib scikit-learn\n"
    )


def test_impossible_arguments_are_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "old.pt").touch()
    assert "does not exist" in refused(f"--output={tmp_path}/nowhere/demo.png")
    assert "ends in .png" in refused(f"--output={tmp_path}/demo.txt")
    plot = f"--output={tmp_path}/demo.png"
    assert "is not empty" in refused(plot, f"--keep={tmp_path}")
    assert "No such file" in refused(plot, f"--keep={tmp_path}/no/where")


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"{__version__}\n"


def test_the_package_does_not_import_the_libraries_of_the_demo() -> None:
    code = (
        "import sys, dataporter, dataporter_cli\n"
        "sys.exit(', '.join({'sklearn', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=110)


# ---- a real run


def processes_in(directory: Path) -> list[psutil.Process]:
    """The living processes that were started in a directory, whatever their parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == directory:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def bare_directory(tmp_path: Path) -> Iterator[Path]:
    """A working directory for the command, in which nothing may run afterwards."""
    yield tmp_path
    left = processes_in(tmp_path)
    for process in left:
        process.kill()
    assert not left


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_demo_kills_resumes_and_is_exact(bare_directory: Path) -> None:
    ended = subprocess.run(
        [COMMAND, "demo", "--epochs=2", "--keep=kept"],
        cwd=bare_directory,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not processes_in(bare_directory)
    assert (bare_directory / "demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "\x1b" not in ended.stdout + ended.stderr

    cells = {
        row[0].strip(): [cell.strip() for cell in row[1:]]
        for row in (line.strip("│").split("│") for line in ended.stdout.splitlines())
        if len(row) == 4
    }
    assert cells["losses equal"] == ["114 of 114", "114 of 114", "-"]
    assert cells["verdict"] == ["exact", "exact", "not exact"]
    for row in ("seen repeatedly*", "never seen*"):
        same, other, plain = map(int, cells[row])
        assert same == other == 0 < plain

    for run in ("run-2", "run-3", "run-4"):
        first = StepLog(bare_directory / "kept" / run / "first.jsonl").read()
        resumed = StepLog(bare_directory / "kept" / run / "resumed.jsonl").read()
        assert 0 < first[-1].step < STEPS - 1, "not killed mid-epoch"
        assert first[-1].key > resumed[0].key, "no step was redone"


@pytest.mark.slow
def test_ctrl_c_stops_every_process(bare_directory: Path) -> None:
    running = subprocess.Popen(
        [COMMAND, "demo", "--keep=kept"],
        cwd=bare_directory,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may ignore SIGINT, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        log = bare_directory / "kept" / "run-2" / "first.jsonl"
        assert wait_until(log.exists, 60)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130
    assert errors.splitlines()[-1] == (
        "dataporter: demo: interrupted; its training processes are stopped"
    )
    assert wait_until(lambda: not processes_in(bare_directory), 2)
