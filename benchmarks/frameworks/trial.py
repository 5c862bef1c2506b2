"""A trial: an uninterrupted training, one that is killed and resumed, and their difference."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.frameworks.journal import Entry, read_journals

__all__ = [
    "TrainingFailedError",
    "attempt",
    "difference",
    "samples_of_epochs",
    "uninterrupted",
]


class TrainingFailedError(RuntimeError):
    """A training ended in an unexpected way; the message shows its last output.

    Attributes:
        end: how it ended, in a few words.
        log: its whole output.
    """

    def __init__(self, command: str, end: str, log: Path) -> None:
        printed = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        super().__init__(f"{command}\n{end}, after printing:\n{printed}")
        self.end, self.log = end, log


def attempt(
    program: str,
    home: Path,
    number: int,
    *arguments: str,
    kill_at: int | None = None,
    seconds: float = 240,
    launcher: Sequence[str] = (),
) -> list[Entry]:
    """Run a training in a directory, and return its journal.

    Args:
        program: a module of this package, run as ``python -m``. It takes ``--home DIR``,
            ``--attempt N`` and ``--kill-at STEP``, and after the first attempt resumes from the
            files in ``home``.
        number: of the attempt, from 0.
        *arguments: passed to the program.
        kill_at: the program sends itself SIGKILL after this step's entry; the rest of its process
            group is killed as well.
        launcher: arguments between ``python`` and ``-m``, such as ``torchrun``'s module and
            options.

    Raises:
        TrainingFailedError: the training ended in an unexpected way.
    """
    command = [sys.executable, *launcher, "-m", f"benchmarks.frameworks.{program}"]
    command += ["--home", str(home), "--attempt", str(number), *arguments]
    if kill_at is not None:
        command += ["--kill-at", str(kill_at)]
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"attempt-{number}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _kill_all(process)
    if status is None or (status == 0) == (kill_at is not None):
        end = f"ended with {status}" if status is not None else f"did not end in {seconds:.0f} s"
        raise TrainingFailedError(" ".join(command), end, log)
    return read_journals(home, number)


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all its descendants, which launchers and Ray start in other groups."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def uninterrupted(
    program: str,
    homes: Path,
    *arguments: str,
    seconds: float = 240,
    launcher: Sequence[str] = (),
) -> list[Entry]:
    """The journal of an uninterrupted training, which runs only once for the same arguments.

    Several processes may call this at the same time.

    Args:
        program, *arguments, seconds, launcher: as for :func:`attempt`.
        homes: the parent of such trainings' directories.
    """
    homes.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr((program, arguments, list(launcher))).encode()).hexdigest()[:8]
    home = homes / f"{program}-{key}"
    finished = home / "finished"
    with home.with_suffix(".lock").open("w") as lock:
        # Other processes wait here for the training.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            attempt(program, home, 0, *arguments, seconds=seconds, launcher=launcher)
            finished.touch()
    return read_journals(home, 0)


def difference(alone: Iterable[Entry], resumed: Sequence[Entry]) -> str | None:
    """Compare a resumed training with an uninterrupted one, from the resumed one's first step on.

    Compares each rank's ids, bytes and losses, step by step, to the end. Both have the same world.

    Returns:
        The worst difference, in a few words; None if there is none.
    """
    if not resumed:
        return "no steps"
    first = min(entry.step for entry in resumed)
    expected = {(entry.step, entry.rank): entry for entry in alone if entry.step >= first}
    found = {(entry.step, entry.rank): entry for entry in resumed}
    if len(found) != len(resumed):
        return "steps counted twice"
    wanted_ids = Counter(index for entry in expected.values() for index in entry.ids)
    found_ids = Counter(index for entry in resumed for index in entry.ids)
    missing, extra = (wanted_ids - found_ids).total(), (found_ids - wanted_ids).total()
    if missing or extra:
        return f"{missing} samples lost, {extra} repeated"
    if expected.keys() != found.keys():
        return "different number of steps"
    for key, entry in expected.items():
        if entry.ids != found[key].ids:
            return "different order"
    for key, entry in expected.items():
        if entry.epoch != found[key].epoch:
            return f"epoch {found[key].epoch} instead of {entry.epoch}"
        if entry.digest != found[key].digest:
            return "different augmentations"
        if entry.loss != found[key].loss:
            return "different losses"
    return None


def samples_of_epochs(entries: Iterable[Entry]) -> dict[int, Counter[int]]:
    """How often each sample appeared in each epoch, over all ranks."""
    counted: dict[int, Counter[int]] = {}
    for entry in entries:
        counted.setdefault(entry.epoch, Counter()).update(entry.ids)
    return counted
