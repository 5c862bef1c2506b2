"""Resume: any program, saved and loaded anywhere, does what it does without an interruption (C2).

The same program runs on a loader that is never interrupted and on one that is thrown away and
loaded again into a new one, with other workers or in another world. A state that was taken in a
pass resumes that pass, also where its loop was left: so there the pass of the other loader is kept,
and continued. A custom sampler with memory and without a state may be refused instead.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
from budgets import cases
from example_samplers import LENGTH, PATTERNS, part_with_epoch
from example_streams import KINDS as STREAMS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from subjects import Augmented, Indices, digest

from dataporter import DataPorterError, ResumableDataLoader, sample_rng

# What people who leave passes, or discard positions, are told.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

END = "the end"
EPOCHS = 6
GLOBAL_BATCH = 12


class Explicit(Indices):
    """Draws as threads may."""

    def __getitem__(self, index: int) -> Any:
        return index, sample_rng().random()


@dataclass(frozen=True)
class Kind:
    """How a loader is built, and what may change when it is built again.

    Attributes:
        arguments: of the loader; with a custom sampler, a new one each time.
        workers: the numbers of workers that a resume may change to.
        worlds: the numbers of ranks that share each global batch.
        epochs: the custom sampler has ``set_epoch``.
        memory: a resume may be refused.
        moves: the custom sampler keeps its place, so that each look at it counts.
        steps: ``seek`` reaches any step.
        processes: the workers are processes.
    """

    arguments: Callable[[], dict[str, Any]]
    workers: tuple[int, ...] = (0,)
    worlds: tuple[int, ...] = (1,)
    planned: bool = False
    epochs: bool = False
    memory: bool = False
    moves: bool = False
    steps: bool = True
    processes: bool = False


def _planned(**arguments: Any) -> Kind:
    def build() -> dict[str, Any]:
        return {"dataset": Explicit(LENGTH), "batch_size": 3, "seed": 7, **arguments}

    return Kind(build, workers=(0, 1, 3), planned=True)


def _shared_out(tail: str) -> Kind:
    def build() -> dict[str, Any]:
        return {"dataset": Explicit(41), "shuffle": True, "seed": 7, "tail": tail}

    return Kind(build, worlds=(1, 2, 3, 4, 6), planned=True)


def _sampled(name: str) -> Kind:
    pattern = PATTERNS[name]

    def build() -> dict[str, Any]:
        return {"dataset": Explicit(LENGTH), "seed": 7, **pattern.arguments()}

    return Kind(
        build,
        workers=(0,) if pattern.memory else (0, 1, 3),
        epochs=pattern.epochs,
        memory=pattern.memory and not pattern.state,
        moves=pattern.memory,
        steps=not pattern.memory,
    )


def _stream(name: str) -> Kind:
    def build() -> dict[str, Any]:
        return {"dataset": STREAMS[name](LENGTH), "batch_size": 3, "seed": 7}

    return Kind(build, steps=False, processes=True)


KINDS: dict[str, Kind] = {
    "sequential": _planned(),
    "shuffled": _planned(shuffle=True),
    "simple": _planned(shuffle=True, strategy="simple", drop_last=True),
    "blocks": _planned(order="blocks"),
    "torch": _planned(order="torch"),
    "augmented": Kind(
        lambda: {"dataset": Augmented(LENGTH), "batch_size": 2, "shuffle": True, "seed": 7},
        planned=True,
    ),
    "shared out, uneven": _shared_out("uneven"),
    "shared out, drop": _shared_out("drop"),
    # Those with an epoch or a memory are saved at every step in test_custom_samplers.py: what a
    # program sets on a sampler after a load may not be what it had set before.
    **{
        f"sampler {name}": _sampled(name)
        for name, pattern in PATTERNS.items()
        if not (pattern.epochs or pattern.memory)
    },
    **{f"stream {name}": _stream(name) for name in STREAMS},
}


# ---- the two sides


class Team:
    """The loaders of all ranks, which deliver global batches."""

    def __init__(self, kind: Kind, limit: int | None, workers: int, world_size: int) -> None:
        worker_kind = "process" if kind.processes else "thread"

        def build(rank: int) -> ResumableDataLoader[Any]:
            arguments = kind.arguments()
            if len(kind.worlds) > 1:
                arguments["batch_size"] = GLOBAL_BATCH // world_size
                arguments |= {"rank": rank, "world_size": world_size, "strategy": "distributed"}
            if limit is not None:
                arguments["steps_per_epoch"] = limit
            return ResumableDataLoader(**arguments, num_workers=workers, worker_kind=worker_kind)

        self.loaders = [build(rank) for rank in range(world_size)]
        self.in_sets = len(kind.worlds) > 1

    def __iter__(self) -> Any:
        return TeamPass(self, [iter(loader) for loader in self.loaders])

    def shown(self, batches: list[Any]) -> Any:
        if not self.in_sets:
            return digest(batches[0])
        rows = [zip(*(leaf.tolist() for leaf in batch)) for batch in batches]
        return sorted(row for each in rows for row in each)

    def peek(self) -> Any:
        return self.shown([loader.peek() for loader in self.loaders])

    def epochs(self, stop: int) -> Iterator[int]:
        for epochs in zip(*(loader.epochs(stop) for loader in self.loaders), strict=True):
            assert len(set(epochs)) == 1
            yield epochs[0]

    def set_epoch(self, epoch: int) -> None:
        for loader in self.loaders:
            loader.set_epoch(epoch)

    def seek(self, epoch: int, step: int) -> None:
        for loader in self.loaders:
            loader.seek(epoch=epoch, step=step)

    def state_dict(self) -> dict[str, Any]:
        states = [loader.state_dict() for loader in self.loaders]
        assert all(state == states[0] for state in states)
        return states[0]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for loader in self.loaders:
            loader.load_state_dict(state)

    @property
    def place(self) -> tuple[int, int]:
        return self.loaders[0].epoch, self.loaders[0].step


class TeamPass:
    def __init__(self, team: Team, iterators: list[Any]) -> None:
        self.team, self.iterators = team, iterators

    def __next__(self) -> Any:
        batches = [next(iterator, END) for iterator in self.iterators]
        present = [batch for batch in batches if not isinstance(batch, str)]
        if not present:
            raise StopIteration
        return self.team.shown(present)


class Pass:
    def __init__(self, broken: TeamPass | None) -> None:
        self.straight: Any = None
        self.broken: Any = broken
        self.begun = self.read = self.ended = self.left = False

    def leave(self) -> None:
        """The loop is left, and its iterator is gone; the other side keeps its own."""
        self.left, self.broken = True, None


def did(act: Callable[[], Any]) -> Any:
    """What a call gave, or the type of the error of ours that it raised."""
    try:
        return act()
    except StopIteration:
        return END
    except DataPorterError as error:
        return Refused(type(error), str(error))


class Refused:
    def __init__(self, kind: type, text: str) -> None:
        self.kind, self.text = kind, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Refused) and other.kind is self.kind

    def __repr__(self) -> str:
        return f"{self.kind.__name__}({self.text!r})"


class Programs(RuleBasedStateMachine):
    kinds: ClassVar[dict[str, Kind]] = KINDS

    @initialize(data=st.data(), limit=st.sampled_from([None, None, 2, 3]))
    def start(self, data: st.DataObject, limit: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.kinds)))
        self.kind, self.limit = self.kinds[name], limit
        self.begin_anew()

    def begin_anew(self) -> None:
        kind = self.kind
        self.straight = Team(kind, self.limit, 0, kind.worlds[0])
        self.broken = Team(kind, self.limit, 0, kind.worlds[0])
        self.passes: list[Pass] = []
        # The pass that moves the position, and whether it waits in a loaded state.
        self.latest: Pass | None = None
        self.waiting = False
        self.was_loaded = False
        # The epoch of the sampler in the pass under way; what the program has set since the pass
        # began; what is to be set again once a loaded pass is under way.
        self.epoch_in_pass: int | None = None
        self.unread: list[tuple[int, bool]] = []
        self.again: list[tuple[int, bool]] = []
        # A loop over epochs(): the generators of both sides, and the epoch whose body runs.
        self.outer: tuple[Any, Any] | None = None
        self.body: Any = None
        self.body_done = False

    @property
    def under_way(self) -> bool:
        return self.latest is not None and not self.latest.ended

    @invariant()
    def both_stand_at_the_same_place(self) -> None:
        if hasattr(self, "straight"):
            assert self.broken.place == self.straight.place

    def may_be_refused(self, outcome: Any) -> bool:
        return isinstance(outcome, Refused) and self.kind.memory and self.was_loaded

    # ---- passes

    @rule()
    def iterate(self) -> None:
        self.passes.append(Pass(iter(self.broken)))

    def ask(self, this_pass: Pass) -> bool:
        """Whether the program can continue; otherwise it was refused, and has begun anew."""
        if not this_pass.begun:
            this_pass.begun = True
            if self.waiting:
                assert self.latest is not None
                this_pass.straight = self.latest.straight
                self.again = [*self.unread]
            else:
                this_pass.straight = iter(self.straight)
            self.latest = this_pass
        straight = did(lambda: next(this_pass.straight))
        broken = did(lambda: next(this_pass.broken))
        if self.may_be_refused(broken):
            self.begin_anew()
            return False
        assert broken == straight
        if this_pass is self.latest:
            self.body_done = self.body_done or straight == END
            if self.waiting:
                for epoch, on_the_loader in self.again:
                    set_epoch(self.broken, epoch, on_the_loader)
            elif self.unread and not this_pass.read:
                self.unread = []
            if not self.waiting and not this_pass.read:
                self.epoch_in_pass = epoch_of(self.straight)
            self.waiting, self.again, this_pass.read = False, [], True
        this_pass.ended = this_pass.ended or straight == END
        return True

    @precondition(lambda self: self.passes)
    @rule(data=st.data(), times=st.integers(1, 5))
    def ask_for_batches(self, data: st.DataObject, times: int) -> None:
        this_pass = self.passes[data.draw(st.integers(0, len(self.passes) - 1))]
        if self.outer and self.body_done and not this_pass.begun:
            return  # a body reads its epoch once
        for _ in range(times):
            if not self.ask(this_pass):
                break

    @precondition(lambda self: self.passes)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.passes.pop(data.draw(st.integers(0, len(self.passes) - 1))).leave()

    @precondition(lambda self: not (self.outer and self.body_done))
    @rule(most=st.sampled_from([1, 2, 9]))
    def read_a_pass(self, most: int) -> None:
        """A look at the first batch, a few batches, or the whole pass."""
        this_pass = Pass(iter(self.broken))
        for _ in range(most):
            if not self.ask(this_pass) or this_pass.ended:
                break
        this_pass.leave()

    @precondition(
        lambda self: (
            (not self.under_way or self.waiting or not self.latest.left)
            and all(each.begun for each in self.passes)
            and not self.kind.moves
        )
    )
    @rule()
    def peek(self) -> None:
        straight, broken = did(self.straight.peek), did(self.broken.peek)
        if self.may_be_refused(broken):
            self.begin_anew()
            return
        assert broken == straight
        if not self.kind.planned and not self.under_way and not isinstance(straight, Refused):
            # A pass has begun, which the next iter() continues.
            self.latest, self.unread = None, []

    # ---- the position is set

    @precondition(lambda self: not self.outer)
    @rule(epoch=st.integers(0, 3), on_the_loader=st.booleans())
    def set_epoch(self, epoch: int, on_the_loader: bool) -> None:
        on_the_loader = on_the_loader or not self.kind.epochs
        present = self.straight.place[0]
        if self.waiting:
            # The epoch of a loaded position leaves it where it is; see load().
            if epoch in (present, self.epoch_in_pass):
                return
            self.latest, self.waiting = None, False
        set_epoch(self.straight, epoch, on_the_loader)
        set_epoch(self.broken, epoch, on_the_loader)
        if on_the_loader and epoch != present:
            self.latest = None
        self.unread = [(epoch, on_the_loader)] if self.kind.epochs or self.under_way else []

    @precondition(lambda self: not self.outer and self.kind.steps)
    @rule(epoch=st.integers(0, 3), step=st.integers(0, 2))
    def seek(self, epoch: int, step: int) -> None:
        straight = did(lambda: self.straight.seek(epoch, step))
        assert did(lambda: self.broken.seek(epoch, step)) == straight
        if not isinstance(straight, Refused):
            self.passes, self.latest, self.waiting, self.unread = [], None, False, []

    # ---- loops over epochs

    @precondition(lambda self: not self.outer and not self.under_way)
    @rule()
    def start_a_loop_over_epochs(self) -> None:
        self.outer = self.straight.epochs(EPOCHS), self.broken.epochs(EPOCHS)
        self.enter_the_next_epoch()

    @precondition(lambda self: self.outer)
    @rule()
    def enter_the_next_epoch(self) -> None:
        straight, broken = self.outer
        epoch = did(lambda: next(straight))
        assert did(lambda: next(broken)) == epoch
        if epoch == END:
            self.outer = None
            return
        self.body, self.body_done = epoch, False
        self.latest, self.waiting, self.unread = None, False, []

    # ---- interruptions

    @rule(
        data=st.data(),
        lost=st.sampled_from([0, 0, 1, 3]),
        times=st.integers(1, 2),
        in_place=st.booleans(),
        sets_again=st.booleans(),
    )
    def load(
        self, data: st.DataObject, lost: int, times: int, in_place: bool, sets_again: bool
    ) -> None:
        state = did(self.broken.state_dict)
        if self.may_be_refused(state):
            self.begin_anew()
            return
        alive = [each.broken for each in self.passes if each.begun and not each.ended]
        if in_place and not self.outer and not self.kind.moves:
            team = self.broken
        else:
            alive, last = [], self.latest.broken if self.under_way and not self.waiting else None
            if lost:  # what was delivered after the save, and comes again
                last = iter(self.broken) if last is None else last
                for _ in range(lost):
                    did(lambda: next(last))
            workers = data.draw(st.sampled_from(self.kind.workers))
            world_size = data.draw(st.sampled_from(self.kind.worlds))
            team = Team(self.kind, self.limit, workers, world_size)
        self.was_loaded = True
        for _ in range(times):
            loaded = did(lambda: team.load_state_dict(json.loads(json.dumps(state))))
            if self.may_be_refused(loaded):
                self.begin_anew()
                return
            assert loaded is None
            if len(self.kind.worlds) == 1:
                assert team.state_dict() == state
        for iterator in alive:
            assert isinstance(did(partial(next, iterator)), Refused)
        self.broken, self.passes, self.waiting = team, [], self.under_way
        if not self.waiting:
            self.latest = None
            for epoch, on_the_loader in self.unread:
                set_epoch(self.broken, epoch, on_the_loader)
        elif sets_again and self.kind.epochs and self.epoch_in_pass is not None:
            set_epoch(self.broken, self.epoch_in_pass, on_the_loader=False)
        elif sets_again and not self.kind.epochs:
            set_epoch(self.broken, self.straight.place[0], on_the_loader=True)
        if self.outer:
            self.outer = self.outer[0], self.broken.epochs(EPOCHS)
            if not self.body_done:
                assert did(lambda: next(self.outer[1])) == self.body


def set_epoch(team: Team, epoch: int, on_the_loader: bool) -> None:
    for loader in team.loaders:
        (loader if on_the_loader else part_with_epoch(loader)).set_epoch(epoch)


def epoch_of(team: Team) -> int | None:
    return getattr(part_with_epoch(team.loaders[0]), "epoch", None)


Programs.TestCase.settings = settings(max_examples=cases(150), stateful_step_count=25)
test_any_interrupted_program_does_what_the_uninterrupted_one_does = Programs.TestCase


def _with_processes(name: str) -> Kind:
    kind = KINDS[name]
    workers = (0, 1)
    if not name.startswith("stream") or "shards" in name:
        workers = (0, 1, 3)

    def build() -> dict[str, Any]:
        arguments = kind.arguments()
        augmented = len(kind.worlds) == 1 and not name.startswith("stream")
        return {**arguments, **({"dataset": Augmented(LENGTH)} if augmented else {})}

    return replace(kind, arguments=build, workers=workers, processes=True)


class WithProcesses(Programs):
    """Resumes change the number of worker processes, in which samples draw."""

    kinds: ClassVar[dict[str, Kind]] = {
        name: _with_processes(name) for name, kind in KINDS.items() if not kind.memory
    }


WithProcesses.TestCase.settings = settings(max_examples=cases(25), stateful_step_count=12)
test_any_interrupted_program_with_worker_processes = pytest.mark.slow(WithProcesses.TestCase)
