"""The distributed demo from end to end: kill worlds, compare their batches, print the proof."""

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
    Chain,
    global_batch_size_for,
    parse_worlds,
    run_worlds,
)

__all__ = ["show_worlds"]

_FAULTS_SHOWN = 5


def show_worlds(text: str, *, epochs: int, keep: Path | None) -> bool:
    """Run the demo and print its table.

    Args:
        text: numbers of ranks, such as ``"4,2"``.
        epochs: number of epochs.
        keep: a new or empty directory for logs and checkpoints; None: discard them.

    Returns:
        Whether the runs together saw exactly what one uninterrupted rank saw.

    Raises:
        DemoError: the demo itself failed.
    """
    worlds = parse_worlds(text)
    size = global_batch_size_for(worlds)
    with working_directory(keep) as directory:
        data, length = digits_in(directory)
        steps = 2 * epochs * ceil(length / size)
        with progress_of("training, killing, resuming", steps) as on_progress:
            chain = run_worlds(worlds, directory, data, length, epochs, on_progress)
    proof = prove(chain, length, epochs)
    console = Console(highlight=False)
    console.print(_table(chain, proof, length, size))
    for fault in proof.faults[:_FAULTS_SHOWN]:
        console.print(fault, markup=False)
    console.print(
        "[red]NOT exact: see above.[/]"
        if proof.faults
        else "[green]Exact: every sample once per epoch, in the same global batch and with the "
        "same pixels as in an uninterrupted run on one rank.[/]"
    )
    return not proof.faults


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of comparing a chain of runs with the uninterrupted one.

    Attributes:
        once: for each epoch, the number of samples seen exactly once.
        batches: the number of global batches with the same set of samples, and of all.
        samples: the number of samples with the same augmented pixels, and of all.
        redone: the number of steps lost in a kill and redone with the same result, and of all.
        faults: everything that differs.
    """

    once: tuple[int, ...]
    batches: tuple[int, int]
    samples: tuple[int, int]
    redone: tuple[int, int]
    faults: tuple[str, ...]


def prove(chain: Chain, length: int, epochs: int) -> Proof:
    """Compare the batches of a chain of runs with those of the uninterrupted run."""
    faults: list[str] = []
    kept = chain.batches
    once = []
    for epoch in range(epochs):
        counts: dict[int, int] = {}
        for batch in kept:
            if batch.epoch == epoch:
                for sample, digest in batch.samples.items():
                    counts[sample] = counts.get(sample, 0) + 1 + digest.startswith("twice")
        once.append(sum(count == 1 for count in counts.values()))
        if once[-1] != length or len(counts) != length:
            faults.append(f"epoch {epoch}: {once[-1]} of {length} samples were seen exactly once")
    expected = {(batch.epoch, batch.step): batch for batch in chain.alone}
    found = {(batch.epoch, batch.step): batch for batch in kept}
    if len(found) != len(kept) or list(found) != list(expected):
        faults.append("the steps are not those of the uninterrupted run")
    pairs = [(batch, found[key]) for key, batch in expected.items() if key in found]
    same_sets = [set(one.samples) == set(other.samples) for one, other in pairs]
    faults += [
        f"epoch {one.epoch}, step {one.step}: a different set of samples"
        for (one, _), same in zip(pairs, same_sets)
        if not same
    ]
    same_pixels = 0
    for one, other in pairs:
        same = sum(other.samples.get(sample) == digest for sample, digest in one.samples.items())
        same_pixels += same
        if same != len(one.samples):
            faults.append(f"epoch {one.epoch}, step {one.step}: pixels differ")
    lost = [batch for run in chain.runs for batch in run.batches[run.kept :]]
    redone = sum(found.get((batch.epoch, batch.step)) == batch for batch in lost)
    if redone != len(lost):
        faults.append(f"{len(lost) - redone} redone steps differ from those before the kill")
    return Proof(
        tuple(once),
        (sum(same_sets), len(expected)),
        (same_pixels, sum(len(batch.samples) for batch in chain.alone)),
        (redone, len(lost)),
        tuple(faults),
    )


def _table(chain: Chain, proof: Proof, length: int, size: int) -> Table:
    table = Table(
        title=f"Killed and resumed in a different world: {length} digits, global batches of {size}"
    )
    table.add_column("")
    runs = chain.runs
    for number, run in enumerate(runs):
        ranks = "1 rank" if run.ranks == 1 else f"{run.ranks} ranks"
        table.add_column(f"run {number + 1}: {ranks}", justify="right")
    is_killed = [number < len(runs) - 1 for number in range(len(runs))]
    table.add_row("started at", *(_named(run.batches[:1]) for run in runs))
    table.add_row(
        "killed after",
        *(
            _named(run.batches[-1:]) if killed else "not killed"
            for run, killed in zip(runs, is_killed)
        ),
    )
    table.add_row("steps kept", *(str(run.kept) for run in runs), end_section=True)
    rows = (
        *((f"epoch {n}: samples once", (count, length)) for n, count in enumerate(proof.once)),
        ("redone steps equal", proof.redone),
        ("global batches equal", proof.batches),
        ("augmented samples equal", proof.samples),
    )
    blank = [""] * (len(runs) - 1)
    for name, (count, total) in rows:
        table.add_row(name, *blank, f"{count} of {total}")
    table.caption = "against an uninterrupted run on 1 rank; counted over all runs"
    return table


def _named(batches: Sequence[Batch]) -> str:
    return f"epoch {batches[0].epoch}, step {batches[0].step}" if batches else "nothing"
