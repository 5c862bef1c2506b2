"""The journal of a training: the batch of each step, recorded before the next one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Entry", "Journal", "read_journals"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One batch of one rank.

    Attributes:
        step: number of earlier batches, over all epochs, as the framework counts.
        digest: of the batch's bytes.
        loss: of the step, as ``float.hex()``; None if the framework does not show it.
    """

    step: int
    epoch: int
    rank: int
    ids: tuple[int, ...]
    digest: str
    loss: str | None = None


class Journal:
    """Writes the entries of one rank of one attempt, and can kill its own process.

    Args:
        home: the directory of the training; each attempt of each rank has its own file there.
        attempt: number of earlier starts of the training.
        kill_at: the step whose entry SIGKILL follows, in mid-step for the framework.
    """

    def __init__(self, home: Path, attempt: int, rank: int = 0, kill_at: int | None = None) -> None:
        self._rank, self._kill_at = rank, kill_at
        home.mkdir(parents=True, exist_ok=True)
        self._file = (home / f"attempt-{attempt}-rank-{rank}.jsonl").open("a")

    def write(self, step: int, epoch: int, batch: dict[str, Any], loss: Any = None) -> None:
        """Record one batch; if this is the step ``kill_at``, kill the process."""
        digest = hashlib.sha256()
        for name in sorted(batch):
            value = torch.as_tensor(batch[name]).detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.numpy().tobytes())
        shown = None if loss is None else float(loss).hex()
        ids = tuple(int(index) for index in batch["id"])
        entry = Entry(step, epoch, self._rank, ids, digest.hexdigest(), shown)
        self._file.write(json.dumps(asdict(entry)) + "\n")
        self._file.flush()
        if step == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def read_journals(home: Path, attempt: int) -> list[Entry]:
    """All entries that the ranks of one attempt have written, by step and rank."""
    entries = []
    for file in sorted(home.glob(f"attempt-{attempt}-rank-*.jsonl")):
        for line in file.read_text().splitlines():
            fields = json.loads(line)
            entries.append(Entry(**{**fields, "ids": tuple(fields["ids"])}))
    return sorted(entries, key=lambda entry: (entry.step, entry.rank))
