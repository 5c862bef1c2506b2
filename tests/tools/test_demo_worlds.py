"""The distributed demo: exact in a chain of worlds, and it finds every fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from dataporter.tools.demo.runs import DemoError
from dataporter.tools.demo.show_worlds import prove
from dataporter.tools.demo.worlds import (
    Batch,
    Chain,
    WorldRun,
    global_batch_size_for,
    parse_worlds,
    run_worlds,
)
from dataporter_cli import main


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from dataporter_cli import main; main()", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.mark.slow
def test_a_chain_of_worlds_is_exact_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before = set(psutil.Process().children())
    found = demo("--world", "3,2,1", "--epochs", "1", "--keep", str(tmp_path / "kept"))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1797 of 1797" in found.stdout
    assert "Exact: every sample once per epoch" in found.stdout
    runs = sorted(path.name for path in (tmp_path / "kept" / "worlds").glob("run-*"))
    assert runs == ["run-1", "run-2", "run-3"]
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4", "two or more"),
        ("4,", "two or more"),
        ("4,-2", "two or more"),
        ("four,2", "two or more"),
        ("0,2", "1 to 16"),
        ("17,2", "1 to 16"),
        ("16,15", "240 is more than the 120"),
    ],
)
def test_impossible_worlds_are_named(text: str, says: str) -> None:
    with pytest.raises(DemoError, match=says):
        parse_worlds(text)


@pytest.mark.parametrize("worlds", [(4, 2), (1, 1), (3, 2, 8), (5, 7), (16, 8)])
def test_every_world_divides_the_global_batch(worlds: tuple[int, ...]) -> None:
    size = global_batch_size_for(worlds)
    assert all(size % ranks == 0 for ranks in worlds)
    assert 24 <= size <= 120


def batches(first: int, stop: int) -> tuple[Batch, ...]:
    """Steps of an epoch of 12 samples, two samples each."""
    return tuple(
        Batch(0, step, {index: f"pixels {index}" for index in (2 * step, 2 * step + 1)})
        for step in range(first, stop)
    )


EXACT = Chain((WorldRun(2, batches(0, 4), 2), WorldRun(1, batches(2, 6), 4)), batches(0, 6))


def test_an_exact_chain_has_no_faults() -> None:
    proof = prove(EXACT, length=12, epochs=1)
    assert proof.faults == ()
    assert proof.once == (12,)
    assert (proof.batches, proof.samples, proof.redone) == ((6, 6), (12, 12), (2, 2))


def resumed_with(change: Callable[[list[Batch]], None]) -> Chain:
    first, second = EXACT.runs
    changed = list(second.batches)
    change(changed)
    return Chain((first, replace(second, batches=tuple(changed), kept=len(changed))), EXACT.alone)


def put(index: int, batch: Batch) -> Callable[[list[Batch]], None]:
    def change(changed: list[Batch]) -> None:
        changed[index] = batch

    return change


FAULTS = {
    "a step is missing": lambda changed: changed.pop(),
    "a step is repeated": lambda changed: changed.append(changed[-1]),
    "steps out of order": lambda changed: changed.reverse(),
    "a sample is lost": put(3, Batch(0, 5, {10: "pixels 10"})),
    "a sample is repeated": put(3, Batch(0, 5, {10: "pixels 10", 9: "pixels 9"})),
    "a sample occurs twice in a batch": put(
        3, Batch(0, 5, {10: "twice: pixels 10, pixels 10", 11: "pixels 11"})
    ),
    "different pixels": put(3, Batch(0, 5, {10: "pixels 10", 11: "others"})),
    "samples of a different batch": put(1, Batch(0, 3, {8: "pixels 8", 9: "pixels 9"})),
    "redone differently": put(0, Batch(0, 2, {4: "pixels 4", 5: "others"})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(fault: str) -> None:
    assert prove(resumed_with(FAULTS[fault]), length=12, epochs=1).faults


@pytest.mark.slow
def test_a_failing_rank_is_an_error_with_its_output_and_ends_the_others(
    tmp_path: Path,
) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(DemoError, match=r"rank \d: .* code 1 .*nothing\.npz"):
        run_worlds((2, 1), tmp_path, tmp_path / "nothing.npz", 12, 1, lambda done: None)
    assert set(psutil.Process().children()) <= before


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    found = CliRunner().invoke(main, ["demo", "--world", "2,1", "--keep", str(tmp_path)])
    assert found.exit_code == 2
    assert "is not empty" in found.stderr
