"""Tasks: what a worker was asked for, and which of it the worker begins next."""

from __future__ import annotations

from dataporter.engines.messages import Task, Withdrawal
from dataporter.engines.permits import Permits

__all__ = ["Tasks"]


class Tasks:
    """The tasks that a worker has received and not begun, in their order.

    Args:
        permits: of these tasks; None if none is ever withdrawn.
    """

    def __init__(self, permits: Permits | None) -> None:
        self._permits = permits
        self._has_permit = permits is None
        self._tasks: dict[int, Task] = {}

    def is_ready(self) -> bool:
        """Whether one may begin; takes the permit for it.

        The messages that have arrived since must be received before it begins: a permit may be that
        of a later task, whose message follows the withdrawal of this one.
        """
        if self._permits is not None and not self._has_permit:
            self._has_permit = self._permits.take()
        return self._has_permit and bool(self._tasks)

    def receive(self, message: Task | Withdrawal) -> None:
        """Add a task, and drop those that need no answer any more."""
        if isinstance(message, Withdrawal):
            self._tasks.pop(message.ticket, None)
            return
        for ticket in message.cancelled:
            if self._tasks.pop(ticket, None) is not None:
                self._drop_permit()
        self._tasks[message.ticket] = message

    def begin(self) -> Task | None:
        """The first task, if it may begin."""
        if not (self._has_permit and self._tasks):
            return None
        self._has_permit = self._permits is None
        return self._tasks.pop(next(iter(self._tasks)))

    def _drop_permit(self) -> None:
        if self._permits is not None and not self._permits.take():
            self._has_permit = False
