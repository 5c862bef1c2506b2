"""The crew: the worker processes of an engine, kept at work, and replaced when they die (C12)."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dataporter.engines.channel import Channel, channels
from dataporter.engines.engine import Usage
from dataporter.engines.packing import unpack
from dataporter.engines.ring import TrainingSlots
from dataporter.engines.spinning import AdaptiveSpin
from dataporter.engines.worker import Answer, Task, WorkerSpec, run
from dataporter.errors import WorkerDiedError, warn
from dataporter.fetch.fetched import Fetched
from dataporter.schedule.request import EngineRequest, Scheduled

__all__ = ["Crew", "Ticket", "describe"]

# A batch more than this is held by the training loop: it is copied out instead of lent, so that
# the worker is never without a slot. A loop holds one batch while it asks for the next, a
# prefetcher to a device another.
_MOST_LEASES = 3
# A batch that kills so many workers would kill the next one as well.
_MOST_DEATHS = 2
# Who ends a job tells all of its processes (torchrun: SIGTERM to the session of each rank), and
# a PreemptionGuard lets the training go on to a last step. A worker that ends so is not at fault.
_TOLD_TO_END = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
_GRACE = 2.0  # s, for a worker to finish what it reads
_LAST_GRACE = 1.0  # s, after SIGTERM
# A worker's end shows at its channel, unless a process that it has started holds that open.
_LOOKS_AT_WORKERS_EVERY = 1.0  # s


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that a worker has, and what came of it.

    Attributes:
        number: tells it from all others of the crew.
        request, delivers: what was asked for, as scheduled.
        worker: which worker was asked.
        answer: what it said, once it did.
        slots: where its batch lies; those of a worker that has died since stay mapped.
        wanted: False once nobody waits for it any more.
        deaths: how many workers have died of it.
        lost: why it will not be answered any more.
    """

    number: int
    request: EngineRequest
    delivers: Any
    worker: int
    answer: Answer | None = None
    slots: TrainingSlots | None = None
    wanted: bool = True
    deaths: int = 0
    lost: WorkerDiedError | None = None


@dataclass(slots=True, eq=False)
class _Member:
    process: Any
    channel: Channel
    slots: TrainingSlots
    asked: dict[int, Ticket] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    lost: WorkerDiedError | None = None


