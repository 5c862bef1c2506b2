"""Steps: the record that a training process logs of each step, in a log that survives SIGKILL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, TextIO

__all__ = ["Step", "StepLog", "write_step"]


class Step(NamedTuple):
    """One training step.

    Attributes:
        epoch, step: both counted from 0.
        samples: the indices of the batch.
        digest: SHA-256 of the batch's bytes.
        loss: as ``float.hex()``, so that equal text means equal bits.
    """

    epoch: int
    step: int
    samples: tuple[int, ...]
    digest: str
    loss: str

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the step in the whole run."""
        return self.epoch, self.step


def write_step(log: TextIO, step: Step) -> None:
    """Append a step; once this returns, a kill of the process cannot undo it."""
    log.write(json.dumps(step._asdict()) + "\n")
    log.flush()


class StepLog:
    """The log of a process that may still be writing, or was killed while writing.

    Args:
        path: the log file, which need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._steps: list[Step] = []

    def read(self) -> list[Step]:
        """All steps so far, without an unfinished last line."""
        if not self.path.exists():
            return self._steps
        with self.path.open("rb") as log:
            log.seek(self._offset)
            whole_lines = log.read().rpartition(b"\n")[0]
        if whole_lines:
            self._offset += len(whole_lines) + 1
            self._steps += map(_parse, whole_lines.split(b"\n"))
        return self._steps


def _parse(line: bytes) -> Step:
    fields = json.loads(line)
    return Step(**{**fields, "samples": tuple(fields["samples"])})
