"""The command `dataporter bench`: builds the loader, measures it and prints the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console

from dataporter.errors import ConfigurationError
from dataporter.tools.bench.measure import measure
from dataporter.tools.target import argument, load_target

__all__ = ["show"]


def show(
    target: str,
    *,
    seconds: float,
    workers: str | None,
    step_ms: float,
    arguments: Sequence[str],
    as_json: bool,
) -> None:
    """Measure a loader and print the report.

    Raises:
        DataPorterError: there is no such loader, or an argument is wrong.
        Exception: whatever the dataset raises.
    """
    numbers = _numbers(workers)
    loader = load_target(target, dict(map(argument, arguments)))
    progress = Console(stderr=True)
    status = progress.status(f"measuring for about {seconds:g} s") if progress.is_terminal else None
    with status or nullcontext():
        report = measure(loader, seconds=seconds, workers=numbers, step=step_ms / 1000)
    if as_json:
        # Not with the console, which would wrap the lines.
        print(json.dumps(report.to_dict(), indent=2))  # noqa: T201
    else:
        report.show(Console(highlight=False))


def _numbers(text: str | None) -> list[int]:
    if text is None:
        return []
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ConfigurationError(f"--workers {text}: expected whole numbers, such as 0,1,2,4")
    return sorted({int(number) for number in numbers})
