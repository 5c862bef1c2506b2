"""Worlds: a distributed training is killed and goes on with another number of ranks, in a chain."""

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

__all__ = ["Life", "WorldRun", "carry_out_worlds", "global_batch_size_for", "parsed_worlds"]

_MOST_RANKS = 16
_SMALLEST_GLOBAL_BATCH = 24
# An epoch has to have steps enough to be killed between two checkpoints in each life but the last.
_LARGEST_GLOBAL_BATCH = 120
_SECONDS_BETWEEN_LOOKS = 0.002


class Batch(NamedTuple):
    """A global batch: what all ranks together trained on in one step."""

    epoch: int
    step: int
    samples: dict[int, str]  # with the digest of each sample's augmented pixels


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the training, from its start to its kill or its end.

    Attributes:
        ranks: how many ranks it had.
        batches: the global batches that all ranks have logged.
        kept: how many of them the last checkpoint holds; all of them where it came to its end.
    """

    ranks: int
    batches: tuple[Batch, ...]
    kept: int


@dataclass(frozen=True, slots=True)
class WorldRun:
    """A training of several lives, and the same training left alone on one rank."""

    lives: tuple[Life, ...]
    alone: tuple[Batch, ...]

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The training that the model at the end has behind it."""
        return tuple(batch for life in self.lives for batch in life.batches[: life.kept])


def parsed_worlds(text: str) -> tuple[int, ...]:
    """``"4,2"`` → ``(4, 2)``.

    Raises:
        DemoError: these are not two or more numbers of ranks that can share one batch.
    """
    parts = [part.strip() for part in text.split(",")]
    worlds = tuple(int(part) for part in parts if part.isdecimal())
    if len(worlds) != len(parts) or len(worlds) < 2:
        raise DemoError(f"--world {text}: expected two or more numbers of ranks, such as 4,2")
    if not all(1 <= ranks <= _MOST_RANKS for ranks in worlds):
        raise DemoError(f"--world {text}: expected 1 to {_MOST_RANKS} ranks each")
    if lcm(*worlds) > _LARGEST_GLOBAL_BATCH:
        raise DemoError(
            f"--world {text}: the training is the same for all of them with one global batch size, "
            f"which each must divide; {lcm(*worlds)} is more than the {_LARGEST_GLOBAL_BATCH} that "
            "the digits are enough for"
        )
    return worlds


def global_batch_size_for(worlds: Sequence[int]) -> int:
    """A batch that each of these worlds can share out evenly."""
    shared = lcm(*worlds)
    return shared * ceil(_SMALLEST_GLOBAL_BATCH / shared)


def carry_out_worlds(
    worlds: Sequence[int],
    directory: Path,
    data: Path,
    length: int,
    epochs: int,
    on_progress: Callable[[int], None],
) -> WorldRun:
    """Train with each number of ranks in turn, killed but for the last; and once left alone.

    Args:
        worlds: the numbers of ranks.
        directory: for logs and checkpoints.
        data: the digits, as the training script wants them.
        length: how many there are.
        epochs: how long the training is; the kills come in the first one.
        on_progress: told the steps that both trainings together have behind them.

    Raises:
        DemoError: a rank failed, hung, or ended before it could be killed.
    """
    size = global_batch_size_for(worlds)
    steps = ceil(length / size)
    with ExitStack() as stack:
        home = directory / "alone"
        home.mkdir()
        alone = stack.enter_context(_World("left alone", 1, home, home, data, size, epochs))
        home = directory / "worlds"
        home.mkdir()
        lives: list[Life] = []
        for number, ranks in enumerate(worlds):
            life = home / f"life-{number + 1}"
            life.mkdir()
            is_last = number == len(worlds) - 1
            kill_after = None if is_last else (number + 1) * steps // len(worlds)
            before = sum(life.kept for life in lives)
            with _World(f"life {number + 1}", ranks, home, life, data, size, epochs) as world:
                while world.is_running():
                    done = world.steps_done()
                    if kill_after is not None and _is_moment(done, kill_after - before):
                        world.kill()
                    alone.is_running()
                    on_progress(alone.steps_done() + before + done)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            batches = world.batches()
            if is_last:
                kept = len(batches)
            elif world.was_killed:
                checkpoint = torch.load(home / CHECKPOINT, weights_only=True)
                kept = int(checkpoint["trained_steps"]) - before
            else:
                raise DemoError(f"life {number + 1} was over before it could be killed")
            lives.append(Life(ranks, batches, kept))
        while alone.is_running():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            on_progress(alone.steps_done() + sum(life.kept for life in lives))
    return WorldRun(tuple(lives), alone.batches())


def _is_moment(done: int, wanted: int) -> bool:
    """Whether so many steps are enough, and well between two checkpoints."""
    return done >= max(wanted, CHECKPOINT_EVERY) and done % CHECKPOINT_EVERY == 3


class _World:
    """The ranks of one life; leaving the ``with`` block leaves none of them alive."""

    def __init__(
        self,
        name: str,
        ranks: int,
        directory: Path,
        life: Path,
        data: Path,
        global_batch_size: int,
        epochs: int,
    ) -> None:
        self.was_killed = False
        self._stack = ExitStack()
        self._logs = [StepLog(life / f"rank-{rank}.jsonl") for rank in range(ranks)]
        self._processes: list[TrainingProcess] = []
        for rank, log in enumerate(self._logs):
            command = [
                *(sys.executable, "-m", "dataporter.tools.demo.world_training", str(directory)),
                *(f"--data={data}", f"--log={log.path}", f"--rank={rank}"),
                *(f"--world-size={ranks}", f"--global-batch-size={global_batch_size}"),
                f"--epochs={epochs}",
            ]
            output = life / f"rank-{rank}"
            output.mkdir()
            self._processes.append(TrainingProcess(f"{name}, rank {rank}", command, output))

    def __enter__(self) -> _World:
        with self._stack:
            for process in self._processes:
                self._stack.enter_context(process)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def is_running(self) -> bool:
        """False when it was killed, or when all ranks have done their work."""
        if self.was_killed:
            return False
        # All of them are asked, since it is by asking that one learns of a rank that has failed.
        running = [process.is_running() for process in self._processes]
        return any(running)

    def kill(self) -> None:
        """SIGKILL to every rank."""
        self.was_killed = True
        for process in self._processes:
            process.kill()

    def steps_done(self) -> int:
        """How many steps every rank has logged."""
        return min(len(log.read()) for log in self._logs)

    def batches(self) -> tuple[Batch, ...]:
        """The steps that every rank has logged, put together."""
        return tuple(map(_together, zip(*(log.read() for log in self._logs))))


def _together(of_ranks: tuple[Step, ...]) -> Batch:
    samples: dict[int, str] = {}
    for step in of_ranks:
        for sample, digest in zip(step.samples, step.digest.split()):
            # What comes twice is told by a digest that nothing else has.
            samples[sample] = f"twice: {samples[sample]}, {digest}" if sample in samples else digest
    return Batch(of_ranks[0].epoch, of_ranks[0].step, samples)
