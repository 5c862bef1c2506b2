"""A trial: a training left alone beside one that is killed and resumed, and what differs."""

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
    "left_alone",
    "samples_of_epochs",
]


class TrainingFailedError(RuntimeError):
    """A training ended otherwise than it should have; says what it printed last.

    Attributes:
        end: how it ended, in a few words.
        log: all that it printed.
    """

    def __init__(self, command: str, end: str, log: Path) -> None:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        super().__init__(f"{command}\n{end}, and said last:\n{said}")
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
    """Start a training, with its directory, and return what it has written down.

    Args:
        program: a module of this package, run as ``python -m``. It takes ``--home DIR``,
            ``--attempt N`` and ``--kill-at STEP``, and resumes by itself from what lies in ``home``
            when the attempt is not the first.
        number: of the attempt, from 0.
        *arguments: handed on to the program.
        kill_at: SIGKILL comes after this step's entry, from the program itself; what is left of its
            process group is killed then as well.
        launcher: what starts the program, such as ``torchrun``'s module and options; it comes
            between ``python`` and ``-m``.

    Raises:
        TrainingFailedError: it ended in another way than it should have.
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
    """Leave nothing of it; a launcher's ranks and Ray's processes are in groups of their own."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def left_alone(
    program: str,
    homes: Path,
    *arguments: str,
    seconds: float = 240,
    launcher: Sequence[str] = (),
) -> list[Entry]:
    """A training that nobody interrupts; run once, and read again for the same arguments.

    Several processes may ask for it at a time.

    Args:
        program, *arguments, seconds, launcher: as for :func:`attempt`.
        homes: where the directories of such trainings are.
    """
    homes.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(repr((program, arguments, list(launcher))).encode()).hexdigest()[:8]
    home = homes / f"{program}-{key}"
    finished = home / "finished"
    with home.with_suffix(".lock").open("w") as lock:
        # Whoever comes meanwhile waits for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not finished.exists():
            attempt(program, home, 0, *arguments, seconds=seconds, launcher=launcher)
            finished.touch()
    return read_journals(home, 0)


def difference(alone: Iterable[Entry], resumed: Sequence[Entry]) -> str | None:
    """What is otherwise in a resumed training than in the one left alone, from its first step on.

    Each rank's ids, bytes and losses are compared, step for step, to the end. The world has to be
    the same.

    Returns:
        In a few words, the worst that was found; None: nothing.
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
    """How often each sample came in each epoch, over all ranks."""
    counted: dict[int, Counter[int]] = {}
    for entry in entries:
        counted.setdefault(entry.epoch, Counter()).update(entry.ids)
    return counted
