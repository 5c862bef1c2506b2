"""The command `dataporter verify`: its progress bar, its table, and the options it reads."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dataporter.errors import ConfigurationError
from dataporter.tools.target import argument
from dataporter.tools.verification.report import VerifyReport, time_shown
from dataporter.tools.verification.session import OnProgress, verify

__all__ = ["Options", "carry_out", "exit_code", "show"]

_COLOURS = {
    "exact": "green",
    "not exact": "red",
    "failed": "red",
    "refused": "yellow",
    "not run": "yellow",
}
_HEADLINES = {"exact": "green", "not proven": "yellow", "not exact": "red"}
_EXIT_CODES = {"exact": 0, "not exact": 1, "not proven": 2}
_FAULTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line, as text."""

    target: str
    workers: str | None
    engine: str | None
    batch_size: str | None
    world: str | None
    spawn: bool
    steps: int | None
    max_seconds: float
    seed: int | None
    argument: Sequence[str]
    diagnose: bool
    as_json: bool
    html: Path | None


def carry_out(options: Options) -> int:
    """Verify a loader, and print the report.

    Returns:
        The exit code: 0 if the loader is exact, 1 if it is not, 2 if that is not proven.

    Raises:
        VerificationError: the verification could not be carried out.
        ConfigurationError: (a ``ValueError``) an option is wrong.
    """
    _check(options.html)
    with _progress() as on_progress:
        report = verify(
            options.target,
            workers=_numbers("--workers", options.workers),
            engines=_names(options.engine),
            batch_sizes=_numbers("--batch-size", options.batch_size),
            worlds=_numbers("--world", options.world),
            spawn=options.spawn,
            steps=options.steps,
            max_seconds=options.max_seconds,
            seed=options.seed,
            diagnose=options.diagnose,
            arguments=dict(map(argument, options.argument)),
            on_progress=on_progress,
        )
    if options.as_json:
        # A console would wrap the lines.
        print(json.dumps(report.to_dict(), indent=2), flush=True)  # noqa: T201
    else:
        show(report, Console(highlight=False))
    if options.html is not None:
        # Last, so that the report is printed even if the disk is full.
        report.save_html(options.html)
        Console(stderr=True, highlight=False).print(
            f"Report: {options.html}", soft_wrap=True, markup=False
        )
    return exit_code(report)


def exit_code(report: VerifyReport) -> int:
    """That of the command for a report."""
    return _EXIT_CODES[report.verdict]


def _check(html: Path | None) -> None:
    if html is None:
        return
    parent = html.resolve().parent
    if not parent.is_dir():
        raise ConfigurationError(f"--html {html}: there is no directory {parent}; create it first")
    if html.is_dir():
        raise ConfigurationError(f"--html {html}: this is a directory; give the path of a file")
    if not os.access(html if html.exists() else parent, os.W_OK):
        raise ConfigurationError(f"--html {html}: this path is not writable; give another one")


def show(report: VerifyReport, console: Console) -> None:
    """Print a report: the table, the faults, their causes, and the measurements."""
    console.print(_table(report))
    faults = report.faults
    for case in faults[:_FAULTS_SHOWN]:
        _line(console, f"{case.setting}, {case.name}: {case.fault}")
    if len(faults) > _FAULTS_SHOWN:
        _line(console, f"and {len(faults) - _FAULTS_SHOWN} more cases")
    for case in report.refused[:1]:
        _line(console, case.refusal)
    for diagnosis in report.diagnoses:
        _line(console, f"Why: {diagnosis.cause}. {diagnosis.because}", "bold")
        _line(console, f"What to do: {diagnosis.remedy}")
    for note in report.notes:
        _line(console, f"Note: {note}")
    for line in report.measures.sentences():
        _line(console, line)
    _line(console, report.summary(), _HEADLINES[report.verdict])


def _line(console: Console, text: str, style: str = "") -> None:
    # Values of the user's dataset are not markup.
    console.print(Text(text, style=style))


def _table(report: VerifyReport) -> Table:
    facts = report.facts
    strategy = f", {facts['strategy']}" if facts.get("strategy") else ""
    # A subject may have brackets, which rich would read as markup.
    table = Table(title=Text(f"{report.subject}: {facts['loader']}{strategy}", style="table.title"))
    for name in ("resumed with", "interrupted", "after"):
        table.add_column(name, justify="right" if name == "after" else "left")
    for name in ("equal", "to first batch"):
        table.add_column(name, justify="right")
    table.add_column("")
    for index, case in enumerate(report.cases):
        following = report.cases[index + 1 : index + 2]
        comparison = case.comparison
        equal = (
            "-"
            if comparison is None
            else f"{comparison.batches - comparison.differing} of {comparison.batches}"
        )
        resumed = case.after > 0 and case.resume_seconds is not None and not case.whole
        seconds = time_shown(case.resume_seconds) if resumed and case.resume_seconds else "-"
        table.add_row(
            *(
                case.setting,
                case.name,
                str(case.begun_at + case.after) if case.after else "-",
                equal,
                seconds,
            ),
            Text(case.verdict, style=_COLOURS[case.verdict]),
            end_section=bool(following) and following[0].setting != case.setting,
        )
    return table


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigurationError(
            f"{option} {text}: expected whole numbers separated by commas, such as 0,2,4"
        ) from None


def _names(text: str | None) -> list[str] | None:
    names = None if text is None else text.split(",")
    if names is not None and not set(names) <= {"process", "thread"}:
        raise ConfigurationError(
            f"--engine {text}: expected process, thread, or process,thread for both"
        )
    return names


@contextmanager
def _progress() -> Iterator[OnProgress]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    ) as progress:
        task = progress.add_task("starting", total=None)

        def on_progress(what: str, done: int, of: int) -> None:
            progress.update(task, description=what, completed=done, total=of)

        yield on_progress
