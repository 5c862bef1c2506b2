"""The crew: the worker processes of an engine, which are replaced when they die (C12)."""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from dataporter.engines.channel import CAN_SEND_MEMORY, Channel, channels
from dataporter.engines.engine import Usage
from dataporter.engines.member import Member, Ticket, ending, read_by
from dataporter.engines.messages import STARTED, WAKE, Answer, Task
from dataporter.engines.packing import unpack
from dataporter.engines.permits import Permits
from dataporter.engines.ring import TrainingSlots
from dataporter.engines.spinning import AdaptiveSpin
from dataporter.engines.starting import Parcel, preload, signals_held
from dataporter.engines.worker import WorkerSpec, run
from dataporter.errors import ConfigurationError, WorkerDiedError, warn
from dataporter.fetch.fetched import Fetched
from dataporter.schedule.request import Scheduled
from dataporter.shared.memfile import explaining_limit

__all__ = ["Crew"]

# A training loop that holds more batches than this receives copies, so that the worker is never
# without a slot. A loop holds one batch while it asks for the next, a DevicePrefetcher another.
_MOST_LEASES = 3
# A request that has killed this many workers would kill the next one as well.
_MOST_DEATHS = 2
# Schedulers send these to all processes of a job (torchrun sends SIGTERM to the session of each
# rank), while a PreemptionGuard lets the training continue to a last step. So a worker that they
# end is replaced, and not counted.
_JOB_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
# What else fails at its start, a worker reports itself.
_IMPORTS = (
    "it could not import the program, which workers that are started by {!r} do first; its "
    "traceback is above. Begin the program under if __name__ == '__main__':, so that importing it "
    "only defines things"
)
_GRACE = 2.0  # s, for a worker to finish its fetch
_LAST_GRACE = 1.0  # s, after SIGTERM
# A worker's end closes its channel, unless a process that it has started keeps that open.
_CHECKS_WORKERS_EVERY = 1.0  # s


