"""The cases of each framework: programs, their options, and the step of the kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.frameworks.trial import attempt, difference, uninterrupted

__all__ = [
    "ACCELERATE",
    "CASES",
    "FABRIC",
    "LIGHTNING",
    "LOOP",
    "RAY",
    "TORCHTITAN",
    "TRAINER",
    "Case",
    "torchrun",
    "verdict",
]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to interrupt a training.

    Attributes:
        what: the interruption, in a few words.
        program: a module of this package.
        kill_at: the step after which SIGKILL comes.
        options: of the program, in every attempt.
        launcher, seconds: see :func:`~benchmarks.frameworks.trial.attempt`.
    """

    framework: str
    what: str
    program: str
    kill_at: int
    options: Sequence[str] = ()
    launcher: Sequence[str] = ()
    seconds: float = 240


def verdict(case: Case, loader: str, home: Path) -> str | None:
    """The difference between the resumed and the uninterrupted training; None if there is none.

    Args:
        home: of all trainings; cases with the same options share the uninterrupted one.

    Raises:
        TrainingFailedError: a training ended in an unexpected way.
    """
    options = (*case.options, "--loader", loader)
    how: Any = {"seconds": case.seconds, "launcher": case.launcher}
    alone = uninterrupted(case.program, home, *options, **how)
    killed = Path(mkdtemp(prefix=f"{case.program}-killed-", dir=home))
    attempt(case.program, killed, 0, *options, kill_at=case.kill_at, **how)
    resumed = attempt(case.program, killed, 1, *options, **how)
    return difference(alone, resumed)


def torchrun(ranks: int) -> tuple[str, ...]:
    """The launcher of a program on a number of ranks of this machine."""
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")


LOOP = tuple(
    Case("by hand", what, "loop", kill_at)
    for what, kill_at in [
        ("mid-epoch", 7),
        ("right after an epoch's last step", 12),
        ("in the third epoch", 29),
    ]
)

LIGHTNING = tuple(
    Case("Lightning", what, "lightning", kill_at, options.split())
    for what, kill_at, options in [
        ("mid-epoch, 2 workers", 7, "--workers 2"),
        ("at an epoch's last batch", 13, "--every 12"),
        ("from `on_train_epoch_end`", 15, "--save epoch"),
        ("with `estimated_stepping_batches`", 7, "--estimated"),
        ("with accumulation", 10, "--accumulate 2 --every 4"),
        ("with `val_check_interval`, from its end", 9, "--val-every 4 --save validation"),
        ("two loaders, `max_size_cycle`", 9, "--mode max_size_cycle --every 7"),
        ("a stream without a length", 7, "--stream"),
        ("2 ranks (DDP)", 9, "--devices 2 --every 4"),
    ]
)

FABRIC = tuple(
    Case("Fabric", what, "fabric", kill_at, options.split(), launcher)
    for what, kill_at, options, launcher in [
        ("mid-epoch, in the second epoch, 2 workers", 17, "--workers 2", ()),
        ("at an epoch's last batch", 13, "--every 12", ()),
        ("2 ranks (DDP)", 9, "--every 4", torchrun(2)),
    ]
)

# Two ranks take 6 global steps per epoch, and save a checkpoint every 3.
TORCHTITAN = tuple(
    Case("torchtitan", what, "titan", kill_at, ("--every", "3", *options), torchrun(2))
    for what, kill_at, options in [
        ("2 ranks, mid-epoch", 10, ()),
        ("2 ranks, from a checkpoint of an epoch's last step", 7, ()),
        ("2 ranks, mid-epoch, async checkpoints", 10, ("--async-mode", "async")),
    ]
)

RAY = tuple(
    Case("Ray Train", what, "ray_train", kill_at, ("--every", "3"))
    for what, kill_at in [
        ("2 workers, mid-epoch", 10),
        ("2 workers, from a checkpoint of an epoch's last step", 7),
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

CASES: tuple[Case, ...] = (*LOOP, *LIGHTNING, *FABRIC, *ACCELERATE, *TRAINER, *TORCHTITAN, *RAY)
