"""Each section of benchmarks/results.md is written before the next one is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks import readme, record
from benchmarks.readme import BEGIN, END, SUMMARY, block, with_figures
from benchmarks.tables import Table, markdown

FACTS = "- date: today\n"
SEPARATELY = f"\nMeasured separately:\n\n{FACTS}"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results.md")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    readme.README.write_text(f"# Title\n\n{BEGIN}\n{END}\n")


def table(title: str, figure: str) -> Table:
    return Table(title, ("", "ours"), (("a row", figure),), (), (f"The note of {figure}.",))


OLD = (table(SUMMARY, "1"), table("First", "2"), table("Second", "3"), table("Third", "4"))
NEW = (table(SUMMARY, "5"), table("First", "6"), table("Second", "7"), table("Third", "8"))


def shows(results: str) -> bool:
    text = readme.README.read_text()
    return record.RESULTS.read_text() == results and with_figures(text, results) == text


def test_a_benchmark_that_fails_loses_nothing_of_those_before_it() -> None:
    record.write(OLD, "- date: last year\n")
    head = record.RESULTS.read_text().partition("\n## ")[0]

    def measured() -> Iterator[Table]:
        yield NEW[0]
        yield NEW[2]
        raise TypeError("an argument that nobody takes")

    with pytest.raises(TypeError, match="that nobody takes"):
        record.kept(measured(), FACTS)
    sections = [
        markdown(NEW[0]) + SEPARATELY,
        markdown(OLD[1]),
        markdown(NEW[2]) + SEPARATELY,
        markdown(OLD[3]),
    ]
    assert shows(f"{head}\n" + "\n".join(sections))
    assert block(record.RESULTS.read_text()) in readme.README.read_text()


def test_the_results_of_a_whole_run_share_the_facts_of_their_head() -> None:
    record.write(OLD, "- date: last year\n")
    record.write(record.kept(NEW, FACTS), FACTS)
    assert shows(record.HEAD + FACTS + "\n" + "\n".join(map(markdown, NEW)))


def test_a_title_that_the_results_lack_is_added_at_the_end_and_a_summary_at_the_start() -> None:
    added = record.kept((NEW[0], NEW[2]), FACTS)
    assert list(added) == [NEW[0], NEW[2]]
    written = [markdown(one) + SEPARATELY for one in added]
    assert shows(record.HEAD + "\n".join(written))
    record.RESULTS.write_text(record.HEAD + written[1])
    record.kept(NEW[:1], FACTS)
    assert shows(record.HEAD + "\n".join(written))
