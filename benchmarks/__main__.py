"""Runs every benchmark and writes `benchmarks/results.md`, with a description of the machine.

Each section is written as soon as it is measured. The first, `summary`, is the table that the
README shows; it is written there as well. `--only NAME ...` runs just these and replaces their
sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

from rich.console import Console

from benchmarks import (
    conversion,
    disk,
    handover,
    huggingface,
    mixture_streams,
    mixtures,
    narrow_batches,
    orders,
    padded_rows,
    per_sample,
    resume,
    scale,
    shared_objects,
    state,
    streams,
    summary,
    throughput,
    weighted,
    workers,
    wrapped_streams,
)
from benchmarks.command import parser_of
from benchmarks.machine import describe
from benchmarks.readme import README
from benchmarks.record import RESULTS, kept, write
from benchmarks.tables import Table, show

BENCHMARKS = (
    summary,
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
    padded_rows,
    mixtures,
    orders,
    weighted,
    disk,
    streams,
    wrapped_streams,
    mixture_streams,
)


def main() -> None:
    named = {benchmark.__name__.rpartition(".")[2]: benchmark for benchmark in BENCHMARKS}
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=named, metavar="NAME", help=", ".join(named))
    arguments = parser.parse_args()
    console = Console()
    facts = "".join(f"- {name}: {fact}\n" for name, fact in describe().items())

    def measured() -> Iterator[Table]:
        for name, benchmark in named.items():
            if arguments.only is None or name in arguments.only:
                begin = perf_counter()
                table = benchmark.measure(arguments.quick)
                show(table, console)
                console.print(f"{name} took {perf_counter() - begin:.0f} s\n", style="dim")
                yield table

    if arguments.quick:
        list(measured())
        console.print("Quick results are not kept: benchmarks/results.md is unchanged.")
        return
    tables = kept(measured(), facts)
    if arguments.only is None:
        write(tables, facts)
    console.print(f"Written: {RESULTS.name}, {README.name}")


if __name__ == "__main__":
    main()
