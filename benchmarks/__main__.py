"""Runs every benchmark and writes `benchmarks/results.md`, with the machine it was measured on."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from benchmarks import (
    conversion,
    disk,
    handover,
    huggingface,
    narrow_batches,
    orders,
    per_sample,
    resume,
    scale,
    shared_objects,
    state,
    streams,
    throughput,
    workers,
)
from benchmarks.command import asked_for_quick
from benchmarks.machine import describe
from benchmarks.tables import markdown, show

RESULTS = Path(__file__).parent / "results.md"
BENCHMARKS = (
    throughput,
    per_sample,
    workers,
    handover,
    resume,
    scale,
    state,
    conversion,
    narrow_batches,
    shared_objects,
    huggingface,
    orders,
    disk,
    streams,
)


def main() -> None:
    quick = asked_for_quick(__doc__)
    console = Console()
    machine = describe()
    sections = []
    for benchmark in BENCHMARKS:
        table = benchmark.measure(quick)
        show(table, console)
        sections.append(markdown(table))
    if quick:
        console.print("A quick look, not kept: benchmarks/results.md is as it was.")
        return
    facts = "".join(f"- {name}: {fact}\n" for name, fact in machine.items())
    RESULTS.write_text(
        "# Results\n\nWritten by `make bench` (`python -m benchmarks`).\n\n"
        + facts
        + "\n"
        + "\n".join(sections)
    )
    console.print(f"Written: {RESULTS.name}")


if __name__ == "__main__":
    main()
