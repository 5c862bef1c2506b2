"""Runs every benchmark and writes `benchmarks/results.md`, with a description of the machine.

The first, `summary`, is the table that the README shows; it is written there as well. `--only NAME
...` runs just these and replaces their sections.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

from rich.console import Console

from benchmarks import (
    conversion,
    disk,
    handover,
    huggingface,
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
    workers,
    wrapped_streams,
)
from benchmarks.command import parser_of
from benchmarks.machine import describe
from benchmarks.readme import README, SUMMARY, refresh
from benchmarks.tables import markdown, show

HEAD = "# Results\n\nWritten by `make bench` (`python -m benchmarks`).\n\n"
RESULTS = Path(__file__).parent / "results.md"
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
    orders,
    disk,
    streams,
    wrapped_streams,
)


def main() -> None:
    named = {benchmark.__name__.rpartition(".")[2]: benchmark for benchmark in BENCHMARKS}
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=named, metavar="NAME", help=", ".join(named))
    arguments = parser.parse_args()
    console = Console()
    facts = "".join(f"- {name}: {fact}\n" for name, fact in describe().items())
    sections = []
    for name, benchmark in named.items():
        if arguments.only is None or name in arguments.only:
            begin = perf_counter()
            table = benchmark.measure(arguments.quick)
            show(table, console)
            console.print(f"{name} took {perf_counter() - begin:.0f} s\n", style="dim")
            sections.append(markdown(table))
    if arguments.quick:
        console.print("Quick results are not kept: benchmarks/results.md is unchanged.")
        return
    if arguments.only is None:
        RESULTS.write_text(HEAD + facts + "\n" + "\n".join(sections))
    else:
        separate = "\nMeasured separately:\n\n" + facts
        RESULTS.write_text(_replaced(RESULTS.read_text(), [one + separate for one in sections]))
    # Also where another section was replaced: the README never shows anything but the results.
    refresh(RESULTS.read_text())
    console.print(f"Written: {RESULTS.name}, {README.name}")


def _replaced(text: str, sections: list[str]) -> str:
    """The results, with these sections in place of those with the same title, or at the end.

    The summary is the first.
    """
    head, *kept = text.split("\n## ")
    by_title = {one.partition("\n")[0]: one.rstrip() for one in kept}
    for section in sections:
        section = section.removeprefix("## ")
        by_title[section.partition("\n")[0]] = section.rstrip()
    in_order = sorted(by_title, key=lambda title: title != SUMMARY)  # the rest as it was
    return "\n\n## ".join([head.rstrip(), *(by_title[title] for title in in_order)]) + "\n"


if __name__ == "__main__":
    main()
