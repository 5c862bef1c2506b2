"""The command line of every benchmark: `--quick` for a quick look, without it for the record."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from benchmarks.tables import Table, show

__all__ = ["parser_of", "run"]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    return parser


def run(measure: Callable[[bool], Table], description: str | None) -> None:
    show(measure(parser_of(description).parse_args().quick), Console())
