"""The mixture demo from end to end: kill a training, change its mixture, audit, print the proof."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from dataporter.tools.demo.mixtures import (
    LIVES,
    STEPS,
    MixtureRun,
    Proof,
    prove,
    run_mixtures,
    texts_in,
)
from dataporter.tools.demo.show import progress_of, working_directory
from dataporter.tools.demo.steps import Step

__all__ = ["show_mixture"]


def show_mixture(*, keep: Path | None) -> bool:
    """Run the demo and print its tables.

    Args:
        keep: a new or empty directory for logs and checkpoints; None: discard them.

    Returns:
        Whether each source was consumed as the beginning of its order, and all losses before
        the change are those of an uninterrupted run.

    Raises:
        DemoError: the demo itself failed.
    """
    with working_directory(keep) as directory:
        data, texts = texts_in(directory)
        with progress_of("training, killing, resuming", 2 * STEPS) as on_progress:
            run = run_mixtures(LIVES, directory, data, on_progress)
    proof = prove(run, texts)
    console = Console(highlight=False)
    console.print(_lives(run))
    for line in run.lives[-1].said:
        console.print(f'Its resume said: "{line}"', markup=False)
    console.print(_sources(run, proof))
    same, compared = proof.losses
    console.print(
        f"Steps before the change whose bytes and loss equal the uninterrupted run's: {same} of "
        f"{compared}, with those that the kills undid."
    )
    for fault in proof.faults:
        console.print(fault, markup=False)
    console.print(
        "[red]NOT exact: see above.[/]"
        if proof.faults
        else "[green]Exact: of each source the run has had the beginning of its order; nothing "
        "lost, nothing twice.[/]"
    )
    return not proof.faults


def _lives(run: MixtureRun) -> Table:
    table = Table(title="A tiny GPT, killed twice, resumed with another mixture")
    for column in ("", "ranks", "mixture", "first step", "killed after", "steps kept"):
        table.add_column(column, justify="left" if column in ("", "mixture") else "right")
    for number, lived in enumerate(run.lives, start=1):
        life = lived.life
        mixture = ", ".join(f"{name} {weight:.0%}" for name, weight in life.weights.items())
        first, last = (_named(lived.steps[place : place + 1 or None]) for place in (0, -1))
        killed = "not killed" if life.kill_after is None else last
        table.add_row(f"run {number}", str(life.ranks), mixture, first, killed, str(lived.kept))
    return table


def _sources(run: MixtureRun, proof: Proof) -> Table:
    table = Table(title="What the model was trained on")
    table.add_column("source")
    for column in ("share before", "share after", "samples", "passes", "in its own order"):
        table.add_column(column, justify="right")
    before = sum(source.before for source in proof.sources)
    after = sum(source.after for source in proof.sources)
    first, last = run.lives[0].life.weights, run.lives[-1].life.weights
    for source in proof.sources:
        count = source.before + source.after
        table.add_row(
            source.name,
            _share(source.before / max(1, before), first.get(source.name)),
            _share(source.after / max(1, after), last.get(source.name)),
            str(count),
            f"{source.passes:.2f}",
            f"{source.in_order} of {count}",
        )
    table.caption = f"before and after step {proof.change}; in brackets the weight"
    return table


def _share(share: float, weight: float | None) -> str:
    return "-" if weight is None else f"{share:.1%} ({weight:.0%})"


def _named(steps: tuple[tuple[Step, ...], ...]) -> str:
    return f"step {steps[0][0].step}" if steps else "nothing"
