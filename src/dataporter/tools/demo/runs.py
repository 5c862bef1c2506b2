"""Runs: starts training processes, kills them with SIGKILL mid-epoch, and resumes them.

Several runs are active at a time. Each is a generator that yields its progress, so that one loop
watches them all and closing a generator stops its process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from dataporter.errors import DataPorterError
from dataporter.tools.demo.steps import Step, StepLog
from dataporter.tools.demo.training import CHECKPOINT, CHECKPOINT_EVERY, LoaderName

__all__ = ["DemoError", "Run", "Scenario", "TrainingProcess", "run_scenarios"]

# A training process takes seconds; one that takes minutes has hung.
_SECONDS_PER_PROCESS = 240
_SECONDS_TO_DIE = 20
# A step takes several milliseconds, and the kill must hit a window of seven steps.
_SECONDS_BETWEEN_LOOKS = 0.002
# Least number of steps between a kill and the checkpoints before and after it.
_STEPS_FROM_CHECKPOINT = 7


class DemoError(DataPorterError, RuntimeError):
    """The demo itself failed, which says nothing about the loaders."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to run the training script.

    Attributes:
        name: as the table and the plot show it.
        loader: which loader the training script uses.
        workers: number of workers of the first process.
        workers_after: number of workers of the process that resumes; None: the first process is
            not interrupted.
    """

    name: str
    loader: LoaderName
    workers: int
    workers_after: int | None


@dataclass(frozen=True, slots=True)
class Run:
    """The logged steps of a scenario's processes.

    Attributes:
        first: all steps of the first process, up to its kill or to the end.
        kept: how many of them the last checkpoint includes; the second process resumes there.
        resumed: all steps of the second process; empty if there is none.
    """

    scenario: Scenario
    first: tuple[Step, ...]
    kept: int
    resumed: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that trained the final model."""
        return self.first[: self.kept] + self.resumed

    @property
    def kill_epoch(self) -> int:
        """The epoch in which the first process was killed."""
        return self.first[-1].epoch


# Yields the number of steps done so far.
_Running = Generator[int, None, Run]


def run_scenarios(
    scenarios: Sequence[Scenario],
    directory: Path,
    data: Path,
    epochs: int,
    on_progress: Callable[[int], None],
) -> list[Run]:
    """Run all scenarios at the same time.

    Args:
        scenarios: the scenarios.
        directory: for logs and checkpoints; each scenario has a folder in it.
        data: the digits, as the training script expects them.
        epochs: number of epochs of each run.
        on_progress: receives the number of steps that all runs together have done.

    Raises:
        DemoError: a training process failed, hung, or ended before it could be killed.
    """
    finished: dict[int, Run] = {}
    steps = [0] * len(scenarios)
    with ExitStack() as stack:
        running: dict[int, _Running] = {}
        for number, scenario in enumerate(scenarios):
            home = directory / f"run-{number + 1}"
            home.mkdir()
            running[number] = stack.enter_context(
                closing(_run_scenario(scenario, home, data, epochs))
            )
        while running:
            for number, run in tuple(running.items()):
                try:
                    # Never backwards, although a resumed run returns to its checkpoint.
                    steps[number] = max(steps[number], next(run))
                except StopIteration as end:
                    finished[number] = end.value
                    del running[number]
            on_progress(sum(steps))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return [finished[number] for number in range(len(scenarios))]


def _run_scenario(scenario: Scenario, home: Path, data: Path, epochs: int) -> _Running:
    def command(workers: int, log: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "dataporter.tools.demo.training", str(home)),
            *(f"--data={data}", f"--log={log}", f"--epochs={epochs}"),
            *(f"--loader={scenario.loader}", f"--workers={workers}"),
        ]

    log = StepLog(home / "first.jsonl")
    with TrainingProcess(scenario.name, command(scenario.workers, log.path), home) as training:
        while training.is_running():
            steps = log.read()
            if scenario.workers_after is not None and steps and _is_moment(steps[-1], epochs):
                training.kill()
            yield len(steps)
    first = tuple(log.read())
    if scenario.workers_after is None:
        return Run(scenario, first, len(first), ())
    if not training.was_killed:
        raise DemoError(
            f"{scenario.name}: the training run ended before it could be killed mid-epoch; "
            "increase --epochs"
        )

    kept = int(torch.load(home / CHECKPOINT, weights_only=True)["trained_steps"])
    log = StepLog(home / "resumed.jsonl")
    with TrainingProcess(
        scenario.name, command(scenario.workers_after, log.path), home
    ) as training:
        while training.is_running():
            yield kept + len(log.read())
    return Run(scenario, first, kept, tuple(log.read()))


def _is_moment(last: Step, epochs: int) -> bool:
    """Whether a kill now would be mid-epoch and well between two checkpoints of that epoch."""
    done = last.step + 1
    to_last, to_next = done % CHECKPOINT_EVERY, CHECKPOINT_EVERY - done % CHECKPOINT_EVERY
    return (
        last.epoch >= (epochs - 1) // 2
        and done > CHECKPOINT_EVERY
        and min(to_last, to_next) >= _STEPS_FROM_CHECKPOINT
    )


class TrainingProcess:
    """A training process and its workers; leaving the ``with`` block leaves none of them alive."""

    def __init__(self, name: str, command: list[str], home: Path) -> None:
        self._name = name
        self._command = command
        self._output = home / "output.txt"

    def __enter__(self) -> TrainingProcess:
        self._deadline = time.monotonic() + _SECONDS_PER_PROCESS
        with self._output.open("wb") as output:
            # In a new session, so that its workers can be killed after it is dead, and only the
            # demo receives Ctrl-C, which then stops everything in order.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.returncode is None:
            self.kill()

    def is_running(self) -> bool:
        """False once it was killed or has finished.

        Raises:
            DemoError: it failed or takes too long.
        """
        if self._process.poll() is None:
            if time.monotonic() > self._deadline:
                raise DemoError(
                    f"{self._name}: the training process has not finished after "
                    f"{_SECONDS_PER_PROCESS} seconds"
                )
            return True
        if self._process.returncode != 0 and not self.was_killed:
            self._kill_workers()
            lines = self._output.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "nothing")
            raise DemoError(
                f"{self._name}: the training process ended with code {self._process.returncode} "
                f"and printed: {last.strip()}"
            )
        return False

    @property
    def was_killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self._process.returncode == -signal.SIGKILL

    def kill(self) -> None:
        """Send SIGKILL, as an out-of-memory killer or a preempted machine would."""
        os.kill(self._process.pid, signal.SIGKILL)
        # Before waiting for the dead process, while its id still names its group.
        self._kill_workers()
        self._process.wait(_SECONDS_TO_DIE)

    def _kill_workers(self) -> None:
        # They would notice by themselves that the training process is gone, but only after seconds.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
