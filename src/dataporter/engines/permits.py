"""Permits: the requests that a worker may begin, some of which can be withdrawn before it does.

A worker receives requests ahead of time, so that it never waits for the next. Where another worker
has nothing left to do, that one should read them; but each must be read once. So there is a permit
for each request, a byte in a pipe, which the system gives to one process only: the worker takes
one before it begins a request, or the training process takes it before it withdraws the last one.
"""

from __future__ import annotations

import os
from multiprocessing import Pipe

__all__ = ["Permits"]


class Permits:
    """The permits of one worker, for both processes. Can be sent only to a process that starts."""

    def __init__(self) -> None:
        self._taken, self._given = Pipe(duplex=False)
        os.set_blocking(self._taken.fileno(), False)

    def give(self) -> None:
        """Add a permit. Comes before the message that holds the request."""
        os.write(self._given.fileno(), b".")

    def take(self) -> bool:
        """Take a permit, if there is one."""
        try:
            return bool(os.read(self._taken.fileno(), 1))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Close this process's copy."""
        self._taken.close()
        self._given.close()
