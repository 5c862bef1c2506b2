"""Ahead: which requests are submitted before their batches are needed, and which batch comes next.

The process engine and the thread engine share this. A ticket is what an engine keeps for a request
that it has submitted: whatever it needs to wait for the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Generic, TypeVar

from dataporter.schedule.request import Scheduled

__all__ = ["ReadAhead", "RequestQueue"]

Ticket = TypeVar("Ticket")


class RequestQueue(Generic[Ticket]):
    """The requests of one pass: first those that are outstanding, then those not yet submitted.

    Attributes:
        requests: all of them.
        submitted: how many were submitted.
        tickets: of the outstanding requests, in their order.
    """

    def __init__(self, requests: Iterable[Scheduled]) -> None:
        self.requests = requests
        self.submitted = 0
        self.tickets: deque[Ticket] = deque()
        self._remaining = iter(requests)
        self._failure: Exception | None = None
        self._drawn = False

    def peek(self) -> Scheduled | None:
        """The next request to submit, or None if there is none."""
        upcoming = next(self._remaining, None)
        if upcoming is not None:
            self._remaining = chain((upcoming,), self._remaining)
        return upcoming

    def fill(self, limit: int, submit: Callable[[Scheduled, RequestQueue[Ticket]], Ticket]) -> None:
        """Submit requests until ``limit`` of them are outstanding."""
        while len(self.tickets) < limit and (scheduled := self._draw()) is not None:
            self.tickets.append(submit(scheduled, self))
            self.submitted += 1

    def discard(self, forget: Callable[[Ticket], object]) -> None:
        """Drop the outstanding tickets, and call ``forget`` with each."""
        for ticket in self.tickets:
            forget(ticket)
        self.tickets.clear()

    def raise_failure(self) -> None:
        """Raise the exception that ended the requests early, if one did."""
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            # Its traceback holds this frame, and would form a cycle with it.
            del failure

    @property
    def is_done(self) -> bool:
        """Whether all requests are known to have been delivered."""
        return self._drawn and not self.tickets and self._failure is None

    def _draw(self) -> Scheduled | None:
        try:
            drawn = next(self._remaining, None)
            self._drawn = drawn is None
            return drawn
        except Exception as error:
            self._failure, self._remaining = error, iter(())
            return None


class ReadAhead(Generic[Ticket]):
    """Submits the requests of a pass ahead of time, and chooses the ticket to deliver next.

    Args:
        current: the requests of the pass.
        following: the requests of the next pass if nothing intervenes: they are submitted once this
            pass has none left. None leaves them to the next pass.
        limit: how many requests of both passes together may be outstanding.
        in_order: deliver batches in the order of their requests; otherwise, as they arrive.
    """

    def __init__(
        self,
        current: RequestQueue[Ticket],
        following: Iterable[Scheduled] | None,
        *,
        limit: int,
        in_order: bool,
    ) -> None:
        self.current = current
        self.following: RequestQueue[Ticket] | None = (
            None if following is None else RequestQueue(following)
        )
        self._limit = limit
        self._in_order = in_order

    def take(
        self,
        submit: Callable[[Scheduled, RequestQueue[Ticket]], Ticket],
        wait: Callable[[Sequence[Ticket]], Ticket],
    ) -> Ticket | None:
        """The ticket to deliver next, or None at the end of the pass; submits the next requests.

        Args:
            submit: submits a request of a queue, and returns its ticket.
            wait: waits until one of these tickets can be delivered, and returns it.

        Raises:
            Exception: what iterating over the requests raised, once all requests before that are
                delivered; or what ``submit`` or ``wait`` raises.
        """
        tickets = self.current.tickets
        if not tickets:
            self._fill(submit)
        if not tickets:
            self.current.raise_failure()
            return None
        ticket = wait((tickets[0],) if self._in_order else tickets)
        tickets.remove(ticket)
        self._fill(submit)
        return ticket

    def hand_over(
        self, requests: Iterable[Scheduled], forget: Callable[[Ticket], object]
    ) -> RequestQueue[Ticket]:
        """End the pass, and return the queue of the next one, which asks for ``requests``.

        Keeps what was read ahead if that is what the next pass asks for, and calls ``forget`` with
        each other outstanding ticket.
        """
        following, self.following = self.following, None
        self.current.discard(forget)
        if following is not None and following.requests == requests:
            return following
        if following is not None:
            following.discard(forget)
        return RequestQueue(requests)

    def _fill(self, submit: Callable[[Scheduled, RequestQueue[Ticket]], Ticket]) -> None:
        self.current.fill(self._limit, submit)
        if self.following is not None:
            self.following.fill(self._limit - len(self.current.tickets), submit)
