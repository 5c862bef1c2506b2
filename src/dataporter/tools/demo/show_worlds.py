"""The distributed demo from end to end: kill worlds, judge what they saw, print the proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dataporter.tools.demo.show import digits_in, progress_of, working_directory
from dataporter.tools.demo.worlds import (
    Batch,
    WorldRun,
    carry_out_worlds,
    global_batch_size_for,
    parsed_worlds,
)

__all__ = ["show_worlds"]

_FAULTS_SHOWN = 5


def show_worlds(text: str, *, epochs: int, keep: Path | None) -> bool:
    """Carry the demo out and print its table.

    Args:
        text: numbers of ranks, such as ``"4,2"``.
        epochs: how many epochs the training has.
        keep: a new or empty directory for logs and checkpoints; None: they are thrown away.

    Returns:
        Whether the lives together saw exactly what one rank left alone did.

    Raises:
        DemoError: the demo could not be carried out.
    """
    worlds = parsed_worlds(text)
    size = global_batch_size_for(worlds)
    with working_directory(keep) as directory:
        data, length = digits_in(directory)
        steps = 2 * epochs * ceil(length / size)
        with progress_of("training, killing, resuming", steps) as on_progress:
            run = carry_out_worlds(worlds, directory, data, length, epochs, on_progress)
    proof = prove(run, length, epochs)
    console = Console(highlight=False)
    console.print(_table(run, proof, length, size))
    for fault in proof.faults[:_FAULTS_SHOWN]:
        console.print(fault)
    console.print(
        "[red]NOT exact: see above.[/]"
        if proof.faults
        else "[green]Exact: every sample once an epoch, in the global batch and with the pixels "
        "that one rank left alone gave it.[/]"
    )
    return not proof.faults


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of comparing the lives with the training left alone.

    Attributes:
        once: for each epoch, how many samples came exactly once.
        batches: global batches that hold the same set of samples, of how many.
        samples: samples whose augmented pixels are the same, of how many.
        redone: steps that a kill undid and that came again as they were, of how many.
        faults: all that is not as it should be.
    """

    once: tuple[int, ...]
    batches: tuple[int, int]
    samples: tuple[int, int]
    redone: tuple[int, int]
    faults: tuple[str, ...]


def prove(run: WorldRun, length: int, epochs: int) -> Proof:
    """Compare what the lives of a training saw with what it should have been."""
    faults: list[str] = []
    kept = run.batches
    once = []
    for epoch in range(epochs):
        counts: dict[int, int] = {}
        for batch in kept:
            if batch.epoch == epoch:
                for sample, digest in batch.samples.items():
                    counts[sample] = counts.get(sample, 0) + 1 + digest.startswith("twice")
        once.append(sum(count == 1 for count in counts.values()))
        if once[-1] != length or len(counts) != length:
            faults.append(f"epoch {epoch}: {once[-1]} of {length} samples came exactly once")
    expected = {(batch.epoch, batch.step): batch for batch in run.alone}
    found = {(batch.epoch, batch.step): batch for batch in kept}
    if len(found) != len(kept) or list(found) != list(expected):
        faults.append("the steps are not those of the training left alone")
    pairs = [(batch, found[place]) for place, batch in expected.items() if place in found]
    same_sets = [set(one.samples) == set(other.samples) for one, other in pairs]
    faults += [
        f"epoch {one.epoch}, step {one.step}: another set of samples"
        for (one, _), same in zip(pairs, same_sets)
        if not same
    ]
    same_pixels = 0
    for one, other in pairs:
        same = sum(other.samples.get(sample) == digest for sample, digest in one.samples.items())
        same_pixels += same
        if same != len(one.samples):
            faults.append(f"epoch {one.epoch}, step {one.step}: pixels differ")
    undone = [batch for life in run.lives for batch in life.batches[life.kept :]]
    again = sum(found.get((batch.epoch, batch.step)) == batch for batch in undone)
    if again != len(undone):
        faults.append(f"{len(undone) - again} steps came again otherwise than before the kill")
    return Proof(
        tuple(once),
        (sum(same_sets), len(expected)),
        (same_pixels, sum(len(batch.samples) for batch in run.alone)),
        (again, len(undone)),
        tuple(faults),
    )


def _table(run: WorldRun, proof: Proof, length: int, size: int) -> Table:
    table = Table(
        title=f"Killed and resumed in another world: {length} digits, global batches of {size}"
    )
    table.add_column("")
    for number, life in enumerate(run.lives):
        ranks = "1 rank" if life.ranks == 1 else f"{life.ranks} ranks"
        table.add_column(f"life {number + 1}: {ranks}", justify="right")
    is_killed = [number < len(run.lives) - 1 for number in range(len(run.lives))]
    table.add_row("began with", *(_place(life.batches[:1]) for life in run.lives))
    table.add_row(
        "killed after",
        *(
            _place(life.batches[-1:]) if killed else "not killed"
            for life, killed in zip(run.lives, is_killed)
        ),
    )
    table.add_row("steps kept", *(str(life.kept) for life in run.lives), end_section=True)
    rows = (
        *((f"epoch {n}: samples once", (count, length)) for n, count in enumerate(proof.once)),
        ("redone steps equal", proof.redone),
        ("global batches equal", proof.batches),
        ("augmented samples equal", proof.samples),
    )
    blank = [""] * (len(run.lives) - 1)
    for name, (count, of) in rows:
        table.add_row(name, *blank, f"{count} of {of}")
    table.caption = "against the same training left alone on 1 rank; counted over all lives"
    return table


def _place(one: Sequence[Batch]) -> str:
    return f"epoch {one[0].epoch}, step {one[0].step}" if one else "nothing"
