"""The command `dataporter inspect`: prints the report, and says by its exit code what it found."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from dataporter.tools.inspection.checkpoints import inspect_checkpoint

__all__ = ["show"]


def show(path: Path, *, ranks: int, indices: int, check: bool, as_json: bool) -> tuple[int, str]:
    """Inspect a checkpoint, and print what was found.

    Returns:
        The exit code, 0 where a state was found that can be loaded, 1 where none is there and 2
        where what is there cannot be read; and a line that says so, empty for 0.

    Raises:
        DataPorterError: there is no checkpoint, or it cannot be read.
    """
    report = inspect_checkpoint(path, ranks=ranks, indices=indices, check=check)
    if as_json:
        # Not through the console, which would break the lines. A damaged state may hold anything.
        print(json.dumps(report.to_dict(), indent=2, default=str))  # noqa: T201
    else:
        report.show(Console(highlight=False))
    if report.states:
        return 0, ""
    if report.faults:
        return 2, f"{path} holds no state of a loader that can be read: {report.faults[0]}"
    if any(file.converters for file in report.files):
        return 0, ""
    return 1, (
        f"{path} holds no state of a loader: save loader.state_dict() in the checkpoint, or name "
        "the file that has it"
    )
