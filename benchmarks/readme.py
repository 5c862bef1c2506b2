"""README's figures: the summary in results.md, copied between two markers and by nobody's hand."""

from __future__ import annotations

from pathlib import Path

__all__ = ["README", "SUMMARY", "block", "refresh", "with_figures"]

README = Path(__file__).parents[1] / "README.md"
# The title of the section in results.md.
SUMMARY = "Summary: each loader in its default setting"
BEGIN = "<!-- figures: `make bench` writes what is between these two lines -->"
END = "<!-- end of the figures -->"


def block(results: str) -> str:
    """The table of the summary in ``results``, and the note below it.

    Raises:
        ValueError: there is no summary.
    """
    _, found, section = results.partition(f"## {SUMMARY}\n\n")
    if not found:
        raise ValueError(f"no section '## {SUMMARY}': run python -m benchmarks --only summary")
    table, note, *_ = section.split("\n\n")
    return f"{table}\n\n{note.strip()}\n"


def with_figures(readme: str, results: str) -> str:
    """The README with the figures of ``results`` between its markers.

    Raises:
        ValueError: a marker, or the summary, is missing.
    """
    before, begins, rest = readme.partition(BEGIN + "\n")
    _, ends, after = rest.partition(END)
    if not (begins and ends):
        raise ValueError(f"README.md lacks a marker: expected {BEGIN!r}, later {END!r}")
    return f"{before}{BEGIN}\n\n{block(results)}\n{END}{after}"


def refresh(results: str) -> None:
    """Write the figures of ``results`` into the README."""
    README.write_text(with_figures(README.read_text(), results))
