"""The process engine: fetches in worker processes, ahead of the training loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from torch import multiprocessing

from dataporter.engines.crew import Crew, Ticket, describe
from dataporter.engines.engine import Reply
from dataporter.engines.worker import WorkerSpec
from dataporter.errors import DataPorterError, WorkerTimeoutError
from dataporter.fetch import Fetch
from dataporter.request import Request
from dataporter.rng import STREAM_WORKERS, fold

__all__ = ["ProcessEngine", "WorkerOptions"]

_PATIENCE = 3600.0  # s at a time, where no timeout is given


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How to run workers: the arguments of ``torch.utils.data.DataLoader`` that concern them.

    ``restarts`` is how many may be replaced in a pass.
    """

    num_workers: int
    prefetch_factor: int
    persistent: bool
    in_order: bool
    timeout: float
    restarts: int
    worker_init_fn: Callable[[int], None] | None
    context: Any


class ProcessEngine:
    """Hands requests to the workers in turns, so many ahead, and gives their batches out.

    Args:
        build_fetch: makes what reads and collates; called in each worker.
        dataset: what ``get_worker_info().dataset`` shows.
        pin: moves a batch to page-locked memory, or returns it as it is.
        options: how to run the workers.
    """

    def __init__(
        self,
        build_fetch: Callable[[], Fetch],
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

    def start(self, requests: Iterator[Request], ahead: Iterator[Request]) -> Iterator[Reply]:
        before, self._pass = self._pass, None
        ready = deque[Ticket]() if before is None else before.hand_over()
        crew, self._crew = self._crew, None
        first = next(requests, None)
        if crew is None or not crew.close.alive:
            if first is None:
                return iter(())
            crew, ready = self._hired(first), deque()
        served = requests if first is None else chain((first,), requests)
        new = _Pass(crew, served, ahead, ready, self._pin, self._options)
        # The workers belong to the pass and end with it, unless they persist.
        if self._options.persistent:
            self._crew, self._pass = crew, new
        return new

    def close(self) -> None:
        crew, self._crew, self._pass = self._crew, None, None
        if crew is not None:
            crew.close()

    def _hired(self, first: Request) -> Crew:
        options = self._options
        spec = WorkerSpec(
            self._build_fetch,
            self._dataset,
            options.worker_init_fn,
            options.num_workers,
            # 32 bits are what NumPy and torch take with a worker's number added.
            fold(first.seed, first.epoch, STREAM_WORKERS) >> 33,
        )
        return Crew(spec, options.context or multiprocessing.get_context())


class _Pass(Iterator[Reply]):
    """A pass of the training loop: what is asked ahead, and what comes back, in which order."""

    def __init__(
        self,
        crew: Crew,
        requests: Iterator[Request],
        ahead: Iterator[Request],
        ready: deque[Ticket],
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        self._crew: Crew | None = crew
        self._requests = requests
        self._ahead = ahead if options.persistent else iter(())
        # What was asked before this pass began, and counts as long as this pass asks for the same.
        self._ready = ready
        self._pin = pin
        self._options = options
        self._asked: deque[Ticket] = deque()
        self._asked_ahead: deque[Ticket] = deque()
        self._drawn = 0
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
        try:
            if not self._asked:
                self._ask(self._crew)
            if not self._asked and self._sampler_failure is not None:
                raise self._sampler_failure
            ticket = self._next_answered(self._crew) if self._asked else None
            if ticket is not None:
                self._asked.remove(ticket)
                self._ask(self._crew)
        except BaseException:
            self._dismiss()
            raise
        if ticket is None:
            if not self._options.persistent:
                self._dismiss()
            raise StopIteration
        batch, skipped, failure = self._crew.result(ticket)
        if failure is None:
            try:
                batch = self._pin(batch)
            except Exception as error:
                failure = error
        return Reply(ticket.request, batch, skipped, failure)

    def hand_over(self) -> deque[Ticket]:
        """A later pass takes the workers; returns what was asked ahead for it."""
        crew, self._crew, self._taken_over = self._crew, None, True
        if crew is not None and crew.close.alive:
            for ticket in (*self._asked, *self._ready):
                crew.forget(ticket)
        self._asked.clear()
        self._ready.clear()
        asked_ahead, self._asked_ahead = self._asked_ahead, deque()
        return asked_ahead

    def _dismiss(self) -> None:
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    # ---- asking

    def _ask(self, crew: Crew) -> None:
        """Keep the workers busy: first with this pass, then with what comes after it."""
        most = self._options.num_workers * self._options.prefetch_factor
        while len(self._asked) < most and (request := self._draw()) is not None:
            self._asked.append(self._already_asked(crew, request) or self._asked_now(crew, request))
        if len(self._asked) < most and self._ready:
            self._forget_ready(crew)
        while len(self._asked) + len(self._asked_ahead) < most:
            request = next(self._ahead, None)
            if request is None:
                return
            worker = len(self._asked_ahead) % self._options.num_workers
            self._asked_ahead.append(crew.ask(request, worker))

    def _draw(self) -> Request | None:
        if self._sampler_failure is not None:
            return None
        try:
            return next(self._requests, None)
        except Exception as error:
            # Raised in its turn: what was drawn before it is delivered first.
            self._sampler_failure = error
            return None

    def _asked_now(self, crew: Crew, request: Request) -> Ticket:
        workers = range(self._options.num_workers)
        if self._options.in_order:
            worker = self._drawn % len(workers)
        else:
            busy = [ticket.worker for ticket in self._asked if ticket.answer is None]
            worker = min(workers, key=busy.count)
        self._drawn += 1
        return crew.ask(request, worker)

    def _already_asked(self, crew: Crew, request: Request) -> Ticket | None:
        if not self._ready:
            return None
        if not _same(self._ready[0].request, request):
            self._forget_ready(crew)
            return None
        ticket = self._ready.popleft()
        # Equal but for what it delivers, which the request of the present pass says.
        ticket.request = request
        self._drawn += 1
        return ticket

    def _forget_ready(self, crew: Crew) -> None:
        while self._ready:
            crew.forget(self._ready.popleft())

    # ---- waiting

    def _next_answered(self, crew: Crew) -> Ticket:
        timeout = self._options.timeout
        until = time.monotonic() + (timeout or float("inf"))
        while True:
            candidates = (self._asked[0],) if self._options.in_order else self._asked
            for ticket in candidates:
                if ticket.answer is not None:
                    return ticket
            left = until - time.monotonic()
            if left <= 0:
                raise WorkerTimeoutError(
                    f"DataLoader timed out after {timeout} seconds: {describe(self._asked[0])}"
                )
            crew.wait(min(left, _PATIENCE), self._may_replace)

    def _may_replace(self) -> bool:
        self._restarts_left -= 1
        return self._restarts_left >= 0


def _same(one: Request, other: Request) -> bool:
    return (
        (one.seed, one.epoch, one.step) == (other.seed, other.epoch, other.step)
        and np.array_equal(one.positions, other.positions)
        and np.array_equal(one.indices, other.indices)
    )
