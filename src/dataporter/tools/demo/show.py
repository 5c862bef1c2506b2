"""The demo from end to end: load the digits, run the scenarios, judge them, print and draw."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits

from dataporter.tools.demo.plot import check_output, save_plot
from dataporter.tools.demo.runs import DemoError, Run, Scenario, run_scenarios
from dataporter.tools.demo.steps import Step
from dataporter.tools.demo.training import BATCH_SIZE
from dataporter.tools.demo.verdict import COMPARED, Verdict, coverage, judge, redone

__all__ = ["DemoError", "digits_in", "progress_of", "show", "working_directory"]

_ALONE = Scenario("uninterrupted", "dataporter", 2, None)
_RESUMED = (
    Scenario("same 2 workers", "dataporter", 2, 2),
    Scenario("2, then 3 workers", "dataporter", 2, 3),
)
_PLAIN = Scenario("plain DataLoader", "plain", 2, 2)
_DIFFERENCES_SHOWN = 5


def show(output: Path, *, epochs: int, keep: Path | None) -> bool:
    """Run the demo, print its table and save its plot.

    Args:
        output: the image file to write.
        epochs: number of epochs of each run.
        keep: a new or empty directory for logs and checkpoints; None: discard them.

    Returns:
        Whether every step of every resumed run equals that of the uninterrupted run.

    Raises:
        DemoError: the demo itself failed.
    """
    check_output(output)
    with working_directory(keep) as directory:
        data, length = digits_in(directory)
        scenarios = (_ALONE, *_RESUMED, _PLAIN)
        steps = len(scenarios) * epochs * ceil(length / BATCH_SIZE)
        with progress_of("training, killing, resuming", steps) as on_progress:
            alone, *resumed, plain = run_scenarios(scenarios, directory, data, epochs, on_progress)

    verdicts = [judge(alone.steps, run.first, run.kept, run.resumed) for run in resumed]
    save_plot(output, alone, resumed, plain, length)
    console = Console(highlight=False)
    console.print(_table([*resumed, plain], [*verdicts, None], epochs, length))
    faults = [
        f"{run.scenario.name}: {difference}"
        for run, verdict in zip(resumed, verdicts)
        for difference in verdict.differences
    ]
    # Equal runs could all be wrong in the same way.
    faults += [
        f"{_ALONE.name}: epoch {epoch} did not have every sample exactly once"
        for epoch in range(epochs)
        if not coverage(alone.steps, epoch, length).is_whole
    ]
    for fault in faults[:_DIFFERENCES_SHOWN]:
        console.print(fault, markup=False)
    if len(faults) > _DIFFERENCES_SHOWN:
        console.print(f"and {len(faults) - _DIFFERENCES_SHOWN} more differences")
    console.print(
        "[red]NOT exact: see above.[/]"
        if faults
        else "[green]Exact: every sample, byte and loss equals that of the uninterrupted run.[/]"
    )
    lost = coverage(plain.steps, plain.kill_epoch, length)
    console.print(
        f"The same script with a plain DataLoader, in the epoch of the kill: of {length} samples, "
        f"{lost.repeated} were repeated and {lost.never_seen} never seen."
    )
    console.print(f"Plot: {output}", soft_wrap=True, markup=False)
    return not faults


@contextmanager
def working_directory(keep: Path | None) -> Iterator[Path]:
    """A directory for logs and checkpoints: ``keep``, or a temporary one.

    Raises:
        DemoError: ``keep`` cannot be created, or is not empty.
    """
    if keep is not None:
        yield _empty_directory(keep)
        return
    with tempfile.TemporaryDirectory(prefix="dataporter-") as directory:
        yield Path(directory)


def _empty_directory(keep: Path) -> Path:
    try:
        keep.mkdir(exist_ok=True)
        occupied = any(keep.iterdir())
    except OSError as error:
        raise DemoError(f"--keep {keep}: {error.strerror}") from error
    if occupied:
        raise DemoError(
            f"--keep {keep} is not empty, and old checkpoints would be resumed; name a new one"
        )
    return keep.resolve()


def digits_in(directory: Path) -> tuple[Path, int]:
    """Write the digits to a file for all training processes; returns it and their number."""
    # Importing scikit-learn would take each of seven processes two seconds.
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    path = directory / "digits.npz"
    np.savez(path, images=images, labels=digits.target)
    return path, len(images)


@contextmanager
def progress_of(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal; yields a function that receives the number of steps done."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as progress:
        task = progress.add_task(what, total=total)

        def on_progress(done: int) -> None:
            progress.update(task, completed=done)

        yield on_progress


def _table(
    runs: Sequence[Run], verdicts: Sequence[Verdict | None], epochs: int, length: int
) -> Table:
    """One column per run; a verdict is None for a run that is not expected to be exact."""
    table = Table(
        title=f"Killed and resumed: {length} digits, {epochs} epochs, against an uninterrupted run"
    )
    table.add_column("")
    for run in runs:
        table.add_column(run.scenario.name, justify="right")

    def row(name: str, cells: Sequence[str], *, end_section: bool = False) -> None:
        table.add_row(name, *cells, end_section=end_section)

    row("killed after", [_named(run.first[-1:]) for run in runs])
    row("resumed at", [_named(run.resumed[:1]) for run in runs])
    again = [redone(run.first, run.kept, run.resumed) for run in runs]
    row("redone, equal", [f"{same} of {steps}" for steps, same in again], end_section=True)
    for field, name in COMPARED.items():
        row(
            f"{name} equal",
            ["-" if v is None else f"{v.same[field]} of {v.steps}" for v in verdicts],
            end_section=field == "loss",
        )
    covered = [coverage(run.steps, run.kill_epoch, length) for run in runs]
    row("seen repeatedly*", [str(seen.repeated) for seen in covered])
    row("never seen*", [str(seen.never_seen) for seen in covered], end_section=True)
    row(
        "verdict",
        [
            "[green]exact[/]"
            if (seen.is_whole if verdict is None else verdict.exact)
            else "[red]not exact[/]"
            for verdict, seen in zip(verdicts, covered)
        ],
    )
    table.caption = "* in the epoch of the kill; epochs and steps are counted from 0"
    return table


def _named(steps: Sequence[Step]) -> str:
    return f"epoch {steps[0].epoch}, step {steps[0].step}" if steps else "nothing"
