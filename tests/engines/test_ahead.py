"""Reading ahead: the order of delivery, the limit, failures in their turn, and the next pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataporter.engines.ahead import ReadAhead, RequestQueue
from dataporter.schedule.request import Request, Scheduled


@dataclass(frozen=True)
class Requests:
    """The requests of an epoch; drawing the one after ``fails_after`` of them fails."""

    epoch: int
    length: int
    fails_after: int | None = None

    def __iter__(self) -> Iterator[Scheduled]:
        # Not a generator, which would end with its failure.
        return map(self._scheduled, range(self.length))

    def _scheduled(self, step: int) -> Scheduled:
        if step == self.fails_after:
            raise LookupError(f"no step {step}")
        return Scheduled(Request(0, self.epoch, step, [], []), None)  # type: ignore[arg-type]


Ticket = tuple[int, int]  # epoch, step


class Workers:
    """Records what is submitted and forgotten, and answers in an order that the test draws."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.submitted: list[Ticket] = []
        self.outstanding: list[Ticket] = []
        self.forgotten: list[Ticket] = []
        self.most_outstanding = 0
        self.offered: list[int] = []

    def submit(self, scheduled: Scheduled, queue: RequestQueue[Ticket]) -> Ticket:
        ticket = scheduled.request.epoch, scheduled.request.step
        assert queue.submitted == ticket[1]
        self.submitted.append(ticket)
        self.outstanding.append(ticket)
        self.most_outstanding = max(self.most_outstanding, len(self.outstanding))
        return ticket

    def wait(self, tickets: Sequence[Ticket]) -> Ticket:
        assert set(tickets) <= set(self.outstanding)
        self.offered.append(len(tickets))
        ticket = self.data.draw(st.sampled_from(list(tickets)))
        self.outstanding.remove(ticket)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        self.outstanding.remove(ticket)
        self.forgotten.append(ticket)

    def take(self, ahead: ReadAhead[Ticket]) -> Ticket | None:
        return ahead.take(self.submit, self.wait)

    def take_all(self, ahead: ReadAhead[Ticket]) -> list[Ticket]:
        return list(iter(lambda: self.take(ahead), None))


def read_ahead(
    current: Requests, following: Requests | None = None, *, limit: int = 4, in_order: bool = True
) -> ReadAhead[Ticket]:
    return ReadAhead(RequestQueue(current), following, limit=limit, in_order=in_order)


def steps(epoch: int, stop: int) -> list[Ticket]:
    return [(epoch, step) for step in range(stop)]


lengths, limits = st.integers(0, 12), st.integers(1, 5)


@given(lengths, limits, st.booleans(), st.data())
def test_every_request_is_delivered_once_and_in_order_if_that_is_asked_for(
    length: int, limit: int, in_order: bool, data: st.DataObject
) -> None:
    workers = Workers(data)
    found = workers.take_all(read_ahead(Requests(0, length), limit=limit, in_order=in_order))
    assert (found if in_order else sorted(found)) == steps(0, length)
    assert workers.submitted == steps(0, length)


@given(lengths, lengths, limits, st.booleans(), st.data())
def test_both_passes_together_use_the_limit_and_never_exceed_it(
    length: int, later: int, limit: int, in_order: bool, data: st.DataObject
) -> None:
    workers = Workers(data)
    ahead = read_ahead(Requests(0, length), Requests(1, later), limit=limit, in_order=in_order)
    for taken in range(1, length + 1):
        assert workers.take(ahead) is not None
        # As many as possible, and those of the next pass last.
        assert workers.submitted == (steps(0, length) + steps(1, later))[: taken + limit]
    assert workers.most_outstanding <= limit


@given(st.integers(2, 12), limits, st.data())
def test_the_first_outstanding_request_is_waited_for_or_any_of_the_pass_without_in_order(
    length: int, limit: int, data: st.DataObject
) -> None:
    anything, first = Workers(data), Workers(data)
    anything.take_all(read_ahead(Requests(0, length), Requests(1, 9), limit=limit, in_order=False))
    first.take_all(read_ahead(Requests(0, length), Requests(1, 9), limit=limit))
    assert anything.offered == [min(limit, length - taken) for taken in range(length)]
    assert first.offered == [1] * length


