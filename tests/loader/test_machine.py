"""Any sequence of calls: a loader against a model of contracts C1 to C3 without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from budgets import cases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from subjects import Augmented, digest

from dataporter import ConfigurationError, ResumableDataLoader

LENGTH, BATCH_SIZE = 11, 3
STEPS = 4
ENDED = STEPS + 1  # the step of a pass that has raised StopIteration


def build(strategy: str) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(
        Augmented(LENGTH), BATCH_SIZE, shuffle=True, seed=5, strategy=strategy
    )


def expected_stream(strategy: str, epochs: int) -> list[list[str]]:
    loader = build(strategy)
    return [[digest(batch) for batch in loader] for _ in range(epochs)]


EPOCHS = 40
STREAMS = {strategy: expected_stream(strategy, EPOCHS) for strategy in ("simple", "advanced")}


class Calls(RuleBasedStateMachine):
    """The model: an epoch, a step, whether a pass has begun on them, and which pass moves them."""

    @initialize(strategy=st.sampled_from(sorted(STREAMS)))
    def start(self, strategy: str) -> None:
        self.strategy = strategy
        self.loader = build(strategy)
        self.epoch, self.step, self.begun, self.again = 0, 0, False, False
        self.mover: int | None = None
        # Each pass: its iterator, and where it began; None until its first next().
        self.passes: list[tuple[Iterator[Any], tuple[int, int] | None]] = []
        self.saved: list[tuple[dict[str, Any], int, int]] = []
        self.revoked: set[int] = set()

    def jump(self, epoch: int, step: int) -> None:
        self.epoch, self.step, self.begun, self.mover = epoch, step, False, None
        self.again = False

    def revoke(self) -> None:
        """The passes that have begun and not ended deliver nothing more."""
        for number, (_, place) in enumerate(self.passes):
            if place is not None and place[1] <= STEPS:
                self.revoked.add(number)

    @invariant()
    def the_loader_stands_where_the_model_does(self) -> None:
        if hasattr(self, "loader"):
            assert (self.loader.epoch, self.loader.step) == (self.epoch, self.step)
            assert self.loader.remaining == STEPS - self.step

    @rule()
    def iterate(self) -> None:
        self.passes.append((iter(self.loader), None))

    @precondition(lambda self: self.passes and self.epoch < EPOCHS - 2)
    @rule(data=st.data())
    def ask_for_a_batch(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.passes) - 1))
        batches, place = self.passes[number]
        if number in self.revoked:
            with pytest.raises(ConfigurationError, match="this iterator began before"):
                next(batches)
            return
        if place is None:
            if self.begun:
                self.epoch, self.step, self.begun = self.epoch + (not self.again), 0, False
            self.again = False
            place, self.mover = (self.epoch, self.step), number
        epoch, step = place
        batch = next(batches, None)
        if step == ENDED:
            assert batch is None
        elif step == STEPS:
            assert batch is None
            if self.mover == number:
                self.jump(epoch + 1, 0)
            step = ENDED
        else:
            assert digest(batch) == STREAMS[self.strategy][epoch][step]
            step += 1
            if self.mover == number:
                self.step, self.begun = step, True
        self.passes[number] = (batches, (epoch, step))

    @rule()
    def save(self) -> None:
        self.saved.append((self.loader.state_dict(), self.epoch, self.step))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def load(self, data: st.DataObject, fresh: bool) -> None:
        state, epoch, step = data.draw(st.sampled_from(self.saved))
        if fresh:
            self.loader, self.passes, self.revoked = build(self.strategy), [], set()
        self.loader.load_state_dict(state)
        self.jump(epoch, step)
        self.revoke()
        assert self.loader.state_dict() == state

    @rule(epoch=st.integers(0, 4))
    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)
        if epoch != self.epoch:
            self.jump(epoch, 0)
        elif self.begun:
            self.again = True

    @rule(epoch=st.integers(0, 4), step=st.integers(0, STEPS))
    def seek(self, epoch: int, step: int) -> None:
        self.loader.seek(epoch=epoch, step=step)
        self.jump(epoch, step)
        self.revoke()


Calls.TestCase.settings = settings(max_examples=cases(150), stateful_step_count=40)
test_any_sequence_of_calls_keeps_the_contracts = Calls.TestCase
