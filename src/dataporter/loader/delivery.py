"""Delivery: `next()` gives a batch to the training loop, and only then it counts (C1, C3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

from torch.autograd.profiler import record_function

from dataporter._torch import is_profiled
from dataporter.engines.engine import Reply
from dataporter.errors import ConfigurationError
from dataporter.fetch.failure import Failure
from dataporter.fetch.fetched import Fetched, PassEnd
from dataporter.loader.cursor import Cursor
from dataporter.loader.failures import Reporter
from dataporter.loader.pass_time import PassTime
from dataporter.loader.together import Ahead, Settle

__all__ = ["Adapter", "Delivery"]

Batch = TypeVar("Batch")


class Adapter(Protocol):
    """A framework's part in the passes of a loader that it drives."""

    @property
    def gathers_state(self) -> bool:
        """Whether ``state_dict()`` joins the ranks' parts by default."""

    def passes(self, batches: Delivery[Any]) -> Iterator[Any]:
        """A pass on its way to the training loop."""


class Delivery(Generic[Batch], Iterator[Batch]):
    """One pass of the training loop over a loader: the iterator of ``iter(loader)``.

    Args:
        cursor: is moved by what this pass delivers.
        begin: settles where this pass begins and starts an engine on it. Called at the first
            ``next()``, so that an epoch set between ``iter()`` and ``next()`` counts.
        check_peeked: is called at the first ``next()`` of a pass that :meth:`peek` has begun; may
            move the cursor, so that the pass begins anew.
        begin_over: is called where a pass ends before its first batch. If the pass had begun at the
            end of the data, it begins at their start instead, with the replies that this returns.
        length: the ``len()`` of this iterator.
        note: receives each batch before it is delivered, and may refuse it by raising.
        on_nothing: is called at the end of a pass that has delivered nothing.
        reporter: reports the samples that failed, once their batches are delivered.
        time: counts how long the loop waits.
        settle: settles with the other ranks what is next on all of them; None where each rank ends
            by itself.
    """

    def __init__(
        self,
        cursor: Cursor[Any],
        begin: Callable[[object], Iterator[Reply]],
        check_peeked: Callable[[], None],
        begin_over: Callable[[object], Iterator[Reply] | None],
        length: Callable[[], int],
        note: Callable[[Fetched], None],
        on_nothing: Callable[[], None],
        reporter: Reporter,
        time: PassTime,
        settle: Settle | None = None,
    ) -> None:
        self._cursor = cursor
        self._begin = begin
        self._check_peeked = check_peeked
        self._begin_over = begin_over
        self._length = length
        self._note = note
        self._on_nothing = on_nothing
        self._reporter = reporter
        self._time = time
        self._settle_with_ranks = settle
        # Represents this pass to the cursor, which must not keep a forgotten iterator alive.
        self._pass = object()
        self._replies: Iterator[Reply] | None = None
        # What was looked at before its turn, and whether the ranks have settled it.
        self._ahead: Ahead | None = None
        self._ahead_is_settled = False
        # What failed batches would have delivered, and their samples that failed.
        self._failed: list[tuple[Any, tuple[Failure, ...]]] = []
        # The failures of a stream that no batch has reported.
        self._left: tuple[Failure, ...] = ()
        self._judged = False
        self._broken = False
        self._over = False
        self._settled = False
        self._delivered = 0
        self._revoked = cursor.revoked

    def __next__(self) -> Batch:
        asked = perf_counter()
        try:
            if is_profiled():
                with record_function("enumerate(DataLoader)#ResumableDataLoader.__next__"):
                    return self._next()
            return self._next()
        finally:
            self._time.count(asked, self._delivered)

    def _next(self) -> Batch:
        replies = self._settle()
        try:
            reply = self._upcoming(replies)
        except StopIteration as end:
            closing = end.value or PassEnd()
            self._left += closing.failures
            self._cursor.close(self._pass, closing.delivers)
            if self._has_begun_over():
                return self._next()
            if self.under_way and not self._delivered:
                self._on_nothing()
            # Ends for good, whichever pass the workers serve next.
            self._replies, self._over = iter(()), True
            if not self._broken:
                self._finish()
            raise
        except BaseException:
            # The engine or a custom sampler failed: this pass is over, but its epoch is not.
            self._replies, self._broken = iter(()), True
            raise
        try:
            return self._deliver(reply)
        finally:
            # A failure's traceback holds this frame. With the failure in the frame, that is a
            # cycle, which keeps the workers until the garbage collector runs, and stalls it
            # for 5 s each.
            del reply

    def __len__(self) -> int:
        return self._length()

    @property
    def delivered_before(self) -> int:
        """Samples of the epoch that were delivered before this pass began to deliver."""
        delivered: int = self._cursor.origin.delivered
        return delivered

    @property
    def under_way(self) -> bool:
        """Whether this pass has begun, moves the loader's position and may have batches left."""
        ended = self._over or self._broken or self._replies is None
        return not ended and not self.superseded

    @property
    def superseded(self) -> bool:
        """Whether this pass has begun and no longer moves the loader's position."""
        return self._replies is not None and not self._cursor.is_moved_by(self._pass)

    def exhausted(self) -> bool:
        """Whether no batch is left. Waits for the next one, which stays undelivered.

        Where the ranks stop together, all of them call this: no batch is left where one has none.
        """
        if self._replies is None:
            return False
        asked = perf_counter()
        try:
            self._look_ahead(self._replies)
            self._settle_ahead()
        finally:
            self._time.count(asked, self._delivered)
        return isinstance(self._ahead, StopIteration)

    def peek(self) -> Reply | None:
        """The reply that ``next()`` will deliver, unless another rank has none; None at the end.
        Begins the pass, and asks no other rank.
        """
        self._look_ahead(self._begun())
        if isinstance(self._ahead, StopIteration):
            asks = self._settle_with_ranks is not None
            return None if asks or not self._has_begun_over() else self.peek()
        if isinstance(self._ahead, BaseException):
            raise self._ahead
        return self._ahead

    def _settle(self) -> Iterator[Reply]:
        if self._replies is not None and not self._settled:
            self._check_peeked()
            if self.superseded:
                self._replies = self._ahead = None
        replies, self._settled = self._begun(), True
        return replies

    def _begun(self) -> Iterator[Reply]:
        if self._replies is None:
            self._replies = self._begin(self._pass)
            self._revoked = self._cursor.revoked
        elif self._revoked != self._cursor.revoked and not (self._over or self._broken):
            raise ConfigurationError(
                "load_state_dict() or seek() has moved this loader to epoch "
                f"{self._cursor.progress.epoch}, step {self._cursor.progress.step}, but this "
                "iterator began before that, and would deliver batches of the old position: begin "
                "a new pass there, with iter(loader) or a for loop over the loader"
            )
        return self._replies

    def _has_begun_over(self) -> bool:
        unused = self.under_way and not self._delivered and not self._failed
        replies = self._begin_over(self._pass) if unused else None
        if replies is None:
            return False
        self._replies, self._ahead, self._ahead_is_settled = replies, None, False
        return True

    def _look_ahead(self, replies: Iterator[Reply]) -> None:
        if self._ahead is not None:
            return
        try:
            self._ahead = next(replies)
        except BaseException as failure:  # raised in its turn, also the end
            self._ahead = failure

    def _settle_ahead(self) -> None:
        """Let what is next on all ranks decide, once a step, and not after the end."""
        settle, ahead = self._settle_with_ranks, self._ahead
        if settle is None or ahead is None or self._ahead_is_settled or self._over or self._broken:
            return
        if isinstance(ahead, BaseException) and not isinstance(ahead, Exception):
            return  # Ctrl-C waits for nobody
        self._ahead, self._ahead_is_settled = settle(ahead), True

    def _upcoming(self, replies: Iterator[Reply]) -> Reply:
        if self._settle_with_ranks is not None:
            self._look_ahead(replies)
            self._settle_ahead()
        ahead, self._ahead, self._ahead_is_settled = self._ahead, None, False
        try:
            if isinstance(ahead, BaseException):
                raise ahead
            return next(replies) if ahead is None else ahead
        finally:
            del ahead  # as above: a failure's traceback must not hold the failure

    def _deliver(self, reply: Reply) -> Batch:
        failures: tuple[Failure, ...] = ()
        try:
            if reply.failure is not None:
                raise reply.failure
            assert reply.fetched is not None
            failures = reply.fetched.failures
            self._note(reply.fetched)
            self._check(failures, reply.delivers)
        except BaseException:
            # Not delivered: a state taken now resumes with this batch. Asking for the next one
            # passes it over.
            self._failed.append((reply.delivers, failures))
            raise
        finally:
            delivers, fetched = reply.delivers, reply.fetched
            del reply
        self._delivered += 1
        for passed_over in self._failed:
            self._count(*passed_over)
        self._failed.clear()
        self._count(delivers, failures)
        return fetched.batch  # type: ignore[no-any-return]  # the collate function makes a Batch

    def _check(self, failures: tuple[Failure, ...], delivers: Any) -> None:
        cursor = self._cursor
        if failures and cursor.is_moved_by(self._pass):
            earlier = [failure for _, failed in self._failed for failure in failed]
            ledger = cursor.ledger.after([*earlier, *failures])
            self._reporter.check(ledger, cursor.progress.after(delivers))

    def _count(self, delivers: Any, failures: tuple[Failure, ...]) -> None:
        if failures and self._cursor.is_moved_by(self._pass):
            self._reporter.take(failures)
        self._cursor.deliver(self._pass, delivers, failures)

    def _finish(self) -> None:
        """The end of the pass, which counts what no delivered batch has counted."""
        cursor = self._cursor
        if cursor.is_moved_by(self._pass):
            failed = [failure for _, failures in self._failed for failure in failures]
            left = (*failed, *self._left)
            # Once: who asks again after the error passes it over.
            if not self._judged:
                self._judged = True
                self._reporter.check(cursor.ledger.after(left), cursor.progress, at_end=True)
            self._failed.clear()
            self._left = ()
            if left:
                self._reporter.take(left)
            cursor.finish(self._pass, left)
            self._reporter.sum_up()
        else:
            cursor.finish(self._pass)
