"""Tasks: whatever a worker and the training process do at the same time, each is begun once."""

from __future__ import annotations

from collections import deque

from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from dataporter.engines.messages import Task, Withdrawal
from dataporter.engines.permits import Permits
from dataporter.engines.tasks import Tasks


class Both:
    """A worker and the training process, a step of either at a time."""

    def __init__(self, permits: Permits) -> None:
        self.permits = permits
        self.tasks = Tasks(permits)
        self.sent: deque[Task | Withdrawal] = deque()
        self.posted = 0
        self.given = False
        # As the training process knows them: it learns of a task's end with the next answer.
        self.asked: list[int] = []
        self.cancelled: list[int] = []
        self.begun: list[int] = []
        self.withdrawn: list[int] = []
        self.forgotten: list[int] = []
        self.ready: bool | None = None

    # ---- the training process, in which a permit and its message are two steps

    def give(self) -> None:
        if not self.given:
            self.permits.give()
            self.given = True

    def post(self) -> None:
        self.give()
        self.sent.append(Task(self.posted, None, [], [], self.cancelled))  # type: ignore[arg-type]
        self.asked.append(self.posted)
        self.posted, self.given, self.cancelled = self.posted + 1, False, []

    def withdraw(self) -> None:
        if not self.given and len(self.asked) > 1 and self.permits.take():
            self.withdrawn.append(self.asked.pop())
            self.sent.append(Withdrawal(self.withdrawn[-1]))

    def cancel(self) -> None:
        if not self.given:
            self.forgotten += self.asked[1:]
            self.cancelled += self.asked[1:]
            del self.asked[1:]

    def learn(self) -> None:
        if self.asked and self.asked[0] in self.begun:
            del self.asked[0]

    # ---- the worker

    def look(self) -> None:
        if self.ready is None:
            self.ready = self.tasks.is_ready()

    def receive(self) -> None:
        """All that has arrived; a worker that is not ready waits for some."""
        if self.ready is None or not (self.ready or self.sent):
            return
        while self.sent:
            self.tasks.receive(self.sent.popleft())
        if (task := self.tasks.begin()) is not None:
            self.begun.append(task.ticket)
        self.ready = None


STEPS = (
    *(Both.give, Both.post, Both.post, Both.withdraw, Both.withdraw, Both.cancel, Both.learn),
    *(Both.look, Both.look, Both.receive, Both.receive),
)


@given(st.lists(st.sampled_from(STEPS), min_size=40, max_size=80))
@settings(max_examples=cases(2000))
def test_each_task_is_begun_once_unless_it_is_withdrawn_or_cancelled(steps: list[object]) -> None:
    permits = Permits()
    try:
        both = Both(permits)
        for step in steps:
            step(both)  # type: ignore[operator]
        both.post()
        for _ in range(3 * both.posted + 3):
            both.look(), both.receive()
        assert both.begun == sorted(set(both.begun))
        assert not set(both.begun) & set(both.withdrawn)
        assert set(range(both.posted)) - set(both.forgotten) <= set(both.begun + both.withdrawn)
    finally:
        permits.close()
