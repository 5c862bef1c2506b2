"""Kills training runs in each framework, with each loader, and records what the resumed runs do.

Writes `benchmarks/frameworks.md`. `--only NAME ...` tries just these frameworks and replaces their
rows.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from benchmarks.frameworks.cases import CASES, Case, verdict
from benchmarks.frameworks.subject import LOADERS
from benchmarks.frameworks.trial import TrainingFailedError
from benchmarks.machine import describe
from benchmarks.tables import Table, markdown, show

RESULTS = Path(__file__).parent.parent / "frameworks.md"
HEAD = """# Exactness in each framework after a kill

Written by `python -m benchmarks.frameworks`.

"""
QUESTION = "A training run killed with SIGKILL and resumed from the framework's own checkpoint"
COLUMNS = ("framework", "case", "DataPorter", "torch DataLoader", "torchdata StatefulDataLoader")
NOTES = (
    "Each resumed run is compared with an uninterrupted one, step by step on each rank, from the "
    "resumed run's first step to the last step of three epochs: sample ids, batch bytes, losses. "
    '"exact": nothing differs. '
    "Otherwise the first that differs of: samples lost or repeated, their order, the epoch number, "
    "the augmentation, the losses. The data are 90 digits with noise drawn from torch's generator.",
    "The date and system are those of the last run; with `--only`, the other frameworks' rows are "
    "kept from earlier runs.",
)
# Frameworks whose package has a different name.
PACKAGES = {"by hand": "torch", "Fabric": "lightning", "Ray Train": "ray"}
# The last line of a traceback, also of a rank or a Ray worker; not the launcher's summary.
EXCEPTION = (
    r"^(?:\[rank\d+\]: *|.*pid=\d+\)\S* *)?((?!\S*ChildFailed)[\w.]*(?:Error|Exception): .+)$"
)
FACTS = ("date", "system", "Python", "libraries")


def main() -> None:
    frameworks = list(dict.fromkeys(case.framework for case in CASES))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=frameworks,
        default=frameworks,
        metavar="NAME",
        help=f"{frameworks}",
    )
    only = parser.parse_args().only
    console = Console()
    packages = ["dataporter", "torch", "torchdata", *map(package_of, frameworks)]
    facts = describe([*dict.fromkeys(packages)])
    rows = []
    with TemporaryDirectory(prefix="frameworks-") as home:
        for case in CASES:
            if case.framework in only:
                found = [outcome(case, loader, Path(home)) for loader in LOADERS]
                label = f"{label_of(case.framework)} {version_of(case.framework)}"
                rows.append((label, case.what, *found))
                console.print(" | ".join(rows[-1]), markup=False, soft_wrap=True)
    if RESULTS.exists():
        rows += kept(RESULTS.read_text(), set(frameworks) - set(only))
    rows.sort(key=lambda row: index_of(row[0], frameworks))
    table = Table(QUESTION, COLUMNS, tuple(rows), notes=NOTES)
    show(table, console)
    listed = "".join(f"- {name}: {facts[name]}\n" for name in FACTS)
    RESULTS.write_text(f"{HEAD}{listed}\n{markdown(table)}")
    console.print(f"Written: {RESULTS.name}")


def outcome(case: Case, loader: str, home: Path) -> str:
    """The table's cell for one case with one loader; a failure becomes its cell."""
    try:
        return verdict(case, loader, home) or "exact"
    except TrainingFailedError as error:
        return f"fails: {reason_of(error)}"


def reason_of(error: TrainingFailedError) -> str:
    """The last exception that a failed run has printed; without one, how the run ended."""
    printed = re.findall(EXCEPTION, error.log.read_text(errors="replace"), re.MULTILINE)
    reason = printed[-1].strip() if printed else error.end
    return reason if len(reason) <= 120 else f"{reason[:117]}..."


def package_of(framework: str) -> str:
    return PACKAGES.get(framework, framework.split()[0].lower())


def label_of(framework: str) -> str:
    return "by hand, torch" if framework == "by hand" else framework


def version_of(framework: str) -> str:
    try:
        return version(package_of(framework))
    except PackageNotFoundError:
        return "(not installed)"


def kept(text: str, frameworks: Iterable[str]) -> list[tuple[str, ...]]:
    """The rows of an earlier table that belong to these frameworks."""
    lines = re.findall(r"^\| (.*) \|$", text, re.MULTILINE)
    rows = [tuple(line.split(" | ")) for line in lines]
    return [
        row for row in rows if any(row[0].startswith(f"{label_of(name)} ") for name in frameworks)
    ]


def index_of(label: str, frameworks: list[str]) -> int:
    """The index of the framework that a row's label names."""
    return next(
        index for index, name in enumerate(frameworks) if label.startswith(f"{label_of(name)} ")
    )


if __name__ == "__main__":
    main()
