"""The process engine: fetches in worker processes, ahead of the training loop."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import multiprocessing

from dataporter.engines.ahead import ReadAhead, RequestQueue
from dataporter.engines.crew import Crew
from dataporter.engines.engine import Reply, Usage, refuse_inherited
from dataporter.engines.member import Ticket, describe
from dataporter.engines.options import WorkerOptions
from dataporter.engines.worker import WorkerSpec
from dataporter.errors import DataPorterError, WorkerTimeoutError
from dataporter.fetch.fetch import Fetch
from dataporter.schedule.request import EngineRequest, Scheduled
from dataporter.seeding.hashing import STREAM_WORKERS, fold

__all__ = ["ProcessEngine"]

_LONGEST_WAIT = 3600.0  # s at a time, without a timeout


class ProcessEngine:
    """Submits requests to worker processes ahead of the training loop, and returns their batches.

    Args:
        build_fetch: builds the fetch, in each worker; see ``WorkerSpec``.
        dataset: the value of ``get_worker_info().dataset``.
        pin: moves a batch to page-locked memory, or returns it as it is.
        options: how to run the workers.
    """

    def __init__(
        self,
        build_fetch: Callable[..., Fetch],
        dataset: Any,
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        self._build_fetch = build_fetch
        self._dataset = dataset
        self._pin = pin
        self._options = options
        # The last pass, if its workers persist.
        self._pass: _Pass | None = None
        # The last pass's workers, which end with that pass unless they persist.
        self._last_crew: weakref.ref[Crew] | None = None

    def start(
        self, requests: Iterable[Scheduled], ahead: Iterable[Scheduled] | None
    ) -> Iterator[Reply]:
        previous, self._pass = self._pass, None
        crew, queue = None, None
        # In a forked process, the pass and its workers are the parent's.
        if previous is not None and previous.owner == os.getpid():
            crew, queue = previous.hand_over(requests)
        if queue is None:
            queue = RequestQueue(requests)
        if crew is None:
            first = queue.peek()
            if first is None:
                return iter(())
            crew = self._started(first.request)
        self._last_crew = weakref.ref(crew)
        new = _Pass(crew, queue, ahead, self._pin, self._options)
        if self._options.persistent:
            self._pass = new
        return new

    def usage(self) -> Usage:
        crew = None if self._last_crew is None else self._last_crew()
        return Usage() if crew is None or not crew.close.alive else crew.usage()

    def _started(self, first: EngineRequest) -> Crew:
        options = self._options
        spec = WorkerSpec(
            self._build_fetch,
            self._dataset,
            options.worker_init_fn,
            options.num_workers,
            # NumPy and torch take 32 bits, to which a worker's number is added.
            fold(first.seed, first.epoch, STREAM_WORKERS) >> 33,
        )
        return Crew(spec, options.context or multiprocessing.get_context())


class _Pass(Iterator[Reply]):
    """A pass of the training loop.

    Attributes:
        owner: the id of the process whose pass it is.
    """

    def __init__(
        self,
        crew: Crew,
        queue: RequestQueue[Ticket],
        following: Iterable[Scheduled] | None,
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        self.owner = crew.owner
        self._crew: Crew | None = crew
        self._ahead = ReadAhead(
            queue,
            following if options.persistent else None,
            limit=options.num_workers * options.prefetch_factor,
            in_order=options.in_order,
        )
        self._pin = pin
        self._options = options
        self._restarts_left = options.restarts
        self._taken_over = False

    def __next__(self) -> Reply:
        if self._taken_over:
            raise DataPorterError(
                "a later iterator of this loader has taken over its persistent workers, so this "
                "one has ended: use one iterator at a time, or persistent_workers=False"
            )
        crew = self._crew
        if crew is None:
            raise StopIteration
        refuse_inherited(self.owner)
        try:
            ticket = self._ahead.take(partial(self._submit, crew), partial(self._answered, crew))
        except BaseException:
            self._dismiss()
            raise
        if ticket is None:
            if not self._options.persistent:
                self._dismiss()
            raise StopIteration
        try:
            result = crew.result(ticket)
            if isinstance(result, BaseException):
                return Reply(ticket.request, ticket.delivers, failure=result)
            pinned = self._pin(result.batch)
        except Exception as error:
            return Reply(ticket.request, ticket.delivers, failure=error)
        return Reply(ticket.request, ticket.delivers, result._replace(batch=pinned))

    def hand_over(
        self, requests: Iterable[Scheduled]
    ) -> tuple[Crew, RequestQueue[Ticket]] | tuple[None, None]:
        """End this pass for a later one; returns the workers, and what that one has left to read.

        Returns (None, None) if the workers have ended.
        """
        # A pass that has delivered everything just ends.
        self._taken_over = not self._ahead.current.is_done
        crew, self._crew = self._crew, None
        if crew is None or not crew.close.alive:
            return None, None
        crew.expect()
        return crew, self._ahead.hand_over(requests, crew.forget)

    def _dismiss(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def _submit(self, crew: Crew, scheduled: Scheduled, queue: RequestQueue[Ticket]) -> Ticket:
        reader, count = scheduled.request.reader, self._options.num_workers
        if reader is not None:
            worker = reader % count
        elif self._takes_turns(crew):
            worker = queue.submitted % count
        else:
            worker = crew.least_busy()
        return crew.submit(scheduled, worker)

    def _takes_turns(self, crew: Crew) -> bool:
        """Whether the workers take turns, as torch's do: where it shows which one reads a batch."""
        options = self._options
        return options.in_order and (options.worker_init_fn is not None or crew.is_observed)

    def _answered(self, crew: Crew, tickets: Sequence[Ticket]) -> Ticket:
        """Wait for an answer to one of the tickets."""
        timeout = self._options.timeout
        until = time.monotonic() + (timeout or float("inf"))
        while True:
            for ticket in tickets:
                if ticket.answer is not None:
                    return ticket
            lost = tickets[0].lost
            if lost is not None and all(ticket.lost is not None for ticket in tickets):
                raise lost
            left = max(0.0, until - time.monotonic())
            progressed = crew.wait(
                min(left, _LONGEST_WAIT), self._may_replace, shares=not self._takes_turns(crew)
            )
            # Time may also have run out because this process was stopped, so first look at what
            # the workers have sent meanwhile.
            if not progressed and not left:
                raise WorkerTimeoutError(
                    f"DataLoader timed out after {timeout} seconds: {describe(tickets[0])}; raise "
                    "timeout=, or find out why the worker hangs"
                )

    def _may_replace(self) -> bool:
        self._restarts_left -= 1
        return self._restarts_left >= 0
