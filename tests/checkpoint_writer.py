"""Programs that save checkpoints and come to a bad end: see programs.py."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dataporter.checkpoints import atomic as checkpoint


def content(number: int, salt: int = 0) -> dict[str, Any]:
    """Something of a length that a kill can hit the middle of, and that tells its number."""
    return {"number": number, "salt": salt, "values": torch.full((50_000,), float(number))}


def number_of(loaded: dict[str, Any]) -> int:
    """The number of a checkpoint, all of which is checked to belong to it."""
    number: int = loaded["number"]
    assert torch.equal(loaded["values"], content(number)["values"])
    return number


def killed_often(path: str, writers: int, times: int, seed: int) -> None:
    """Writers that save 1, 2, 3, ... are killed at random; what is left must be whole.

    Prints how many kills have hit the writing of a file.
    """
    rng = random.Random(seed)
    in_the_middle = 0
    for _ in range(times):
        started = [_forked(path) for _ in range(writers)]
        time.sleep(rng.uniform(0, 0.02))
        saved = {}
        for writer, announcements in started:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            saved[writer] = len(announcements.read())
            announcements.close()
        in_the_middle += any(file.suffix == ".unfinished" for file in Path(path).parent.iterdir())
        latest = checkpoint.load_latest(path)
        number = number_of(latest)
        assert number in (saved[latest["salt"]], saved[latest["salt"]] + 1), (number, saved)
        for file in Path(path).parent.glob("*.pt"):
            number_of(torch.load(file))
    print(in_the_middle)


def _forked(path: str) -> tuple[int, BinaryIO]:
    """A process that saves until it is killed, and where it writes a byte for each save."""
    ours, theirs = os.pipe()
    if not (writer := os.fork()):
        for number in count(1):  # until the kill, or until nobody reads
            checkpoint.save_atomically(content(number, os.getpid()), path)
            os.write(theirs, b".")
    os.close(theirs)
    announcements = os.fdopen(ours, "rb")
    announcements.peek(1)  # which waits for the first save
    return writer, announcements


def dies_before(call: str, path: str) -> None:
    """Saves 1, 2 and 3, and is killed before ``os.call()`` in the save of 4."""
    for number in (1, 2, 3):
        checkpoint.save_atomically(content(number), path)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, die)
    checkpoint.save_atomically(content(4), path)


def full(path: str) -> None:
    """Saves 1, and then more than a file may hold."""
    checkpoint.save_atomically(content(1), path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        checkpoint.save_atomically(content(2), path)
    except OSError as error:
        print(type(error).__name__, error.errno)
