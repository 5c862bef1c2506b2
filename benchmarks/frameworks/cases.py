"""What is tried in each framework: the programs, their options, and where the kill comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.frameworks.trial import attempt, difference

__all__ = ["CASES", "LIGHTNING", "LOOP", "Case", "verdict"]


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
        ("mid-epoch, without the callback, 2 workers", 7, "--bare --workers 2"),
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

CASES: tuple[Case, ...] = LOOP + LIGHTNING
