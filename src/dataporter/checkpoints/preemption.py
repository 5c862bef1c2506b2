"""`PreemptionGuard`: a signal to one or more ranks becomes the same last step on all ranks."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dataporter._torch import collective_device
from dataporter.errors import ConfigurationError
from dataporter.ranks.world import find_world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["PreemptionGuard"]

# SLURM is usually configured to send SIGUSR1, which Windows does not have.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
_UNCATCHABLE = {getattr(signal, name) for name in ("SIGKILL", "SIGSTOP") if hasattr(signal, name)}
# Signals that are meant to end a process; others only notify it.
_ENDING = {
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    if hasattr(signal, name)
}
# Room for C's struct sigaction, which has 152 bytes with glibc on 64 bits.
_ACTION_SIZE = 512


class PreemptionGuard:
    """Catches the signals that announce the end of a job, and says when to stop.

    Inside its ``with`` block a signal only sets a flag. Every rank calls :meth:`should_stop` once
    per step; it compares the flags and returns True on all ranks at the same step, whichever rank
    received the signal, so that no rank waits for one that has gone. Then there is time to save:
    further signals change nothing until the block ends and restores the previous handlers.

    Those handlers are not called meanwhile; to run one, send the signal again after the block
    (``signal.raise_signal(guard.received)``). Guards may be nested, and a signal reaches all of
    them. A process that is forked inside the block has the previous handlers of SIGTERM, SIGINT,
    SIGHUP and SIGQUIT, so that it can be terminated; SIGUSR1 and the like, which a cluster sends to
    all processes of a job, have no effect on it.

    Args:
        every: communicate only on every n-th call, with an all-reduce of one integer. On a
            GPU-only group this also waits for the work that is queued on the GPU.
        process_group: the ranks that stop together, as a ``ProcessGroup`` or a one-dimensional
            ``DeviceMesh``; by default all ranks, if ``torch.distributed`` is initialised.
        signals: the signals to catch.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong. On entering the block: this is
            not the main thread, or not a rank of ``process_group``.

    Example:
        >>> with PreemptionGuard() as guard:
        ...     for step in range(100):
        ...         if step == 3:
        ...             signal.raise_signal(signal.SIGTERM)  # as the cluster would
        ...         if guard.should_stop():
        ...             print(f"save after step {step}, because of {guard.received.name}")
        ...             break
        save after step 3, because of SIGTERM
    """

    def __init__(
        self,
        *,
        every: int = 1,
        process_group: ProcessGroup | DeviceMesh | None = None,
        signals: Iterable[int] = _SIGNALS,
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ConfigurationError(f"every={every!r}: expected a whole number of 1 or more")
        self.every = every
        self.process_group = process_group
        self.signals = _checked(signals)
        self._group: ProcessGroup | None = None
        self._replaced: list[_Replaced] = []
        self._calls = self._caught = self._agreed = 0

    def __enter__(self) -> PreemptionGuard:
        if self in _entered:
            raise ConfigurationError(
                "this PreemptionGuard is already in use: create another one for a nested block"
            )
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError(
                "PreemptionGuard in a thread: Python lets only the main thread handle signals; "
                "enter it there and pass it to the thread"
            )
        self._group = _group(self.process_group)
        self._calls = self._caught = self._agreed = 0
        _entered.append(self)
        try:
            for number in self.signals:
                self._replaced.append(_replace_handler(number))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        while self._replaced:
            self._replaced.pop().restore()
        _entered.remove(self)

    def should_stop(self) -> bool:
        """Whether to stop now: True at the same call on every rank, and from then on.

        Every rank must call it equally often; each ``every``-th call waits for the other ranks.

        Raises:
            ConfigurationError: called outside the ``with`` block, where no signal is caught.
        """
        if self not in _entered:
            raise ConfigurationError(
                "should_stop() was called outside its PreemptionGuard's with block, where no "
                "signal is caught: put the training loop inside the block"
            )
        self._calls += 1
        if self._group is None:
            self._agreed = self._caught
        elif not self._agreed and self._calls % self.every == 0:
            greatest = torch.tensor([self._caught], device=collective_device(self._group))
            dist.all_reduce(greatest, dist.ReduceOp.MAX, group=self._group)
            self._agreed = int(greatest.item())
        return self._agreed != 0

    @property
    def received(self) -> signal.Signals | None:
        """The received signal: of this rank, and once ``should_stop()`` is True, of any rank.

        If one rank received several, the first; if several ranks did, the highest number.
        """
        number = self._agreed or self._caught
        return signal.Signals(number) if number else None


# The guards whose blocks are running, outermost first. Only the main thread changes the list.
_entered: list[PreemptionGuard] = []


def _catch(number: int, frame: object) -> None:
    """The handler: only sets flags, because nothing else is safe at any point of a program."""
    for guard in _entered:
        if number in guard.signals:
            guard._caught = guard._caught or number


@dataclass(frozen=True, slots=True)
class _Replaced:
    """The previous handler of a signal.

    Attributes:
        number: the signal.
        handler: Python's handler; None for one that was set before Python started.
        action: C's ``struct sigaction``, because libraries such as ``faulthandler`` set handlers
            without Python's ``signal``; None on Windows.
    """

    number: int
    handler: Any
    action: Any

    def restore(self) -> None:
        signal.signal(self.number, signal.SIG_DFL if self.handler is None else self.handler)
        if self.action is not None:
            _sigaction()(self.number, self.action, None)


def _replace_handler(number: int) -> _Replaced:
    action = None
    if os.name != "nt":
        action = ctypes.create_string_buffer(_ACTION_SIZE)
        _sigaction()(number, None, action)
    return _Replaced(number, signal.signal(number, _catch), action)


def _sigaction() -> Any:
    return ctypes.CDLL(None).sigaction


class _Fork(threading.local):
    """The signals that the forking thread had blocked before; None if no guard is in use."""

    blocked: set[int] | None = None


_fork = _Fork()


def _before_fork() -> None:
    # A signal that reaches a child before its handlers are restored would set flags there or be
    # lost: in a child, Python discards signals that it has seen but not yet handled.
    if _entered:
        _fork.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _after_fork() -> None:
    if _fork.blocked is not None:
        blocked, _fork.blocked = _fork.blocked, None
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _after_fork_in_child() -> None:
    """Restore the handlers that let other processes end this forked process."""
    for guard in reversed(_entered):
        for replaced in reversed(guard._replaced):
            if replaced.number in _ENDING:
                replaced.restore()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


def _checked(signals: Iterable[int]) -> tuple[signal.Signals, ...]:
    try:
        checked = tuple(dict.fromkeys(signal.Signals(number) for number in signals))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"signals={signals!r}: {error}; expected signals") from error
    if not checked:
        raise ConfigurationError(
            f"signals={signals!r}: expected at least one signal, such as signal.SIGTERM"
        )
    if refused := _UNCATCHABLE.intersection(checked):
        names = ", ".join(sorted(one.name for one in refused))
        raise ConfigurationError(f"signals: {names} cannot be caught; leave it out")
    return checked


def _group(process_group: ProcessGroup | DeviceMesh | None) -> ProcessGroup | None:
    """The group that stops together; None if this is its only rank."""
    _, size, group = find_world(None, None, process_group)
    return group if size > 1 else None
