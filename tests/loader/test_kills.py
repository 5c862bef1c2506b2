"""Real kills: a run killed by SIGKILL at random and resumed equals the uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import training_process
import validated_training
from budgets import slow
from programs import Program

PROGRAM = Path(training_process.__file__)
# What torch's workers take to notice that their parent is gone (5 s), with room to spare.
WORKERS_LEAVE_IN = 10
A_LIFE_TAKES_AT_MOST = 40


@cache
def uninterrupted(strategy: str) -> list[dict[str, Any]]:
    """The stream of a run in this process, without workers and without a checkpoint."""
    nowhere = Path("no such checkpoint")
    return list(training_process.training(nowhere, strategy, 0, 10**9))


class Run:
    """A training run of several lives in one directory.

    Each life is a new interpreter, or, with ``life``, is forked off a server that has imported
    torch.
    """

    def __init__(
        self, directory: Path, strategy: str, every: int, life: Callable[..., None] | None = None
    ) -> None:
        self.directory, self.strategy, self.every = directory, strategy, every
        self.life = life
        self.stream: list[dict[str, Any]] = []
        self.kills = self.repeated = 0
        self.started: list[psutil.Process] = []

    def live(self, workers: int, kill_after: int | None, delay: float = 0.0) -> None:
        """A fresh process: to its end, or killed a little after it has logged so many steps."""
        arguments = (self.directory, self.strategy, workers, self.every)
        before = set(self.directory.glob("*.jsonl"))
        process: Program | psutil.Popen
        if self.life is not None:
            process = Program(self.life, *arguments)
        else:
            process = psutil.Popen([sys.executable, PROGRAM, *map(str, arguments)])
        started = psutil.Process(process.pid)
        self.started.append(started)
        deadline = time.monotonic() + A_LIFE_TAKES_AT_MOST
        while process.poll() is None and (kill_after is None or self._lines(before) < kill_after):
            assert time.monotonic() < deadline, "the training process hangs"
            time.sleep(0.002)
        time.sleep(delay)
        if kill_after is not None and process.poll() is None:
            self.started += started.children(recursive=True)
            process.kill()
        # On a machine so busy that the kill came too late, this life has come to its end.
        status = process.wait(10)
        assert status == 0 or (status == -signal.SIGKILL and kill_after is not None)
        self.kills += status != 0
        (log,) = set(self.directory.glob("*.jsonl")) - before
        self._join(log)

    def _lines(self, before: set[Path]) -> int:
        logs = set(self.directory.glob("*.jsonl")) - before
        return max((log.read_bytes().count(b"\n") for log in logs), default=0)

    def _join(self, log: Path) -> None:
        records = [json.loads(line) for line in log.read_text().splitlines()]
        if records and records[-1] == "finished":
            records.pop()
        if records:
            resumed_at = records[0]["done"]
            assert resumed_at <= len(self.stream), "steps are missing"
            self.repeated += len(self.stream) - resumed_at
            self.stream = self.stream[:resumed_at] + records

    def end(self) -> list[psutil.Process]:
        """What is still alive when everything has had the time to leave; kills it."""
        _, alive = psutil.wait_procs(self.started, timeout=WORKERS_LEAVE_IN)
        for process in alive:
            process.kill()
        return alive


@pytest.mark.parametrize(
    ("forked", "strategy", "workers", "every"),
    [
        (True, "advanced", (2, 0, 1), 2),
        (True, "shards", (2, 0, 3), 2),
        (True, "mixture", (2, 0, 1), 2),
        *slow(
            (False, "simple", (0, 0, 0), 1),
            (False, "advanced", (0, 0, 0), 3),
            (False, "simple", (2, 2, 2), 3),
            (False, "advanced", (2, 2, 2), 1),
            (False, "advanced", (2, 0, 1), 2),
            (False, "shards", (2, 0, 3), 2),
            (False, "dataset state", (1, 1, 1), 1),
            (False, "replay", (0, 1, 1), 3),
            (False, "mixture", (2, 2, 0), 3),
        ),
    ],
    ids=[
        "advanced-changing-forked",
        "shards-changing-forked",
        "mixture-changing-forked",
        "simple-0",
        "advanced-0",
        "simple-2",
        "advanced-2",
        "advanced-changing",
        "shards-changing",
        "snapshots-1",
        "replay-1",
        "mixture-2",
    ],
)
def test_a_killed_and_resumed_run_is_the_uninterrupted_one(
    forked: bool, strategy: str, workers: tuple[int, ...], every: int, tmp_path: Path
) -> None:
    """Samples, augmentation and losses bit for bit; each life has its own number of workers."""
    seed = random.randrange(10**9)
    print(f"kills drawn from seed {seed}")
    rng = random.Random(seed)
    run = Run(tmp_path, strategy, every, training_process.life if forked else None)
    try:
        for number in workers[:-1]:
            kill_after, delay = rng.randint(1, 16), rng.uniform(0, 0.03)
            print(f"{number} workers, killed {delay:.4f} s after step {kill_after} of this life")
            run.live(number, kill_after, delay)
            expected = uninterrupted(strategy)[: len(run.stream)]
            assert run.stream == expected
        run.live(workers[-1], None)
    finally:
        alive = run.end()
    print(f"{run.kills} kills; {run.repeated} steps were done twice")
    assert run.kills > 0
    assert run.stream == uninterrupted(strategy)
    assert alive == [], "processes outlive the run"


@pytest.mark.parametrize(
    ("kind", "workers", "every"),
    [
        ("map", 0, 4),
        ("threads", 2, 5),
        *slow(
            ("map", 2, 1),
            ("map, seeded", 0, 1),
            ("map, seeded", 2, 3),
            ("in torch's order", 0, 2),
            ("persistent", 2, 5),
            ("threads", 2, 2),
            ("shards", 0, 2),
            ("shards", 2, 5),
            ("dataset state", 1, 2),
            ("replay", 0, 3),
            ("limited", 2, 2),
            ("batch sampler", 0, 2),
        ),
    ],
)
def test_validation_without_a_seed_leaves_the_training_of_a_killed_run_as_it_was(
    kind: str, workers: int, every: int, tmp_path: Path
) -> None:
    """Dropout and noise come from the training's own generators, which the checkpoint holds."""
    nowhere = Path("no such checkpoint")
    expected = list(validated_training.training(nowhere, kind, workers, 10**9))
    rng = random.Random(f"{kind} {workers} {every}")
    run = Run(tmp_path, kind, every, validated_training.life)
    try:
        for _ in range(2):
            run.live(workers, rng.randint(every, 10), rng.uniform(0, 0.03))
        run.live(workers, None)
    finally:
        alive = run.end()
    assert run.kills > 0
    assert run.stream == expected
    assert alive == []


def test_the_streams_of_the_strategies_are_as_different_as_they_are_said_to_be() -> None:
    """Else the comparison above could not tell a resume from a lucky constant."""
    simple, advanced = uninterrupted("simple"), uninterrupted("advanced")
    assert [record["ids"] for record in simple] == [record["ids"] for record in advanced]
    batches = [record["batch"] for record in (*simple, *advanced)]
    assert len(set(batches)) == len(batches)


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    run = Run(tmp_path, "advanced", 1000)
    try:
        run.live(2, 5)
        run.live(0, None)
    finally:
        alive = run.end()
    assert (run.kills, run.repeated >= 5) == (1, True)
    assert run.stream == uninterrupted("advanced")
    assert alive == []
