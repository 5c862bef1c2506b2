"""The command line that every benchmark has: `--quick` for a look, without it for the record."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from benchmarks.tables import Table, show

__all__ = ["asked_for_quick", "run"]


def asked_for_quick(description: str | None) -> bool:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    return bool(parser.parse_args().quick)


def run(measure: Callable[[bool], Table], description: str | None) -> None:
    show(measure(asked_for_quick(description)), Console())
