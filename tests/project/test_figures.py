"""README's figures are those of benchmarks/results.md, and README speaks of no missed goal."""

from __future__ import annotations

import re

import pytest
from benchmarks.readme import BEGIN, END, README, SUMMARY, block, with_figures
from benchmarks.tables import Goal, Table, markdown

RESULTS = README.parent / "benchmarks" / "results.md"


def test_the_figures_of_the_readme_are_those_of_the_results() -> None:
    readme = README.read_text()
    assert with_figures(readme, RESULTS.read_text()) == readme


def test_the_readme_shows_one_table_of_figures_of_six_rows() -> None:
    speed = README.read_text().partition("## Speed\n")[2].partition("\n## ")[0]
    outside = speed.replace(speed.partition(BEGIN)[2].partition(END)[0], "")
    assert "|" not in outside
    assert not re.search(r"\d{2}", outside), "figures are only between the markers"
    rows = [line for line in speed.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6
    assert {row.count(" | ") for row in rows} == {4}


def test_the_readme_speaks_of_no_missed_goal() -> None:
    assert not re.search(r"our goal|missed", README.read_text(), re.IGNORECASE)


def test_new_results_replace_the_figures_and_nothing_else() -> None:
    table = Table(
        SUMMARY, ("", "ours"), (("a row", "1"),), (), ("The first note.", "The second note.")
    )
    other = Table("Another", ("", "ours"), (("x", "2"),), (Goal("3", "2", reached=False),))
    results = f"# Results\n\n{markdown(table)}\n{markdown(other)}"
    shown = "|  | ours |\n| --- | ---: |\n| a row | 1 |\n\nThe first note.\n"
    assert block(results) == shown
    before = f"# Title\n\ntext | text\n\n{BEGIN}\n\n| old |\n\n{END}\n\nmore\n"
    after = f"# Title\n\ntext | text\n\n{BEGIN}\n\n{shown}\n{END}\n\nmore\n"
    assert with_figures(before, results) == after
    assert with_figures(after, results) == after


@pytest.mark.parametrize("readme", ["", BEGIN, f"{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_a_readme_without_markers_is_refused(readme: str) -> None:
    results = markdown(Table(SUMMARY, ("",), (("a row",),), (), ("A note.",)))
    with pytest.raises(ValueError, match="lacks a marker"):
        with_figures(readme, results)


def test_results_without_a_summary_are_refused() -> None:
    with pytest.raises(ValueError, match="--only summary"):
        block("# Results\n")
