"""The thread engine: fetches in threads of the training process, without copying a byte."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from typing import Any

from dataporter.engines.engine import EngineRequests, Reply, Usage, refuse_inherited
from dataporter.engines.options import WorkerOptions
from dataporter.errors import WorkerTimeoutError, warn
from dataporter.fetch.fetch import Fetch
from dataporter.schedule.request import Scheduled
from dataporter.seeding.generators import global_state

__all__ = ["ThreadEngine"]


class ThreadEngine:
    """For datasets whose reading releases Python's lock: decoding, or waiting for a disk.

    Args:
        build_fetch: makes what reads and collates, and seeds no global generator: threads share
            those.
        pin: moves a batch to page-locked memory, or returns it as it is.
        options: how to run the threads; ``restarts`` and ``context`` say nothing to them.
    """

    def __init__(
        self,
        build_fetch: Callable[[], Fetch],
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        self._build_fetch = build_fetch
        self._pin = pin
        self._options = options
        self._pool: _Threads | None = None
        self._owner = os.getpid()

    def start(self, requests: EngineRequests, ahead: EngineRequests | None) -> Iterator[Reply]:
        pool = self._pool
        if pool is None or self._owner != os.getpid():  # a fork has no threads, whatever it says
            pool = _Threads(self._options.num_workers)
            weakref.finalize(self, pool.close)
            self._pool, self._owner = pool, os.getpid()
        serve = _Serve(self._build_fetch(), self._options.worker_init_fn)
        return _Pass(self, pool, serve, iter(requests), self._pin, self._options)

    def usage(self) -> Usage:
        return Usage()


class _Threads:
    """So many threads that do what they are given, in order.

    Not a ``ThreadPoolExecutor``: at its exit Python waits for all that those were given, before
    anybody is asked whether it is still wanted. These are daemons, and end where they are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._tasks: SimpleQueue[_Work | None] = SimpleQueue()
        for number in range(count):
            name = f"dataporter_{number}"
            threading.Thread(target=_work_off, args=(self._tasks,), name=name, daemon=True).start()

    def submit(self, serve: _Serve, scheduled: Scheduled) -> Future[Reply]:
        future: Future[Reply] = Future()
        self._tasks.put((future, serve, scheduled))
        return future

    def close(self) -> None:
        """End when what is being read is read; the rest is for its owner to cancel."""
        for _ in range(self._count):
            self._tasks.put(None)


def _work_off(tasks: SimpleQueue[_Work | None]) -> None:
    while (task := tasks.get()) is not None:
        future, serve, scheduled = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(serve(scheduled))
            except BaseException as error:
                future.set_exception(error)
        # Until the next task comes, nothing of this one is to be kept alive.
        del task, future, serve, scheduled


class _Serve:
    """What the threads run."""

    def __init__(self, fetch: Fetch, worker_init_fn: Callable[[int], None] | None) -> None:
        self._fetch = fetch
        self._worker_init_fn = worker_init_fn
        self._numbers = itertools.count()
        self._thread = threading.local()

    def __call__(self, scheduled: Scheduled) -> Reply:
        request, delivers = scheduled
        try:
            if self._worker_init_fn is not None and not hasattr(self._thread, "number"):
                self._thread.number = next(self._numbers)
                self._worker_init_fn(self._thread.number)
            return Reply(request, delivers, self._fetch(request))
        except Exception as error:
            return Reply(request, delivers, failure=error)


_Work = tuple[Future[Reply], _Serve, Scheduled]


class _Pass(Iterator[Reply]):
    def __init__(
        self,
        engine: ThreadEngine,
        pool: _Threads,
        serve: _Serve,
        requests: Iterator[Scheduled],
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        # The threads end with the engine, which is so kept as long as this pass goes on.
        self._engine = engine
        self._pool = pool
        self._serve = serve
        self._requests = requests
        self._pin = pin
        self._options = options
        self._asked: deque[tuple[Scheduled, Future[Reply]]] = deque()
        self._watched = False
        self._owner = os.getpid()

    def __next__(self) -> Reply:
        refuse_inherited(self._owner)
        if not self._watched:
            self._watched = True
            before = global_state()
            self._ask()
            reply = self._next()
            # The training has waited meanwhile, so whoever drew was a thread of ours.
            _warn_of_draws(before, global_state())
        else:
            reply = self._next()
        self._ask()
        if reply.fetched is None:
            return reply
        pinned = self._pin(reply.fetched.batch)
        return reply._replace(fetched=reply.fetched._replace(batch=pinned))

    def __del__(self) -> None:
        for _, future in self._asked:
            future.cancel()

    def _ask(self) -> None:
        most = self._options.num_workers * self._options.prefetch_factor
        while len(self._asked) < most:
            scheduled = next(self._requests, None)
            if scheduled is None:
                return
            self._asked.append((scheduled, self._pool.submit(self._serve, scheduled)))

    def _next(self) -> Reply:
        if not self._asked:
            raise StopIteration
        timeout = self._options.timeout or None
        candidates = [future for _, future in self._asked]
        candidates = candidates[:1] if self._options.in_order else candidates
        done, _ = wait(candidates, timeout, FIRST_COMPLETED)
        if not done:
            request = self._asked[0][0].request
            raise WorkerTimeoutError(
                f"DataLoader timed out after {timeout} seconds: a thread has epoch "
                f"{request.epoch}, step {request.step} to read"
            )
        place = next(place for place, future in enumerate(candidates) if future in done)
        _, future = self._asked[place]
        del self._asked[place]
        return future.result()


def _warn_of_draws(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    names = ("Python's random", "numpy.random", "torch's default generator")
    drawn = [name for name, was, now in zip(names, before, after) if was != now]
    if drawn:
        warn(
            f"the dataset draws from {' and '.join(drawn)} with worker_kind='thread'. Threads "
            "share it with each other and with the training, so it cannot be seeded for each "
            "sample and a resume is not exact: draw from dataporter.sample_rng(), or use "
            "worker_kind='process'",
            RuntimeWarning,
        )