class Crew:
    """Worker processes, each with its channel and its slots.

    Args:
        spec: what each worker is started with.
        context: of ``multiprocessing``: says how processes are started.

    Attributes:
        owner: the id of the process that the workers serve; a fork has a copy of this crew.
        close: ends the workers.
    """

    def __init__(self, spec: WorkerSpec, context: Any) -> None:
        self._spec = spec
        self._context = context
        self.owner = os.getpid()
        self._tickets = 0
        self._selector = _selector()
        self._spin = AdaptiveSpin()
        self._members: list[_Member] = []
        self.close = weakref.finalize(self, _stop, self.owner, self._members, self._selector)
        try:
            for worker in range(spec.num_workers):
                self._members.append(self._started(worker))
        except BaseException:
            self.close()
            raise

    def usage(self) -> Usage:
        """The workers' processes, and the slots that are mapped."""
        return Usage(
            tuple(member.process.pid for member in self._members),
            sum(member.slots.size for member in self._members),
        )

    # ---- asking

    def ask(self, scheduled: Scheduled, worker: int) -> Ticket:
        """Give a request to a worker, which serves its requests one after the other."""
        ticket = Ticket(self._tickets, scheduled.request, scheduled.delivers, worker)
        self._tickets += 1
        self._post(ticket)
        return ticket

    def _post(self, ticket: Ticket) -> None:
        member = self._members[ticket.worker]
        if member.lost is not None:
            ticket.lost = member.lost
            return
        member.asked[ticket.number] = ticket
        reusable, spent = member.slots.returned()
        cancelled, member.cancelled = member.cancelled, []
        task = Task(ticket.number, ticket.request, reusable, spent, cancelled)
        member.channel.post(task.packed())
        if member.channel.has_unsent:
            self._selector.modify(
                member.channel, selectors.EVENT_READ | selectors.EVENT_WRITE, ticket.worker
            )

    # ---- answers

    def wait(self, seconds: float, may_replace: Callable[[], bool]) -> bool:
        """Until something happens: an answer, or the end of a worker; at most so long.

        Args:
            seconds: how long to wait.
            may_replace: says, for each worker that has died, whether another may take its place.
                Where none may, what it was asked for is ``lost``.

        Returns:
            Whether anything did, be it a part of an answer.
        """
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            ready = self._spin.wait(
                lambda: self._selector.select(0) or None,
                partial(self._selector.select, min(left, _LOOKS_AT_WORKERS_EVERY)),
            )
            for key, events in ready:
                if events & selectors.EVENT_WRITE:
                    self._flush(key.data)
                if events & selectors.EVENT_READ:
                    self._read(key.data)
            ended = [
                worker
                for worker, member in enumerate(self._members)
                if member.lost is None
                and (member.channel.ended or (not ready and not member.process.is_alive()))
            ]
            for worker in ended:
                self._read(worker)
                self._replace(worker, may_replace)
            if ready or ended:
                return True
            if not left:
                return False

    def _flush(self, worker: int) -> None:
        channel = self._members[worker].channel
        channel.flush()
        if not channel.has_unsent:
            self._selector.modify(channel, selectors.EVENT_READ, worker)

    def _read(self, worker: int) -> None:
        member = self._members[worker]
        for message, descriptors in member.channel.messages():
            answer: Answer = pickle.loads(message)
            member.slots.unmap(answer.given_up)
            if answer.is_new:
                assert answer.slot is not None
                member.slots.map(answer.slot, descriptors[0])
            ticket = member.asked.pop(answer.ticket, None)
            if ticket is not None:
                ticket.answer, ticket.slots = answer, member.slots
            elif answer.slot is not None:  # the worker had begun it before it was cancelled
                member.slots.leave(answer.slot)
            if ticket is not None and not ticket.wanted:
                self.forget(ticket)

    def result(self, ticket: Ticket) -> Fetched | Exception:
        """What was fetched for an answered ticket, or what its worker raised."""
        answer, slots = ticket.answer, ticket.slots
        assert answer is not None
        assert slots is not None
        if answer.failure is not None:
            return answer.failure.rebuilt()
        if answer.slot is None:
            lease = None
        elif slots.leases < _MOST_LEASES:
            lease = slots.lease(answer.slot, answer.size)
        else:
            lease = slots.copy(answer.slot, answer.size)
        return Fetched(*unpack(answer.packed, lease))

    def forget(self, ticket: Ticket) -> None:
        """Nobody wants this batch any more."""
        ticket.wanted = False
        if ticket.lost is not None:
            return
        if ticket.answer is None:
            member = self._members[ticket.worker]
            # The first is being read, and if its worker dies it will have been of this.
            if ticket.number != next(iter(member.asked)):
                del member.asked[ticket.number]
                member.cancelled.append(ticket.number)
        elif ticket.answer.slot is not None:
            assert ticket.slots is not None
            ticket.slots.leave(ticket.answer.slot)

    # ---- workers

    def _started(self, worker: int) -> _Member:
        ours, theirs = channels()
        # A forked process has copies of these; the last one to close them is noticed, so it must.
        inherited = (
            [ours, *(member.channel for member in self._members)]
            if self._context.get_start_method() == "fork"
            else []
        )
        try:
            with _signals_held() as blocked:
                process = self._context.Process(
                    target=run, args=(self._spec, worker, theirs, inherited, blocked), daemon=True
                )
                process.start()
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return _Member(process, ours, TrainingSlots())

    def _replace(self, worker: int, may_replace: Callable[[], bool]) -> None:
        lost = self._members[worker]
        lost.process.join(_LAST_GRACE)
        if lost.process.exitcode is None:  # its channel broke, and it lives
            lost.process.kill()
            lost.process.join()
        asked = list(lost.asked.values())
        if asked:
            # One after the other, so it was at the first.
            asked[0].deaths += 1
        what = f"worker {worker} {_end(lost.process.exitcode)} while it had {_shown(asked)}"
        if asked and asked[0].deaths >= _MOST_DEATHS:
            lost.lost = WorkerDiedError(
                f"{what}; it is the second one that this batch has killed, so another would not "
                "help: read these samples by hand to see why, or look for the kernel's "
                "out-of-memory killer in its log"
            )
        elif -lost.process.exitcode not in _TOLD_TO_END and not may_replace():
            lost.lost = WorkerDiedError(
                f"{what}; worker_restarts does not allow another one in this epoch"
            )
        self._selector.unregister(lost.channel)
        lost.channel.close()
        if lost.lost is not None:
            # Told in its turn: what other workers have read comes first.
            for ticket in asked:
                ticket.lost = lost.lost
            return
        warn(f"{what}; it is replaced, and nothing is lost", RuntimeWarning)
        self._members[worker] = self._started(worker)
        for ticket in asked:
            if ticket.wanted:
                self._post(ticket)


@contextmanager
def _signals_held() -> Iterator[frozenset[int]]:
    """Keep signals that the training handles from a worker until it has handlers of its own.

    This process hears of them afterwards. Gives the signals that were blocked before.
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


def _stop(owner: int, members: list[_Member], selector: selectors.BaseSelector) -> None:
    selector.close()
    if os.getpid() != owner:  # a fork's copy of the crew: the workers are its siblings
        for member in members:
            member.channel.close()
        return
    for member in members:
        member.channel.end()
    for seconds, act in ((_GRACE, "terminate"), (_LAST_GRACE, "kill")):
        until = time.monotonic() + seconds
        for member in members:
            member.process.join(max(0.0, until - time.monotonic()))
        for member in members:
            if member.process.exitcode is None:
                getattr(member.process, act)()
    for member in members:
        member.process.join()
        member.process.close()
    members.clear()


def _selector() -> selectors.BaseSelector:
    # Unlike epoll it takes no descriptor, and there are few workers.
    return getattr(selectors, "PollSelector", selectors.DefaultSelector)()


def _end(exitcode: int) -> str:
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


def _shown(asked: list[Ticket]) -> str:
    return f"{asked[0].request.described()} to read" if asked else "nothing to read"


def describe(ticket: Ticket) -> str:
    """Which worker has which samples, for people."""
    return f"worker {ticket.worker} has {_shown([ticket])}"
