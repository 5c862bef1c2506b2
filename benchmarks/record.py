"""results.md, in which each section is written as soon as it is measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.readme import SUMMARY, refresh
from benchmarks.tables import Table, markdown

__all__ = ["RESULTS", "kept", "write"]

HEAD = "# Results\n\nWritten by `make bench` (`python -m benchmarks`).\n\n"
RESULTS = Path(__file__).parent / "results.md"


def kept(tables: Iterable[Table], facts: str) -> list[Table]:
    """The tables, each written with the machine's facts before the next one is measured.

    A benchmark that fails thus loses nothing of those before it.
    """
    written = []
    text = RESULTS.read_text() if RESULTS.exists() else HEAD
    for table in tables:
        text = _replaced(text, f"{markdown(table)}\nMeasured separately:\n\n{facts}")
        _write(text)
        written.append(table)
    return written


def write(tables: Iterable[Table], facts: str) -> None:
    """Write these tables and no others, measured one after the other: the facts are the head's."""
    _write(HEAD + facts + "\n" + "\n".join(map(markdown, tables)))


def _write(results: str) -> None:
    RESULTS.write_text(results)
    # Also where another section was replaced: the README never shows anything but the results.
    refresh(results)


def _replaced(text: str, section: str) -> str:
    """The results, with this section in place of that with the same title, or at the end.

    The summary is the first.
    """
    head, *others = text.split("\n## ")
    by_title = {one.partition("\n")[0]: one.rstrip() for one in others}
    section = section.removeprefix("## ")
    by_title[section.partition("\n")[0]] = section.rstrip()
    in_order = sorted(by_title, key=lambda title: title != SUMMARY)  # the rest as it was
    return "\n\n## ".join([head.rstrip(), *(by_title[title] for title in in_order)]) + "\n"
