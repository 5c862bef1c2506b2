"""The examples do what they promise."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torchrun import finished, torchrun

BASIC_RESUME = Path(__file__).parents[2] / "examples" / "basic_resume.py"


def start(example: Path, directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", str(example), *arguments],
        cwd=directory,
        # Two training runs with a thread for each core would mostly wait for each other.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may ignore SIGINT, which children would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def steps_of(lines: list[str]) -> list[str]:
    """The lines about a step: its number, its loss and its first samples."""
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
        assert before[-1] == "Stopped. Start again to resume."
        assert (tmp_path / "checkpoint.pt").exists()

        started.append(resumed := start(BASIC_RESUME, tmp_path))
        after = resumed.communicate(timeout=110)[0].splitlines()
        expected = steps_of(alone.communicate(timeout=110)[0].splitlines())
    finally:
        for process in started:
            process.kill()
    assert alone.returncode == resumed.returncode == 0

    position = re.fullmatch(r"Resuming from checkpoint\.pt: (epoch 1, step \d+)\.", after[0])
    assert position is not None, after[0]
    kept = [line.split(":")[0] for line in expected].index(position[1])
    first, second = steps_of(before), steps_of(after)
    assert len(expected) == 5 * 57
    assert first[:kept] + second == expected
    assert first == expected[: len(first)]
    assert after[-1].startswith("Finished 5 epochs.")
    assert [path.name for path in tmp_path.iterdir()] == []
    assert set(psutil.Process().children()) <= running_before


MEMORY_OPTIMIZATION = BASIC_RESUME.with_name("memory_optimization.py")
README = BASIC_RESUME.parents[1] / "README.md"
DISTRIBUTED_TRAINING = BASIC_RESUME.with_name("distributed_training.py")


def until(line: str, started: subprocess.Popen[str]) -> list[str]:
    """The lines that a world has printed, up to one that begins with ``line``."""
    assert started.stdout is not None
    seen = []
    for text in started.stdout:
        seen.append(text.rstrip("\n"))
        if text.startswith(line):
            return seen
    raise AssertionError(f"{line!r} was never printed: {seen}, {started.communicate()}")


@pytest.mark.slow
def test_distributed_training_resumes_in_other_worlds_with_each_sample_once(
    tmp_path: Path,
) -> None:
    with torchrun(DISTRIBUTED_TRAINING, 4, directory=tmp_path) as killed:
        until("epoch 0, step 17:", killed)
        for process in psutil.Process(killed.pid).children(recursive=True):
            process.kill()
        killed.kill()
    with torchrun(DISTRIBUTED_TRAINING, 2, directory=tmp_path) as preempted:
        first, *_ = until("epoch 1, step 8:", preempted)
        assert first.startswith("Resuming from checkpoint.pt with 2 processes: epoch 0, step ")
        preempted.send_signal(signal.SIGTERM)
        rest, _ = preempted.communicate(timeout=40)
        assert "Stopped by SIGTERM. Start again" in rest
    with torchrun(DISTRIBUTED_TRAINING, 3, directory=tmp_path) as last:
        lines = finished(last).splitlines()
    assert lines[0].startswith("Resuming from checkpoint.pt with 3 processes: epoch 1, step ")
    proofs = [line for line in lines if "samples, each exactly once" in line]
    # 1,797 are 37 batches of 48 and 21 samples, of which three ranks have 7 each.
    assert proofs == [
        f"epoch {epoch}: 1797 samples, each exactly once, and 0 repeated as padding"
        for epoch in (1, 2)
    ]
    assert lines[-1].startswith("Finished 3 epochs.")
    assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.slow
def test_memory_optimization_saves_what_the_readme_says_and_trains_alike(tmp_path: Path) -> None:
    example = start(MEMORY_OPTIMIZATION, tmp_path)
    printed, errors = example.communicate(timeout=100)
    assert example.returncode == 0, errors
    assert "losses are the same, bit for bit: True" in printed
    saved = re.findall(r"^(\w+(?: \w+)?) +\w+ → (\S+) .* ([\d.]+)% saved$", printed, re.MULTILINE)
    measured = {(what, form): share for what, form, share in saved}
    table = README.read_text()
    for what, form, row in [
        ("images", "float16", "float16 | 50%"),
        ("labels", "int32", "int32 | 50%"),
        ("attention masks", "uint8", "uint8 | 87.5%"),
        ("token ids", "int32", "int32 | 50%"),
        ("image", "uint8:scale", "`uint8:scale`, exact | 75%"),
        ("attention_mask", "bits", "`bits`, exact | 98.4%"),
    ]:
        assert row in table
        promised = row.rpartition("| ")[2].rstrip("%")
        assert float(measured[what, form]) == float(promised)
    # Five tables in five parts, each of which ends.
    assert [line[0] for line in printed.splitlines() if re.match(r"[1-5]\. ", line)] == list(
        "12345"
    )


HUGGINGFACE_INTEGRATION = BASIC_RESUME.with_name("huggingface_integration.py")


@pytest.mark.slow
def test_huggingface_integration_kills_and_resumes_both_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXAMPLE_HUB", "no")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    example = start(HUGGINGFACE_INTEGRATION, tmp_path)
    printed, errors = example.communicate(timeout=110)
    assert example.returncode == 0, errors
    proofs = re.findall(r"^([\w-]+), local data: .*: (\d+) of (\d+) steps", printed, re.MULTILINE)
    assert [kind for kind, *_ in proofs] == ["map-style", "streaming"]
    assert all(int(same) == int(steps) > 50 for _, same, steps in proofs)


MIXTURE_TRAINING = BASIC_RESUME.with_name("mixture_training.py")


@pytest.mark.slow
def test_mixture_training_resumes_with_other_weights_and_a_new_source(tmp_path: Path) -> None:
    started = [alone := start(MIXTURE_TRAINING, tmp_path, "alone.pt")]
    try:
        lives = []
        for step in (24, 44):
            started.append(life := start(MIXTURE_TRAINING, tmp_path))
            lives.append(until(f"epoch 0, step {step}:", life))
            life.kill()
        expected = steps_of(until("epoch 0, step 45:", alone))
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=20)
    assert lives[1][0].startswith("Resuming from checkpoint.pt with 1 processes")
    begin = int(re.findall(r"step (\d+)\.$", lives[1][0])[0])
    assert 0 < begin <= 30
    first, second = map(steps_of, lives)
    assert first == expected[: len(first)]
    assert second == expected[begin : begin + len(second)]

    weights = "code=0.4,prose=0.2,headers=0.4"
    with torchrun(MIXTURE_TRAINING, 2, "--weights", weights, directory=tmp_path) as last:
        output, errors = last.communicate(timeout=100)
        assert last.returncode == 0, errors
    lines = output.splitlines()
    assert lines[0].startswith("Resuming from checkpoint.pt with 2 processes")
    assert "the mixture has changed since the state was saved: added 'headers'" in errors
    # With a line for each epoch.
    assert len(steps_of(lines)) == 2 * 60 - int(re.findall(r"step (\d+)\.$", lines[0])[0]) + 2
    proofs = [line for line in lines if line.endswith("a prefix of its order")]
    counts = {line.split(":")[0]: int(line.split()[1]) for line in proofs}
    assert set(counts) == {"code", "prose", "headers"}
    assert sum(counts.values()) == 2 * 60 * 32
    assert not (tmp_path / "checkpoint.pt").exists()
