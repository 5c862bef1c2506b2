"""Messages between the training process and a worker: tasks one way, answers the other."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dataporter.engines.raised import Raised, put_together, taken_apart
from dataporter.errors import DataPorterError
from dataporter.schedule.request import EngineRequest, PackedRequest
from dataporter.shared.pickling import dumps

__all__ = [
    "STARTED",
    "WAKE",
    "Answer",
    "Failure",
    "Task",
    "Withdrawal",
    "WorkerTraceback",
    "unpacked",
]

# The ticket of a worker's first answer, which belongs to no request.
STARTED = -1


class Task(NamedTuple):
    """From the training process to a worker: a request, and news of slots and earlier requests.

    Attributes:
        ticket: identifies the task.
        request: what to read.
        reusable: slots that the worker may write to again.
        spent: slots that the worker must not write to again.
        cancelled: tickets of tasks that need no answer any more.
    """

    ticket: int
    request: EngineRequest
    reusable: list[int]
    spent: list[int]
    cancelled: list[int]

    def packed(self) -> bytes:
        request = self.request.packed()
        # As a tuple, which pickle writes in a fraction of the time of a named one.
        content = (self.ticket, request, self.reusable, self.spent, self.cancelled)
        if type(request) is PackedRequest and type(request.indices) is bytes:
            return pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
        # A custom sampler's indices may be views: iterating over a tensor yields such.
        return dumps(content)


class Withdrawal(NamedTuple):
    """From the training process to a worker: another worker serves this task.

    The worker's permit for it is already taken.
    """

    ticket: int

    def packed(self) -> bytes:
        return pickle.dumps(self.ticket)


# To a worker: a task is about to come.
WAKE = b""


def unpacked(message: bytes) -> Task | Withdrawal:
    """A message to a worker."""
    content = pickle.loads(message)
    if isinstance(content, int):
        return Withdrawal(content)
    ticket, packed, reusable, spent, cancelled = content
    return Task(ticket, packed.unpacked(), reusable, spent, cancelled)


class Answer(NamedTuple):
    """From a worker to the training process: a packed ``Fetched``, or the failure.

    Attributes:
        ticket: the task's, or ``STARTED``.
        packed: the message, to be unpacked with the first ``size`` bytes of ``slot``.
        slot: None if nothing of the batch lies in a slot.
        is_new: the slot's descriptor accompanies this answer.
        given_up: slots that the worker does not use any more.
        failure: the exception that was raised instead.
        notice: a warning for the user.
        is_observed: the dataset has asked which worker reads it, for this task or an earlier one.
    """

    ticket: int
    packed: bytes = b""
    slot: int | None = None
    size: int = 0
    is_new: bool = False
    given_up: Sequence[int] = ()
    failure: Failure | None = None
    notice: str | None = None
    is_observed: bool = False


class WorkerTraceback(DataPorterError):
    """The traceback in the worker: the ``__cause__`` of a fetch's exception raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception on its way from a worker.

    Attributes:
        raised: its parts.
        traceback: its traceback in the worker, with those of its causes.
    """

    raised: Raised
    traceback: str

    @classmethod
    def from_exception(cls, error: BaseException) -> Failure:
        return cls(taken_apart(error), "".join(traceback.format_exception(error)))

    def rebuilt(self) -> BaseException:
        """The exception; the last of its causes is the traceback in the worker."""
        error = last = put_together(self.raised)
        while last.__cause__ is not None:
            last = last.__cause__
        BaseException.__setattr__(last, "__cause__", WorkerTraceback(self.traceback))
        return error
