"""Tables: a benchmark's results, shown in the terminal and written to results.md."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

__all__ = ["Goal", "Table", "markdown", "show"]


@dataclass(frozen=True, slots=True)
class Goal:
    """The goal, what was measured, and whether the goal was reached."""

    wanted: str
    measured: str
    reached: bool

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "MISSED"
        return f"Goal {self.wanted}: {self.measured}, {verdict}."


@dataclass(frozen=True, slots=True)
class Table:
    """The answer to one question. The first column says what was measured."""

    question: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    goals: tuple[Goal, ...] = ()
    notes: tuple[str, ...] = ()


def show(table: Table, console: Console) -> None:
    drawn = RichTable(title=escape(table.question), title_justify="left")
    for index, column in enumerate(table.columns):
        drawn.add_column(escape(column), justify="right" if index else "left")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    console.print(drawn)
    for goal in table.goals:
        console.print(str(goal), style="green" if goal.reached else "bold red", markup=False)
    for note in table.notes:
        console.print(note, style="dim", markup=False)
    console.print()


def markdown(table: Table) -> str:
    lines = [f"## {table.question}", ""]
    lines.append(_markdown_row(table.columns))
    lines.append(_markdown_row(("---", *("---:" for _ in table.columns[1:]))))
    lines += [_markdown_row(row) for row in table.rows]
    for goal in table.goals:
        lines += ["", f"**{goal}**"]
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', '∣') for cell in cells)} |"
