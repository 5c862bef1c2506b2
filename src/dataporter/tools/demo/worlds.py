"""Worlds: a distributed run is killed and resumes with a different number of ranks, in a chain."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, lcm
from pathlib import Path
from typing import NamedTuple

import torch

from dataporter.tools.demo.runs import DemoError, TrainingProcess
from dataporter.tools.demo.steps import Step, StepLog
from dataporter.tools.demo.training import CHECKPOINT
from dataporter.tools.demo.world_training import CHECKPOINT_EVERY

__all__ = [
    "Chain",
    "World",
    "WorldRun",
    "global_batch_size_for",
    "parse_worlds",
    "run_worlds",
    "trained_steps",
]

_MOST_RANKS = 16
_SMALLEST_GLOBAL_BATCH = 24
# An epoch needs enough steps for a kill between two checkpoints in each run except the last.
_LARGEST_GLOBAL_BATCH = 120
_SECONDS_BETWEEN_LOOKS = 0.002


class Batch(NamedTuple):
    """A global batch: the samples that all ranks together trained on in one step."""

    epoch: int
    step: int
    samples: dict[int, str]  # index → digest of the augmented pixels


@dataclass(frozen=True, slots=True)
class WorldRun:
    """One run of the chain, from its start to its kill or its end.

    Attributes:
        ranks: number of ranks.
        batches: the global batches that all ranks have logged.
        kept: how many of them the last checkpoint includes; all of them if the run finished.
    """

    ranks: int
    batches: tuple[Batch, ...]
    kept: int


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of runs, and the same training uninterrupted on one rank."""

    runs: tuple[WorldRun, ...]
    alone: tuple[Batch, ...]

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The batches that trained the final model."""
        return tuple(batch for run in self.runs for batch in run.batches[: run.kept])


def parse_worlds(text: str) -> tuple[int, ...]:
    """``"4,2"`` → ``(4, 2)``.

    Raises:
        DemoError: these are not two or more numbers of ranks that can divide one batch.
    """
    parts = [part.strip() for part in text.split(",")]
    worlds = tuple(int(part) for part in parts if part.isdecimal())
    if len(worlds) != len(parts) or len(worlds) < 2:
        raise DemoError(f"--world {text}: expected two or more numbers of ranks, such as 4,2")
    if not all(1 <= ranks <= _MOST_RANKS for ranks in worlds):
        raise DemoError(f"--world {text}: expected 1 to {_MOST_RANKS} ranks each")
    if lcm(*worlds) > _LARGEST_GLOBAL_BATCH:
        raise DemoError(
            f"--world {text}: each number of ranks must divide the global batch size, so that the "
            f"training stays the same, but {lcm(*worlds)} is more than the {_LARGEST_GLOBAL_BATCH} "
            "that the digits allow: choose numbers with a smaller common multiple"
        )
    return worlds


def global_batch_size_for(worlds: Sequence[int]) -> int:
    """A batch size that each of these numbers of ranks divides."""
    shared = lcm(*worlds)
    return shared * ceil(_SMALLEST_GLOBAL_BATCH / shared)


def run_worlds(
    worlds: Sequence[int],
    directory: Path,
    data: Path,
    length: int,
    epochs: int,
    on_progress: Callable[[int], None],
) -> Chain:
    """Train with each number of ranks in turn, killed except for the last, and once uninterrupted.

    Args:
        worlds: the numbers of ranks.
        directory: for logs and checkpoints.
        data: the digits, as the training script expects them.
        length: number of digits.
        epochs: number of epochs; the kills are in the first one.
        on_progress: receives the number of steps that the chain and the uninterrupted run have
            done together.

    Raises:
        DemoError: a rank failed, hung, or ended before it could be killed.
    """
    size = global_batch_size_for(worlds)
    steps = ceil(length / size)
    with ExitStack() as stack:
        home = directory / "alone"
        home.mkdir()
        alone = stack.enter_context(
            _digits_world("uninterrupted", 1, home, home, data, size, epochs)
        )
        home = directory / "worlds"
        home.mkdir()
        runs: list[WorldRun] = []
        for number, ranks in enumerate(worlds):
            logs = home / f"run-{number + 1}"
            logs.mkdir()
            is_last = number == len(worlds) - 1
            kill_after = None if is_last else (number + 1) * steps // len(worlds)
            before = sum(run.kept for run in runs)
            with _digits_world(f"run {number + 1}", ranks, home, logs, data, size, epochs) as world:
                while world.is_running():
                    done = world.steps_done()
                    if kill_after is not None and _is_moment(done, kill_after - before):
                        world.kill()
                    alone.is_running()
                    on_progress(alone.steps_done() + before + done)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            batches = _batches(world)
            if is_last:
                kept = len(batches)
            elif world.was_killed:
                kept = trained_steps(home / CHECKPOINT) - before
            else:
                raise DemoError(
                    f"run {number + 1} ended before it could be killed; increase --epochs"
                )
            runs.append(WorldRun(ranks, batches, kept))
        while alone.is_running():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            on_progress(alone.steps_done() + sum(run.kept for run in runs))
    return Chain(tuple(runs), _batches(alone))


def _is_moment(done: int, wanted: int) -> bool:
    """Whether a kill now would be late enough, and well between two checkpoints."""
    return done >= max(wanted, CHECKPOINT_EVERY) and done % CHECKPOINT_EVERY == 3


def trained_steps(checkpoint: Path) -> int:
    """How many steps the model in a checkpoint was trained."""
    return int(torch.load(checkpoint, weights_only=True)["trained_steps"])


class World:
    """The ranks of one run; leaving the ``with`` block leaves none of them alive.

    Args:
        name: of the run, for messages.
        ranks: number of ranks.
        logs: a folder for their logs.
        command: starts a rank, which writes to the given log.
    """

    def __init__(
        self, name: str, ranks: int, logs: Path, command: Callable[[int, Path], list[str]]
    ) -> None:
        self.was_killed = False
        self._stack = ExitStack()
        self._logs = [StepLog(logs / f"rank-{rank}.jsonl") for rank in range(ranks)]
        self._processes: list[TrainingProcess] = []
        for rank, log in enumerate(self._logs):
            output = logs / f"rank-{rank}"
            output.mkdir()
            process = TrainingProcess(f"{name}, rank {rank}", command(rank, log.path), output)
            self._processes.append(process)

    def __enter__(self) -> World:
        with self._stack:
            for process in self._processes:
                self._stack.enter_context(process)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def is_running(self) -> bool:
        """False once it was killed or all ranks have finished."""
        if self.was_killed:
            return False
        # Check every rank, because the check raises if the rank has failed.
        running = [process.is_running() for process in self._processes]
        return any(running)

    def kill(self) -> None:
        """Send SIGKILL to every rank."""
        self.was_killed = True
        for process in self._processes:
            process.kill()

    def steps_done(self) -> int:
        """The number of steps that every rank has logged."""
        return min(len(log.read()) for log in self._logs)

    def steps(self) -> tuple[tuple[Step, ...], ...]:
        """The steps that every rank has logged, each with an entry for each rank."""
        return tuple(zip(*(log.read() for log in self._logs)))


def _digits_world(
    name: str, ranks: int, directory: Path, logs: Path, data: Path, size: int, epochs: int
) -> World:
    def command(rank: int, log: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "dataporter.tools.demo.world_training", str(directory)),
            *(f"--data={data}", f"--log={log}", f"--rank={rank}"),
            *(f"--world-size={ranks}", f"--global-batch-size={size}", f"--epochs={epochs}"),
        ]

    return World(name, ranks, logs, command)


def _batches(world: World) -> tuple[Batch, ...]:
    return tuple(map(_merged, world.steps()))


def _merged(steps: tuple[Step, ...]) -> Batch:
    """The global batch of one step of every rank."""
    samples: dict[int, str] = {}
    for step in steps:
        for sample, digest in zip(step.samples, step.digest.split()):
            # A sample that occurs twice gets a digest that equals no other.
            samples[sample] = f"twice: {samples[sample]}, {digest}" if sample in samples else digest
    return Batch(steps[0].epoch, steps[0].step, samples)
