"""The thread engine: fetches in threads of the training process, without copying a byte."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from dataporter.engines.ahead import ReadAhead, RequestQueue
from dataporter.engines.engine import Reply, Usage, refuse_inherited
from dataporter.engines.options import WorkerOptions
from dataporter.errors import WorkerTimeoutError, warn
from dataporter.fetch.fetch import Fetch
from dataporter.schedule.request import Scheduled
from dataporter.seeding.generators import GENERATORS, saved_generators

__all__ = ["ThreadEngine"]

# How long the program's end waits for batches that threads are reading.
_LAST_GRACE = 5.0  # s


class ThreadEngine:
    """For datasets whose reads release Python's lock: decoding, or waiting for a disk.

    Args:
        build_fetch: builds a fetch that seeds no global generator, since threads share those.
        pin: moves a batch to page-locked memory, or returns it as it is.
        options: how to run the threads; ``restarts`` and ``context`` do not apply.
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

    def start(
        self, requests: Iterable[Scheduled], ahead: Iterable[Scheduled] | None
    ) -> Iterator[Reply]:
        pool = self._pool
        if pool is None or self._owner != os.getpid():  # threads do not survive a fork
            pool = _Threads(self._options.num_workers)
            weakref.finalize(self, pool.close)
            self._pool, self._owner = pool, os.getpid()
        serve = _Serve(self._build_fetch(), self._options.worker_init_fn)
        queue: RequestQueue[_Task] = RequestQueue(requests)
        return _Pass(self, pool, serve, queue, self._pin, self._options)

    def usage(self) -> Usage:
        return Usage()


class _Threads:
    """Threads that run tasks in the order in which they are submitted.

    Not a ``ThreadPoolExecutor``: when Python exits, it waits for all tasks that were submitted,
    before their owner can cancel them. Here it waits for those that have begun, for a while at
    most, since a thread that is ended within torch takes the process down with it (SIGABRT).
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        for number in range(count):
            name = f"dataporter_{number}"
            thread = threading.Thread(target=_run, args=(self._tasks,), name=name, daemon=True)
            _RUNNING[thread] = self._tasks
            thread.start()

    def submit(self, serve: _Serve, scheduled: Scheduled) -> _Task:
        task = _Task(serve, scheduled)
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """End each thread once the tasks submitted so far are done, or cancelled by their owner."""
        for _ in range(self._count):
            self._tasks.put(None)


_RUNNING: weakref.WeakKeyDictionary[threading.Thread, SimpleQueue[_Task | None]] = (
    weakref.WeakKeyDictionary()
)
_EXITING = threading.Event()


@atexit.register
def _end_all() -> None:
    _EXITING.set()
    running, until = list(_RUNNING.items()), time.monotonic() + _LAST_GRACE
    for _, tasks in running:
        tasks.put(None)  # for a thread that waits for a task
    for thread, _ in running:
        thread.join(max(0.0, until - time.monotonic()))


def _run(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None and not _EXITING.is_set():
        if task.future.set_running_or_notify_cancel():
            try:
                task.future.set_result(task.serve(task.scheduled))
            except BaseException as error:
                task.future.set_exception(error)
        # Keep nothing of this task alive while waiting for the next.
        del task


class _Serve:
    """Fetches requests in whichever thread it is called."""

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


@dataclass(slots=True, eq=False)
class _Task:
    serve: _Serve
    scheduled: Scheduled
    future: Future[Reply] = field(default_factory=Future)


class _Pass(Iterator[Reply]):
    def __init__(
        self,
        engine: ThreadEngine,
        pool: _Threads,
        serve: _Serve,
        queue: RequestQueue[_Task],
        pin: Callable[[Any], Any],
        options: WorkerOptions,
    ) -> None:
        # The threads end with the engine, so keep it alive until this pass is over.
        self._engine = engine
        self._pool = pool
        self._serve = serve
        self._queue = queue
        self._ahead = ReadAhead(
            queue,
            None,
            limit=options.num_workers * options.prefetch_factor,
            in_order=options.in_order,
        )
        self._pin = pin
        self._timeout = options.timeout or None
        self._watched = False
        self._owner = os.getpid()

    def __next__(self) -> Reply:
        refuse_inherited(self._owner)
        if self._watched:
            reply = self._next()
        else:
            self._watched = True
            before = saved_generators()
            reply = self._next()
            # The training loop has waited meanwhile, so it was our threads that drew.
            _warn_of_draws(before, saved_generators())
        if reply.fetched is None:
            return reply
        pinned = self._pin(reply.fetched.batch)
        return reply._replace(fetched=reply.fetched._replace(batch=pinned))

    def __del__(self) -> None:
        self._queue.discard(lambda task: task.future.cancel())

    def _next(self) -> Reply:
        task = self._ahead.take(self._submit, self._done)
        if task is None:
            raise StopIteration
        return task.future.result()

    def _submit(self, scheduled: Scheduled, queue: RequestQueue[_Task]) -> _Task:
        return self._pool.submit(self._serve, scheduled)

    def _done(self, tasks: Sequence[_Task]) -> _Task:
        """Wait until one of the tasks is done."""
        done, _ = wait([task.future for task in tasks], self._timeout, FIRST_COMPLETED)
        if not done:
            raise WorkerTimeoutError(
                f"DataLoader timed out after {self._timeout} seconds: a thread has not returned "
                f"{tasks[0].scheduled.request.described()}; raise timeout=, or find out why the "
                "dataset hangs"
            )
        return next(task for task in tasks if task.future in done)


def _warn_of_draws(before: tuple[Any, ...], after: tuple[Any, ...]) -> None:
    states = zip(GENERATORS, before, after)
    drawn = [generator.name for generator, was, now in states if was != now]
    if drawn:
        warn(
            f"with worker_kind='thread', the dataset draws from {' and '.join(drawn)}, which all "
            "threads and the training loop share. It cannot be seeded for each sample, so a resume "
            "is not exact: draw from dataporter.sample_rng(), or use worker_kind='process'",
            RuntimeWarning,
        )