class Crew:
    """Worker processes, each with its channel and its slots.

    Args:
        spec: the arguments of each worker.
        context: the ``multiprocessing`` context that starts processes.

    Attributes:
        owner: the id of the process that the workers serve, since a fork has a copy of this crew.
        close: ends the workers.
        is_observed: a dataset has asked which worker reads it.
    """

    def __init__(self, spec: WorkerSpec, context: Any) -> None:
        self._spec = spec
        self._context = context
        self.owner = os.getpid()
        self.is_observed = False
        self._tickets = 0
        self._selector = _selector()
        self._spin = AdaptiveSpin()
        self._failed_starts = 0  # in a row
        self._members: list[Member] = []
        self.close = weakref.finalize(self, _stop, self.owner, self._members, self._selector)
        preload(context)
        try:
            for worker in range(spec.num_workers):
                self._members.append(self._started(worker))
        except BaseException:
            self.close()
            raise

    def usage(self) -> Usage:
        """The workers' processes, and the size of the slots that are mapped."""
        return Usage(
            tuple(member.process.pid for member in self._members),
            sum(member.slots.size for member in self._members),
        )

    # ---- requests

    def expect(self) -> None:
        """Prepare for a pass that is about to begin: wake the worker that will read first.

        What the workers have sent since the last pass is received now, so that its slots are
        returned with the first requests.
        """
        self._members[self.least_busy()].channel.post_at_once(WAKE)
        self._spin.expect()
        for key, _ in self._selector.select(0):
            self._read(key.data)

    def least_busy(self) -> int:
        """The worker with the fewest requests that are not answered; the first one of several.

        Before any answer, this takes the workers in turns.
        """
        asked = [len(member.asked) for member in self._members]
        return asked.index(min(asked))

    def submit(self, scheduled: Scheduled, worker: int) -> Ticket:
        """Submit a request to a worker, which serves its requests one after the other."""
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
        try:
            message = task.packed()
        except Exception as error:
            raise ConfigurationError(
                f"{ticket.request.described()} cannot be sent to a worker, since an index cannot "
                f"be pickled ({error}): let the sampler yield numbers, strings or tuples of these, "
                "or use num_workers=0"
            ) from error
        if member.permits is not None:
            member.permits.give()
        member.channel.post(message)
        if member.channel.has_unsent:
            self._selector.modify(
                member.channel, selectors.EVENT_READ | selectors.EVENT_WRITE, ticket.worker
            )

    # ---- answers

    def wait(self, seconds: float, may_replace: Callable[[], bool], *, shares: bool) -> bool:
        """Wait until an answer or a part of one arrives, or a worker ends.

        Args:
            seconds: how long to wait at most.
            may_replace: called for each worker that has died; returns whether to replace it. If
                not, its requests are ``lost``.
            shares: workers that have nothing to do take over requests of others.

        Returns:
            Whether anything happened within that time.
        """
        until = time.monotonic() + seconds
        while True:
            left = max(0.0, until - time.monotonic())
            ready = self._spin.wait(
                lambda: self._selector.select(0) or None,
                partial(self._sleep, min(left, _CHECKS_WORKERS_EVERY), shares),
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

    def _sleep(self, seconds: float, shares: bool) -> Any:
        # Only here: a wait that polling covers is shorter than what sharing would save.
        if shares:
            self._share()
        return self._selector.select(seconds)

    def _share(self) -> None:
        """Let each worker that has nothing to do take over a request of the busiest one."""
        for worker, member in enumerate(self._members):
            if member.is_idle:
                busiest = max(self._members, key=lambda member: len(member.asked))
                if (ticket := busiest.withdraw_last()) is not None:
                    ticket.worker = worker
                    self._post(ticket)

    def _flush(self, worker: int) -> None:
        channel = self._members[worker].channel
        channel.flush()
        if not channel.has_unsent:
            self._selector.modify(channel, selectors.EVENT_READ, worker)

    def _read(self, worker: int) -> None:
        member = self._members[worker]
        notice: str | None = None
        for message, descriptors in member.channel.messages():
            answer: Answer = pickle.loads(message)
            if answer.ticket == STARTED:
                member.has_started, self._failed_starts = True, 0
                continue
            if answer.notice is not None:
                notice = answer.notice
            self.is_observed |= answer.is_observed
            member.slots.unmap(answer.given_up)
            if answer.is_new:
                assert answer.slot is not None
                member.slots.map(answer.slot, descriptors[0])
            ticket = member.asked.pop(answer.ticket, None)
            if ticket is not None:
                ticket.answer, ticket.slots = answer, member.slots
            elif answer.slot is not None:  # the worker began it before the request was cancelled
                member.slots.discard(answer.slot)
            if ticket is not None and not ticket.wanted:
                self.forget(ticket)
        if notice is not None:  # last: a filter may make it an error
            warn(notice, RuntimeWarning)

    def result(self, ticket: Ticket) -> Fetched | BaseException:
        """The batch of an answered ticket, or the exception that its worker raised."""
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
        """Cancel a request, or discard its batch."""
        ticket.wanted = False
        if ticket.lost is not None:
            return
        if ticket.answer is None:
            member = self._members[ticket.worker]
            # The worker is reading the first, which must be known as the cause if it dies.
            if ticket.number != next(iter(member.asked)):
                del member.asked[ticket.number]
                member.cancelled.append(ticket.number)
        elif ticket.answer.slot is not None:
            assert ticket.slots is not None
            ticket.slots.discard(ticket.answer.slot)

    # ---- workers

    def _started(self, worker: int) -> Member:
        with explaining_limit("a worker"):
            ours, theirs = channels()
        permits: Permits | None = None
        try:
            with signals_held() as blocked, explaining_limit("a worker"):
                permits = Permits() if CAN_SEND_MEMORY else None
                process = self._context.Process(
                    target=run,
                    args=(
                        Parcel(self._spec),
                        worker,
                        theirs,
                        permits,
                        self._closing(ours),
                        blocked,
                    ),
                    daemon=True,
                )
                process.start()
        except BaseException:
            ours.close()
            if permits is not None:
                permits.close()
            raise
        finally:
            theirs.close()
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return Member(process, ours, TrainingSlots(), permits)

    def _closing(self, ours: Channel) -> list[Callable[[], None]]:
        """What closes a forked worker's copies of this process's ends of channels.

        An end is noticed only once all copies are closed.
        """
        if self._context.get_start_method() != "fork":
            return []
        return [ours.close, *(member.close for member in self._members)]

    def _replace(self, worker: int, may_replace: Callable[[], bool]) -> None:
        lost = self._members[worker]
        lost.process.join(_LAST_GRACE)
        if lost.process.exitcode is None:  # its channel has broken, but it is alive
            lost.process.kill()
            lost.process.join()
        asked = list(lost.asked.values())
        doing = read_by(asked) if lost.has_started else "was starting"
        what = f"worker {worker} {ending(lost.process.exitcode)} while it {doing}"
        method = self._context.get_start_method()
        by_job = -lost.process.exitcode in _JOB_SIGNALS
        if not lost.has_started:
            self._failed_starts += not by_job
        elif asked:
            # A worker serves its requests one after the other, so it was reading the first.
            asked[0].deaths += 1
        if not lost.has_started and lost.process.exitcode == 1 and method != "fork":
            lost.lost = WorkerDiedError(f"{what}: {_IMPORTS.format(method)}")
        elif self._failed_starts >= _MOST_DEATHS:
            lost.lost = WorkerDiedError(
                f"{what}, like the one before it, so a third would not help: look at what "
                "worker_init_fn= does, and the dataset when it is unpickled, or look for the "
                "out-of-memory killer in the kernel's log"
            )
        elif asked and asked[0].deaths >= _MOST_DEATHS:
            lost.lost = WorkerDiedError(
                f"{what}; it is the second worker that this batch has killed, so a third would not "
                "help: read these samples without workers to see why, or look for the "
                "out-of-memory killer in the kernel's log"
            )
        elif not by_job and not may_replace():
            lost.lost = WorkerDiedError(
                f"{what}; worker_restarts= allows no further replacement in this pass: raise it, "
                "or find out why workers die"
            )
        self._selector.unregister(lost.channel)
        lost.close()
        if lost.lost is not None:
            # Raised in its turn: batches that other workers have read are delivered first.
            for ticket in asked:
                ticket.lost = lost.lost
            return
        warn(f"{what}; it is replaced, and nothing is lost", RuntimeWarning)
        self._members[worker] = self._started(worker)
        for ticket in asked:
            if ticket.wanted:
                self._post(ticket)


def _stop(owner: int, members: list[Member], selector: selectors.BaseSelector) -> None:
    selector.close()
    if os.getpid() != owner:  # a fork's copy of the crew, whose workers serve the parent
        for member in members:
            member.close()
        return
    for member in members:
        member.channel.end()
        member.close()
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
    # Unlike epoll, poll needs no descriptor; with few workers it is as fast.
    return getattr(selectors, "PollSelector", selectors.DefaultSelector)()