@given(st.data(), st.integers(1, 12), limits, st.booleans())
def test_a_failing_sampler_is_reported_after_the_batches_before_it(
    data: st.DataObject, length: int, limit: int, in_order: bool
) -> None:
    workers, fails_after = Workers(data), data.draw(st.integers(0, length - 1))
    requests = Requests(0, length, fails_after)
    ahead = read_ahead(requests, limit=limit, in_order=in_order)
    found = [workers.take(ahead) for _ in range(fails_after)]
    assert sorted(ticket for ticket in found if ticket) == steps(0, fails_after)
    with pytest.raises(LookupError, match=f"no step {fails_after}"):
        workers.take(ahead)
    assert workers.outstanding == []
    assert workers.take(ahead) is None


@given(lengths, lengths, limits, st.booleans(), st.data())
def test_what_was_read_ahead_is_kept_if_the_next_pass_asks_for_it_and_forgotten_otherwise(
    length: int, taken: int, limit: int, is_asked_for: bool, data: st.DataObject
) -> None:
    workers = Workers(data)
    following = Requests(1, 6)
    ahead = read_ahead(Requests(0, length), following, limit=limit)
    for _ in range(min(taken, length)):
        workers.take(ahead)
    outstanding, submitted = set(workers.outstanding), len(workers.submitted)
    of_following = {ticket for ticket in outstanding if ticket[0] == 1}
    # Equal requests, not the same object.
    wanted = Requests(1, 6) if is_asked_for else Requests(7, 6)
    queue = ahead.hand_over(wanted, workers.forget)
    kept = of_following if is_asked_for else set()
    assert set(queue.tickets) == kept == set(workers.outstanding)
    assert set(workers.forgotten) == outstanding - kept
    assert len(workers.forgotten) == len(outstanding - kept)
    found = workers.take_all(ReadAhead(queue, None, limit=limit, in_order=True))
    assert found == steps(wanted.epoch, 6)
    assert len(workers.submitted) - submitted == 6 - len(kept), "none is submitted twice"


def test_without_a_following_pass_nothing_is_read_beyond_the_end() -> None:
    submitted: list[int] = []

    def submit(scheduled: Scheduled, queue: RequestQueue[int]) -> int:
        submitted.append(scheduled.request.step)
        return submitted[-1]

    ahead = ReadAhead(RequestQueue[int](Requests(0, 3)), None, limit=8, in_order=True)
    assert list(iter(lambda: ahead.take(submit, lambda tickets: tickets[0]), None)) == [0, 1, 2]
    assert submitted == [0, 1, 2]


def test_peek_leaves_the_request_to_be_submitted() -> None:
    queue: RequestQueue[int] = RequestQueue(Requests(0, 3))
    first = queue.peek()
    assert first is not None
    assert first.request.step == 0
    queue.fill(9, lambda scheduled, _: scheduled.request.step)
    assert list(queue.tickets) == [0, 1, 2]
    assert queue.peek() is None


def test_a_failure_in_the_next_pass_s_requests_is_raised_in_that_pass() -> None:
    ahead = read_ahead(Requests(0, 2), Requests(1, 6, fails_after=1), limit=8)

    def submit(scheduled: Scheduled, queue: RequestQueue[Ticket]) -> Ticket:
        return scheduled.request.epoch, scheduled.request.step

    def take(ahead: ReadAhead[Ticket]) -> Ticket | None:
        return ahead.take(submit, lambda tickets: tickets[0])

    assert [take(ahead) for _ in range(3)] == [(0, 0), (0, 1), None]
    queue = ahead.hand_over(Requests(1, 6, fails_after=1), print)
    following = ReadAhead(queue, None, limit=8, in_order=True)
    assert take(following) == (1, 0)
    with pytest.raises(LookupError, match="no step 1"):
        take(following)
