"""Starting: how a worker process receives its arguments, and what it must import first."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

__all__ = ["Parcel", "preload", "signals_held"]

Content = TypeVar("Content")

# Importing torch takes longer than all else that a worker does before its first batch.
_PRELOADED = "dataporter"


class Parcel(Generic[Content]):
    """The arguments of a worker process, which it opens itself.

    A forked worker has them as they are. Others receive them pickled apart from the process's own
    arguments, so that what unpickling raises is raised in :meth:`opened`, where the worker can
    report it, and not before the worker's first line.
    """

    def __init__(self, content: Content) -> None:
        self._content = content

    def opened(self) -> Content:
        """The arguments.

        Raises:
            Exception: whatever unpickling raises.
        """
        return self._content

    def __reduce__(self) -> tuple[Any, ...]:
        # As multiprocessing pickles them, which locks and shared tensors need.
        return _Sealed, (bytes(ForkingPickler.dumps(self._content)),)


class _Sealed:
    def __init__(self, pickled: bytes) -> None:
        self._pickled = pickled

    def opened(self) -> Any:
        pickled, self._pickled = self._pickled, b""
        return pickle.loads(pickled)


def preload(context: Any) -> None:
    """Let the server that forks workers import this package, unless the user has chosen imports.

    This has no effect on a server that runs already. What the user has chosen is not published.
    """
    if context.get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver  # which Windows lacks

    if getattr(forkserver._forkserver, "_preload_modules", None) == ["__main__"]:
        context.set_forkserver_preload(["__main__", _PRELOADED])


@contextmanager
def signals_held() -> Iterator[frozenset[int]]:
    """Block the signals that the training handles while a worker starts.

    The worker unblocks them once it has set its own handlers, and this process receives them
    afterwards. Yields the signals that were blocked before.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield frozenset()
        return
    handled = {number for number in signal.valid_signals() if callable(signal.getsignal(number))}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *handled})
    try:
        yield frozenset(map(int, before))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
