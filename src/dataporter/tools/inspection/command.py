"""The command `dataporter inspect`: prints the report and returns the exit code."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from dataporter.tools.inspection.checkpoints import inspect_checkpoint

__all__ = ["show"]


def show(path: Path, *, ranks: int, indices: int, check: bool, as_json: bool) -> tuple[int, str]:
    """Inspect a checkpoint and print the report.

    Returns:
        The exit code and a line for standard error, empty for 0. The code is 0 if there is a state
        that can be loaded, 1 if there is none, and 2 if no state can be read.

    Raises:
        DataPorterError: there is no checkpoint, or it cannot be read.
    """
    report = inspect_checkpoint(path, ranks=ranks, indices=indices, check=check)
    if as_json:
        # Not with the console, which would wrap the lines. A damaged state may hold any object.
        print(json.dumps(report.to_dict(), indent=2, default=str))  # noqa: T201
    else:
        report.show(Console(highlight=False))
    if report.states:
        return 0, ""
    if report.faults:
        return 2, f"{path} holds no readable state of a loader: {report.faults[0]}"
    if any(file.converters for file in report.files):
        return 0, ""
    return 1, (
        f"{path} holds no state of a loader: save loader.state_dict() in the checkpoint, or give "
        "the path of the file that has it"
    )
