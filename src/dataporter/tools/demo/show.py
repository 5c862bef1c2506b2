"""The demo from end to end: load the digits, carry the runs out, judge them, print and draw."""

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
from dataporter.tools.demo.runs import DemoError, Run, Scenario, carry_out
from dataporter.tools.demo.steps import Step
from dataporter.tools.demo.training import BATCH_SIZE
from dataporter.tools.demo.verdict import COMPARED, Verdict, coverage, judge, redone

__all__ = ["DemoError", "digits_in", "progress_of", "show", "working_directory"]

_ALONE = Scenario("left alone", "dataporter", 2, None)
_RESUMED = (
    Scenario("same 2 workers", "dataporter", 2, 2),
    Scenario("2, then 3 workers", "dataporter", 2, 3),
)
_PLAIN = Scenario("plain DataLoader", "plain", 2, 2)
_DIFFERENCES_SHOWN = 5


def show(output: Path, *, epochs: int, keep: Path | None) -> bool:
    """Carry the demo out, print its table and save its plot.

    Args:
        output: the image file to write.
        epochs: how many epochs each run trains.
        keep: a new or empty directory for logs and checkpoints; None: they are thrown away.

    Returns:
        Whether every step of every resumed run was exactly that of the run left alone.

    Raises:
        DemoError: the demo could not be carried out.
    """
    check_output(output)
    with working_directory(keep) as directory:
        data, length = digits_in(directory)
        scenarios = (_ALONE, *_RESUMED, _PLAIN)
        steps = len(scenarios) * epochs * ceil(length / BATCH_SIZE)
        with progress_of("training, killing, resuming", steps) as on_progress:
            alone, *resumed, plain = carry_out(scenarios, directory, data, epochs, on_progress)

    verdicts = [judge(alone.steps, run.first, run.kept, run.resumed) for run in resumed]
    save_plot(output, alone, resumed, plain, length)
    console = Console(highlight=False)
    console.print(_table([*resumed, plain], [*verdicts, None], epochs, length))
    faults = [
        f"{run.scenario.name}: {difference}"
        for run, verdict in zip(resumed, verdicts)
        for difference in verdict.differences
    ]
    # Equal runs could still be equally wrong.
    faults += [
        f"{_ALONE.name}: epoch {epoch} did not have every sample exactly once"
        for epoch in range(epochs)
        if not coverage(alone.steps, epoch, length).is_whole
    ]
    for fault in faults[:_DIFFERENCES_SHOWN]:
        console.print(fault)
    if len(faults) > _DIFFERENCES_SHOWN:
        console.print(f"and {len(faults) - _DIFFERENCES_SHOWN} more differences")
    console.print(
        "[red]NOT exact: see above.[/]"
        if faults
        else "[green]Exact: every sample, every byte and every loss is as in the run left alone.[/]"
    )
    lost = coverage(plain.steps, plain.kill_epoch, length)
    console.print(
        f"The same script with a plain DataLoader, in the epoch of the kill: of {length} samples, "
        f"{lost.repeated} came twice and {lost.never_seen} never."
    )
    console.print(f"Plot: {output}", soft_wrap=True)
    return not faults


@contextmanager
def working_directory(keep: Path | None) -> Iterator[Path]:
    """A directory for logs and checkpoints: ``keep``, or one that is thrown away.

    Raises:
        DemoError: ``keep`` cannot be made, or is not empty.
    """
    if keep is not None:
        yield _made_empty(keep)
        return
    with tempfile.TemporaryDirectory(prefix="dataporter-") as directory:
        yield Path(directory)


def _made_empty(keep: Path) -> Path:
    try:
        keep.mkdir(exist_ok=True)
        occupied = any(keep.iterdir())
    except OSError as error:
        raise DemoError(f"--keep {keep}: {error.strerror}") from error
    if occupied:
        raise DemoError(f"--keep {keep}: is not empty, and old checkpoints would be resumed")
    return keep.resolve()


def digits_in(directory: Path) -> tuple[Path, int]:
    """Write the digits where all training processes read them; the file, and how many they are."""
    # Each of seven processes would take two seconds to import scikit-learn.
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    path = directory / "digits.npz"
    np.savez(path, images=images, labels=digits.target)
    return path, len(images)


@contextmanager
def progress_of(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal; what it yields is told how many steps are done."""
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
    """One column a run; ``None`` for a run that has nothing to be exact to."""
    table = Table(
        title=f"Killed and resumed: {length} digits, {epochs} epochs, against a training left alone"
    )
    table.add_column("")
    for run in runs:
        table.add_column(run.scenario.name, justify="right")

    def row(name: str, cells: Sequence[str], *, end_section: bool = False) -> None:
        table.add_row(name, *cells, end_section=end_section)

    row("killed after", [_place(run.first[-1:]) for run in runs])
    row("resumed with", [_place(run.resumed[:1]) for run in runs])
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


def _place(one: Sequence[Step]) -> str:
    return f"epoch {one[0].epoch}, step {one[0].step}" if one else "nothing"
