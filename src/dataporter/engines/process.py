"""The process engine: fetches in worker processes, ahead of the training loop."""

from __future__ import annotations

import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import multiprocessing

from dataporter.engines.crew import Crew, Ticket, describe
from dataporter.engines.engine import EngineRequests, Reply, Usage, refuse_inherited
from dataporter.engines.options import WorkerOptions
from dataporter.engines.worker import WorkerSpec
from dataporter.errors import DataPorterError, WorkerTimeoutError
from dataporter.fetch.fetch import Fetch
from dataporter.schedule.request import Scheduled
from dataporter.seeding.hashing import STREAM_WORKERS, fold

__all__ = ["ProcessEngine"]

_LONGEST_WAIT = 3600.0  # s at a time, where no timeout is given


class ProcessEngine:
    """Hands requests to the workers in turns, so many ahead, and gives their batches out.

    Args:
        build_fetch: makes what reads and collates; called in each worker, see ``WorkerSpec``.
        dataset: what ``get_worker_info().dataset`` shows.
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
        self._crew: Crew | None = None
        self._pass: _Pass | None = None
        # The last pass's, which may be all that keeps it.
        self._last_crew: weakref.ref[Crew] | None = None

    def start(self, requests: EngineRequests, ahead: EngineRequests | None) -> Iterator[Reply]:
        before, self._pass = self._pass, None
        crew, self._crew = self._crew, None
        if crew is not None and crew.owner != os.getpid():
            before = crew = None
        errand = None if before is None else before.hand_over(requests)
        if errand is None:
            errand = _Errand(requests, iter(requests))
        if crew is None or not crew.close.alive:
            first = next(errand.remaining, None)
            if first is None:
                return iter(())
            crew, errand.remaining = self._hired(first), chain((first,), errand.remaining)
        self._last_crew = weakref.ref(crew)
        new = _Pass(crew, errand, ahead, self._pin, self._options)
        # The workers belong to the pass and end with it, unless they persist.
        if self._options.persistent:
            self._crew, self._pass = crew, new
        return new

    def usage(self) -> Usage:
        crew = None if self._last_crew is None else self._last_crew()
        return Usage() if crew is None or not crew.close.alive else crew.usage()

    def _hired(self, first: Scheduled) -> Crew:
        options = self._options
        spec = WorkerSpec(
            self._build_fetch,
            self._dataset,
            options.worker_init_fn,
            options.num_workers,
            # 32 bits are what NumPy and torch take with a worker's number added.
            fold(first.request.seed, first.request.epoch, STREAM_WORKERS) >> 33,
        )
        return Crew(spec, options.context or multiprocessing.get_context())


@dataclass(slots=True, eq=False)
class _Errand:
    """What workers are sent for: what they were asked so far, and what they are to be asked."""

    requests: EngineRequests
    remaining: Iterator[Scheduled]
    asked: deque[Ticket] = field(default_factory=deque)
    drawn: int = 0


class _Pass(Iterator[Reply]):
    """A pass of the training loop: what is asked ahead, and what comes back, in which order."""

    def __init__(
        self,
        crew: Crew,
        present: _Errand,
        ahead: EngineRequests | None,
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        self._crew: Crew | None = crew
        self._present = present
        reads_on = options.persistent and ahead is not None
        self._next = _Errand(ahead, iter(ahead)) if reads_on and ahead is not None else None
        self._pin = pin
        self._options = options
        self._sampler_failure: Exception | None = None
        self._restarts_left = options.restarts
        self._taken_over = False

    def __next__(self) -> Reply:
        if self._taken_over:
            raise DataPorterError(
                "the persistent workers serve a later iterator of this loader, so this one cannot "
                "go on; use one iterator at a time, or persistent_workers=False"
            )
        if self._crew is None:
            raise StopIteration
        refuse_inherited(self._crew.owner)
        asked = self._present.asked
        try:
            if not asked:
                self._ask(self._crew)
            if not asked and self._sampler_failure is not None:
                raise self._sampler_failure
            ticket = self._next_answered(self._crew) if asked else None
            if ticket is not None:
                asked.remove(ticket)
                self._ask(self._crew)
        except BaseException:
            self._dismiss()
            raise
        if ticket is None:
            if not self._options.persistent:
                self._dismiss()
            raise StopIteration
        try:
            result = self._crew.result(ticket)
            if isinstance(result, Exception):
                return Reply(ticket.request, ticket.delivers, failure=result)
            pinned = self._pin(result.batch)
        except Exception as error:
            return Reply(ticket.request, ticket.delivers, failure=error)
        return Reply(ticket.request, ticket.delivers, result._replace(batch=pinned))

    def hand_over(self, requests: EngineRequests) -> _Errand | None:
        """A later pass takes the workers; returns what they have read ahead for it."""
        crew, self._crew, self._taken_over = self._crew, None, True
        ahead, self._next = self._next, None
        if crew is None or not crew.close.alive:
            return None
        fits = ahead is not None and ahead.requests == requests
        dropped = [self._present] if fits or ahead is None else [self._present, ahead]
        for errand in dropped:
            for ticket in errand.asked:
                crew.forget(ticket)
            errand.asked.clear()
        return ahead if fits else None

    def _dismiss(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    # ---- asking

    def _ask(self, crew: Crew) -> None:
        """Keep the workers busy: first with this pass, then with what comes after it."""
        left = self._options.num_workers * self._options.prefetch_factor
        left -= len(self._present.asked)
        while left > 0 and (scheduled := self._draw()) is not None:
            self._ask_for(scheduled, self._present, crew)
            left -= 1
        if self._next is None:
            return
        left -= len(self._next.asked)
        while left > 0 and (scheduled := next(self._next.remaining, None)) is not None:
            self._ask_for(scheduled, self._next, crew)
            left -= 1

    def _draw(self) -> Scheduled | None:
        if self._sampler_failure is not None:
            return None
        try:
            return next(self._present.remaining, None)
        except Exception as error:
            # Raised in its turn: what was drawn before it is delivered first.
            self._sampler_failure = error
            return None

    def _ask_for(self, scheduled: Scheduled, errand: _Errand, crew: Crew) -> None:
        workers = range(self._options.num_workers)
        if scheduled.request.reader is not None:
            worker = scheduled.request.reader % len(workers)
        elif self._options.in_order:
            # By turns, as torch's: a dataset that its worker_init_fn has changed gives the same.
            worker = errand.drawn % len(workers)
        else:
            busy = [ticket.worker for ticket in errand.asked if ticket.answer is None]
            worker = min(workers, key=busy.count)
        errand.drawn += 1
        errand.asked.append(crew.ask(scheduled, worker))

    # ---- waiting

    def _next_answered(self, crew: Crew) -> Ticket:
        asked = self._present.asked
        timeout = self._options.timeout
        until = time.monotonic() + (timeout or float("inf"))
        while True:
            candidates = (asked[0],) if self._options.in_order else asked
            for ticket in candidates:
                if ticket.answer is not None:
                    return ticket
            lost = candidates[0].lost
            if lost is not None and all(ticket.lost is not None for ticket in candidates):
                raise lost
            left = max(0.0, until - time.monotonic())
            came = crew.wait(min(left, _LONGEST_WAIT), self._may_replace)
            # Time that runs out while this process is stopped says nothing of its workers, so what
            # they have sent meanwhile is looked at first.
            if not came and not left:
                raise WorkerTimeoutError(
                    f"DataLoader timed out after {timeout} seconds: {describe(asked[0])}"
                )

    def _may_replace(self) -> bool:
        self._restarts_left -= 1
        return self._restarts_left >= 0
