"""A member of the crew: a worker process, and the requests that it was asked for."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from dataporter.engines.channel import Channel
from dataporter.engines.messages import Answer, Withdrawal
from dataporter.engines.permits import Permits
from dataporter.engines.ring import TrainingSlots
from dataporter.errors import WorkerDiedError
from dataporter.schedule.request import EngineRequest

__all__ = ["Member", "Ticket", "describe", "ending", "read_by"]


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was submitted to a worker, and its outcome.

    Attributes:
        number: identifies it among the crew's requests.
        request, delivers: as scheduled.
        worker: the number of the worker.
        answer: the worker's, once it has arrived.
        slots: where the batch lies; they stay mapped if the worker dies.
        wanted: False once the batch is not needed any more.
        deaths: how many workers died while they served this request.
        lost: the error to raise in place of an answer, if none will arrive.
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
class Member:
    """A worker, with its channel and its slots.

    Attributes:
        has_started: it has answered that it is ready.
        asked: its requests without an answer, by number; it reads the first.
        cancelled: numbers of requests that it need not serve, to be sent to it.
        lost: the error of a worker that has died and was not replaced.
        permits: of its requests; None where the system has none, so that each stays with it.
    """

    process: Any
    channel: Channel
    slots: TrainingSlots
    permits: Permits | None
    has_started: bool = False
    asked: dict[int, Ticket] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    lost: WorkerDiedError | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it could read at once."""
        return not self.asked and self.has_started and self.lost is None

    def withdraw_last(self) -> Ticket | None:
        """Take back the last of several requests, for another worker, unless it has begun it."""
        if len(self.asked) < 2 or self.lost is not None or self.permits is None:
            return None
        ticket = next(reversed(self.asked.values()))
        if ticket.request.reader is not None or not self.permits.take():
            return None
        if not self.channel.post_at_once(Withdrawal(ticket.number).packed()):
            self.permits.give()
            return None
        del self.asked[ticket.number]
        return ticket

    def close(self) -> None:
        """Close this process's ends."""
        self.channel.close()
        if self.permits is not None:
            self.permits.close()


def ending(exitcode: int) -> str:
    """How a process ended, for an error message."""
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"


def read_by(asked: list[Ticket]) -> str:
    """What a worker with these requests was doing."""
    return f"was reading {asked[0].request.described()}" if asked else "was idle"


def describe(ticket: Ticket) -> str:
    """Which worker has not yet returned which samples, for an error message."""
    return f"worker {ticket.worker} has not returned {ticket.request.described()}"
