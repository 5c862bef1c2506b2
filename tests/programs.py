"""Programs that run in processes forked off a server which has imported torch: see conftest.py.

A new interpreter takes seconds to import torch. A test that only needs another process, without the
memory of this one, starts it here.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, BinaryIO

import torch

_CONTEXT = multiprocessing.get_context("forkserver")


class Program:
    """``target(*arguments)`` in a process whose standard streams are pipes, as with Popen."""

    def __init__(self, target: Callable[..., object], *arguments: Any) -> None:
        its_input, our_input = _CONTEXT.Pipe(duplex=False)
        our_output, its_output = _CONTEXT.Pipe(duplex=False)
        our_errors, its_errors = _CONTEXT.Pipe(duplex=False)
        theirs = (its_input, its_output, its_errors)
        self._process = _CONTEXT.Process(target=_run, args=(theirs, target, arguments))
        self._process.start()
        for end in theirs:
            end.close()
        self.stdin = _file(our_input, "wb")
        self.stdout = _file(our_output, "rb")
        self.stderr = _file(our_errors, "rb")

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the program does not end"
        return self._process.exitcode

    def communicate(self, given: bytes = b"", timeout: float = 60) -> tuple[bytes, bytes]:
        """Its output and its errors, once it has ended; they have to fit into pipes (64 KB)."""
        with self.stdin, self.stdout, self.stderr:
            self.stdin.write(given)
            self.stdin.close()
            self.wait(timeout)
            return self.stdout.read(), self.stderr.read()


def _file(end: Connection, mode: str) -> BinaryIO:
    with end:
        return os.fdopen(os.dup(end.fileno()), mode)  # type: ignore[return-value]


def _run(ends: tuple[Connection, ...], target: Callable[..., object], arguments: Any) -> None:
    for number, end in enumerate(ends):
        os.dup2(end.fileno(), number)
        end.close()
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    torch.set_num_threads(1)  # so that it may fork
    # Otherwise a separate server would start the workers, and would have to import torch.
    multiprocessing.set_start_method("fork", force=True)
    target(*arguments)
