"""What is tried in each framework: the programs, their options, and where the kill comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.frameworks.trial import attempt, difference

__all__ = ["ACCELERATE", "CASES", "LOOP", "TRAINER", "Case", "torchrun", "verdict"]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to be interrupted.

    Attributes:
        what: in a few words, as the docs say it.
        program: a module of this package.
        kill_at: the step after which SIGKILL comes.
        options: for the program, in every attempt.
        launcher: see :func:`~benchmarks.frameworks.trial.attempt`.
    """

    framework: str
    what: str
    program: str
    kill_at: int
    options: Sequence[str] = ()
    launcher: Sequence[str] = ()


def verdict(case: Case, loader: str, home: Path) -> str | None:
    """What is otherwise after the kill than in the training left alone; None: nothing.

    Raises:
        TrainingFailedError: a training did not end as it should.
    """
    options = (*case.options, "--loader", loader)
    alone = attempt(case.program, home / "alone", 0, *options, launcher=case.launcher)
    attempt(
        case.program,
        home / "killed",
        0,
        *options,
        kill_at=case.kill_at,
        launcher=case.launcher,
    )
    resumed = attempt(case.program, home / "killed", 1, *options, launcher=case.launcher)
    return difference(alone, resumed)


def torchrun(ranks: int) -> tuple[str, ...]:
    """What starts a program on so many ranks of this machine."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")


LOOP = tuple(
    Case("by hand", what, "loop", kill_at)
    for what, kill_at in [
        ("mid-epoch", 7),
        ("right after an epoch's last step", 12),
        ("in the third epoch", 29),
    ]
)

ACCELERATE = tuple(
    Case("Accelerate", what, "accelerate", kill_at, options.split(), launcher)
    for what, kill_at, options, launcher in [
        ("mid-epoch", 7, "", ()),
        ("at an epoch's last batch, 2 workers", 13, "--every 12 --workers 2", ()),
        ("2 processes", 9, "--every 4", torchrun(2)),
        (
            "2 processes, `split_batches`, accumulation",
            10,
            "--every 4 --split-batches --batch-size 16 --accumulate 2",
            torchrun(2),
        ),
    ]
)

TRAINER = tuple(
    Case("Transformers Trainer", what, "trainer", kill_at, options.split(), launcher)
    for what, kill_at, options, launcher in [
        ("mid-epoch, with evaluation, 2 workers", 7, "--evaluate --workers 2", ()),
        ("with accumulation, at an epoch's last step", 26, "--accumulate 5 --every 3", ()),
        ("`group_by_length`", 18, "--sampling group_by_length", ()),
        ("a stream with `max_steps`, in its second pass", 17, "--stream --max-steps 20", ()),
        ("2 processes", 9, "--every 4", torchrun(2)),
    ]
)

CASES: tuple[Case, ...] = (*LOOP, *ACCELERATE, *TRAINER)
