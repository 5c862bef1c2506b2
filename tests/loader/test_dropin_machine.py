"""Drop-in: any program over a loader gives what it gives with torch's, or a documented error (C13).

Departures on purpose; each is a line of this file, and nothing else differs:

- A pass begins at its first ``next()``, and not at ``iter()``, so that a ``set_epoch`` in between
  counts (C3). Here torch's ``iter()`` is therefore called at the first ``next()`` (``Late``).
- ``order="torch"`` is the order of epochs that were read whole. torch's generator stands elsewhere
  after a pass that was left, by as many draws as were left; here all of them are drawn (``Whole``).
  With persistent worker processes it draws one number fewer in each later epoch; ours does not.
- The attribute ``generator`` of a custom sampler is seeded for each epoch after the first, so that
  an epoch can be resumed without those before it; torch's runs on. Of such an epoch only the sizes
  of its batches are compared, and that no sample comes twice (``rekeyed``).
- A copy of a loader in mid-pass stands where the pass does, and its first pass is the rest of it;
  torch's has no position. Here torch's copy skips that many batches.
- Persistent workers keep their ``collate_fn`` in both; torch's side has none here.
- ``peek()``, which torch has not, begins the pass of a custom sampler. Its batch is delivered as it
  was read, and a pass with other attributes is refused (``may_refuse``).
- One iterator at a time uses persistent worker processes. torch's begins anew under the feet of
  whoever still reads an earlier one; ours raises there (``ask``).
- A subclass that keeps one iterator over all epochs has torch begin it in the constructor, with the
  ``collate_fn`` of then for ever. Ours begins each epoch anew.
- Workers draw ahead, also from a sampler with memory, and a pass that is left has drawn more than
  it delivered: in torch as well, by its prefetching. With workers such passes are read whole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from budgets import cases
from example_samplers import LENGTH, PATTERNS, Pattern, part_with_epoch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, default_collate

from dataporter import DataPorterError, ResumableDataLoader

# What people who leave passes are told.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# Of an endless loader, or one that does not end by mistake.
MOST_BATCHES = 12
END = "the end"


# ---- what is read


class Shared(Dataset[Any]):
    """Its indices, and a value that the training changes for all processes."""

    def __init__(self) -> None:
        self.stage = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < LENGTH:
            raise IndexError(index)
        return index, int(self.stage)


def negated(samples: Any) -> Any:
    return default_collate([(-index, stage) for index, stage in samples])


# ---- subclasses that people have


class Repeating:
    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from iter(self.sampler)


def _endless(base: Any) -> Any:
    class EndlessLoader(base):  # type: ignore[misc]  # either class
        """One iterator over all epochs, so that the workers are kept."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            object.__setattr__(self, "batch_sampler", Repeating(self.batch_sampler))
            self.iterator = super().__iter__()

        def __len__(self) -> int:
            return len(self.batch_sampler.sampler)

        def __iter__(self) -> Iterator[Any]:
            for _ in range(len(self)):
                yield next(self.iterator)

    return EndlessLoader


def _endless_from_outside(base: Any) -> Any:
    class MultiEpochs(base):  # type: ignore[misc]  # either class
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._DataLoader__initialized = False
            self.batch_sampler = Repeating(self.batch_sampler)
            self._DataLoader__initialized = True
            self.iterator = super().__iter__()

        def __len__(self) -> int:
            return len(self.batch_sampler.sampler)

        def __iter__(self) -> Iterator[Any]:
            for _ in range(len(self)):
                yield next(self.iterator)

    return MultiEpochs


def _filtering(base: Any) -> Any:
    class Filtering(base):  # type: ignore[misc]  # either class
        """Puts a function around the iterator that the loader makes."""

        def _get_iterator(self) -> Iterator[Any]:
            return (("filtered", batch) for batch in super()._get_iterator())

    return Filtering


def _generating(base: Any) -> Any:
    class Generating(base):  # type: ignore[misc]  # either class
        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                yield "filtered", batch

    return Generating


SHAPES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda base: base,
    "endless": _endless,
    "endless, from outside": _endless_from_outside,
    "filtering": _filtering,
    "generating": _generating,
}


# ---- the two sides


class Whole:
    """A batch sampler of which a pass draws everything when it begins."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[Any]:
        yield from list(self.inner)


class Late:
    """torch's iterator, begun when ours begins its pass."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.skipped = loader, 0
        self.batches: Any = None

    def __next__(self) -> Any:
        if self.batches is None:
            self.batches = iter(self.loader)
            for _ in islice(self.batches, self.skipped):
                pass
        return next(self.batches)


class Pass:
    def __init__(self, theirs: Late, ours: Any) -> None:
        self.theirs, self.ours, self.left = theirs, ours, False
        self.begun = self.ended = self.delivered_all = self.compared_by_size = False
        # Its first or next batch was read by peek(), and something was set since.
        self.peeked = self.may_refuse = False
        self.workers = self.batches = 0
        self.seen: list[int] = []

    def leave(self) -> None:
        """The loop is left, and its iterator is gone."""
        self.left, self.ours = True, None


def shown(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [shown(item) for item in value] if isinstance(value, list | tuple) else value


def did(act: Callable[[], Any]) -> Any:
    """What a call gave; of an error its built-in type, and whether it is one of ours."""
    try:
        return shown(act())
    except StopIteration:
        return END
    except Exception as error:
        error.with_traceback(None)
        builtin = next(kind for kind in type(error).__mro__ if "dataporter" not in kind.__module__)
        return Raised(builtin, str(error), ours=isinstance(error, DataPorterError))


class Raised:
    def __init__(self, kind: type, text: str, *, ours: bool) -> None:
        self.kind, self.text, self.ours = kind, text, ours

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and other.kind is self.kind

    def __repr__(self) -> str:
        return f"{self.kind.__name__}({self.text!r})"


ORDERS: dict[str, Pattern] = {
    "none": Pattern(lambda: {"batch_size": 3}),
    "none, cut": Pattern(lambda: {"batch_size": 3, "drop_last": True}),
    "torch": Pattern(lambda: {"batch_size": 3}),
}
KINDS = {**ORDERS, **PATTERNS}


def arguments_of(kind: str, *, ours: bool) -> dict[str, Any]:
    arguments = KINDS[kind].arguments()
    if kind != "torch":
        return {**arguments, "seed": 0} if ours else arguments
    generator = torch.Generator().manual_seed(4)
    if ours:
        return {**arguments, "order": "torch", "generator": generator}
    sampler = RandomSampler(range(LENGTH), generator=generator)
    return {"batch_sampler": Whole(BatchSampler(sampler, 3, False)), "generator": generator}


class Programs(RuleBasedStateMachine):
    """The same program on torch's loader, which here has no workers, and on ours."""

    @initialize(
        kind=st.sampled_from(sorted(KINDS)),
        shape=st.sampled_from(["plain"] * 4 + sorted(set(SHAPES) - {"plain"})),
        workers=st.sampled_from([0, 0, 2]),
        persistent=st.booleans(),
    )
    def start(self, kind: str, shape: str, workers: int, persistent: bool) -> None:
        if kind in ("torch", "without batches") or KINDS[kind].rekeyed or KINDS[kind].endless:
            shape = "plain"
        threads = {"worker_kind": "thread", "num_workers": workers}
        self.build(kind, shape, {}, {**threads, "persistent_workers": persistent and workers > 0})

    def build(self, kind: str, shape: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
        self.name, self.pattern, self.shape = kind, KINDS[kind], shape
        self.theirs = SHAPES[shape](DataLoader)(
            Shared(), **arguments_of(kind, ours=False), **theirs
        )
        self.ours = SHAPES[shape](ResumableDataLoader)(
            Shared(), **arguments_of(kind, ours=True), **ours
        )
        self.passes: list[Pass] = []
        self.begun = 0
        # The pass that began last, and what the next one skips of torch's copy.
        self.latest: Pass | None = None
        self.skipped = 0
        self.wrote = False
        # The next pass was begun by peek(), and something was set since.
        self.peeked = self.may_refuse = False

    # ---- comparing

    def compare(self, this_pass: Pass, theirs: Any, ours: Any) -> None:
        if not this_pass.compared_by_size or END in (theirs, ours) or isinstance(ours, Raised):
            assert ours == theirs
            return
        indices = [abs(index) for index in ours[0]]
        assert len(indices) == len(theirs[0])
        assert ours[1] == theirs[1]
        this_pass.seen += indices
        assert len(set(this_pass.seen)) == len(this_pass.seen)

    def new_pass(self) -> Pass:
        new = Pass(Late(self.theirs), iter(self.ours))
        new.peeked, new.may_refuse = self.peeked, self.may_refuse
        self.peeked, self.may_refuse = False, False
        return new

    def ask(self, this_pass: Pass) -> None:
        ours = did(lambda: next(this_pass.ours))
        if isinstance(ours, Raised) and ours.ours and this_pass.may_refuse:
            assert not this_pass.begun
            return
        if not this_pass.begun:
            this_pass.begun, this_pass.workers = True, self.ours.num_workers
            this_pass.compared_by_size = self.pattern.rekeyed and self.begun > 0
            self.latest, self.wrote = this_pass, False
            self.begun += 1
            this_pass.theirs.skipped, self.skipped = self.skipped, 0
            self.peeked = self.may_refuse = False
        elif this_pass is not self.latest and self.theirs.persistent_workers:
            # torch's workers, and its iterator, serve the latest pass.
            assert ours == END if this_pass.delivered_all else ours.ours
            return
        this_pass.peeked = this_pass.may_refuse = False
        theirs = did(lambda: next(this_pass.theirs))
        self.compare(this_pass, theirs, ours)
        this_pass.ended = ours == END
        this_pass.batches += not this_pass.ended
        this_pass.delivered_all = this_pass.batches == did(lambda: len(self.ours))

    def something_was_set(self) -> None:
        self.may_refuse = self.peeked
        for each in self.passes:
            each.may_refuse = each.peeked

    @property
    def must_read_whole(self) -> bool:
        return self.pattern.memory and self.ours.num_workers > 0

    @property
    def is_mid_pass(self) -> bool:
        latest = self.latest
        return latest is not None and not latest.ended

    @precondition(lambda self: not self.must_read_whole)
    @rule()
    def iterate(self) -> None:
        self.passes.append(self.new_pass())

    @precondition(lambda self: self.passes)
    @rule(data=st.data(), times=st.integers(1, 5))
    def ask_for_batches(self, data: st.DataObject, times: int) -> None:
        this_pass = self.passes[data.draw(st.integers(0, len(self.passes) - 1))]
        for _ in range(times):
            self.ask(this_pass)

    @precondition(lambda self: self.passes)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.passes.pop(data.draw(st.integers(0, len(self.passes) - 1))).leave()

    @precondition(lambda self: not self.must_read_whole)
    @rule()
    def look_at_a_batch(self) -> None:
        this_pass = self.new_pass()
        self.ask(this_pass)
        this_pass.leave()

    @precondition(lambda self: not self.pattern.memory and self.shape == "plain")
    @rule()
    def peek(self) -> None:
        """Ours alone: it changes nothing."""
        did(self.ours.peek)
        latest = self.latest
        if latest is not None and not latest.left and not latest.ended:
            latest.peeked = True
        elif self.name not in ORDERS:
            self.peeked = True

    @precondition(lambda self: not (self.must_read_whole and self.pattern.endless))
    @rule()
    def read_a_pass(self) -> None:
        this_pass = self.new_pass()
        for _ in range(MOST_BATCHES):
            self.ask(this_pass)
            if this_pass.ended:
                break
        this_pass.leave()

    @rule()
    def length(self) -> None:
        assert did(lambda: len(self.ours)) == did(lambda: len(self.theirs))

    @precondition(lambda self: self.pattern.epochs)
    @rule(epoch=st.integers(0, 3), on_the_loader=st.booleans())
    def set_epoch(self, epoch: int, on_the_loader: bool) -> None:
        # Ours alone has it, and there an endless iterator moves to that epoch at once.
        on_the_loader = on_the_loader and not self.shape.startswith("endless")
        part_with_epoch(self.theirs).set_epoch(epoch)
        (self.ours if on_the_loader else part_with_epoch(self.ours)).set_epoch(epoch)
        self.wrote, self.skipped = True, 0

    @precondition(
        lambda self: (
            not self.peeked
            and all(p.ended or not (p.workers or p.peeked) for p in self.passes)
            and not (self.shape.startswith("endless") and self.ours.num_workers)
        )
    )
    @rule(stage=st.integers(1, 9))
    def change_what_the_dataset_shares(self, stage: int) -> None:
        self.theirs.dataset.stage.fill_(stage)
        self.ours.dataset.stage.fill_(stage)

    @precondition(
        lambda self: (
            self.name != "without batches"
            and not self.ours.persistent_workers
            and not self.shape.startswith("endless")
        )
    )
    @rule(collate_fn=st.sampled_from([negated, default_collate]))
    def change_the_collate_function(self, collate_fn: Any) -> None:
        if self.ours.collate_fn is not collate_fn:
            self.theirs.collate_fn = self.ours.collate_fn = collate_fn
            self.something_was_set()

    @precondition(lambda self: self.shape == "plain" and not self.pattern.memory)
    @rule(workers=st.integers(0, 3), timeout=st.sampled_from([0, 50]))
    def change_the_workers(self, workers: int, timeout: int) -> None:
        if self.theirs.num_workers:
            workers = max(1, workers)
            self.theirs.num_workers, self.theirs.timeout = workers, timeout
        if (workers, timeout) != (self.ours.num_workers, self.ours.timeout):
            self.ours.num_workers, self.ours.timeout = workers, timeout
            self.something_was_set()

    @precondition(
        lambda self: (
            self.shape == "plain" and not self.pattern.memory and not self.theirs.persistent_workers
        )
    )
    @rule()
    def copy_the_loader(self) -> None:
        mid_pass = self.is_mid_pass and not self.wrote
        if mid_pass and (self.name == "torch" or self.pattern.rekeyed):
            return
        skipped = self.ours.step if mid_pass else self.skipped
        self.theirs, self.ours = copy.deepcopy(self.theirs), copy.deepcopy(self.ours)
        self.skipped, self.latest, self.peeked, self.may_refuse = skipped, None, False, False
        self.leave_the_originals()

    def leave_the_originals(self) -> None:
        """Begin no pass of the loaders that copies have replaced here."""
        self.passes = [each for each in self.passes if each.begun]

    @precondition(lambda self: self.shape == "plain" and self.pattern.memory)
    @rule()
    def copy_a_loader_with_memory(self) -> None:
        """Either as torch's, or, in mid-pass, refused or the rest of that pass."""
        theirs = did(lambda: copy.deepcopy(self.theirs))
        ours = did(lambda: copy.deepcopy(self.ours))
        assert isinstance(ours, Raised) == isinstance(theirs, Raised)
        if isinstance(ours, Raised):
            return
        if not self.is_mid_pass:
            self.theirs, self.ours, self.latest = theirs, ours, None
            self.leave_the_originals()
            return
        got = did(lambda: list(islice(ours, MOST_BATCHES)))
        if self.latest.left:
            whole = did(lambda: list(islice(theirs, MOST_BATCHES)))
            # The rest of a pass that another one would repeat, or as torch's.
            rest = whole if isinstance(whole, Raised) else whole[self.ours.step :]
            assert got in (whole, rest) or (isinstance(got, Raised) and got.ours)
            return
        rest = did(lambda: list(islice(self.latest.theirs.batches, MOST_BATCHES)))
        assert got == rest or (isinstance(got, Raised) and got.ours)
        # The original is not disturbed by its copy.
        assert did(lambda: list(islice(self.latest.ours, MOST_BATCHES))) == rest
        self.latest.ended = len(rest) < MOST_BATCHES


Programs.TestCase.settings = settings(max_examples=cases(300), stateful_step_count=25)
test_any_program_gives_what_it_gives_with_torchs_loader = Programs.TestCase


class WithProcesses(Programs):
    """Both loaders have worker processes."""

    @initialize(
        kind=st.sampled_from([name for name in sorted(KINDS) if not KINDS[name].memory]),
        workers=st.integers(1, 2),
        persistent=st.booleans(),
    )
    def start(self, kind: str, workers: int, persistent: bool) -> None:  # type: ignore[override]
        if kind == "torch":
            persistent = False
        settings = {"num_workers": workers, "persistent_workers": persistent}
        self.build(kind, "plain", settings, settings)


WithProcesses.TestCase.settings = settings(max_examples=cases(15), stateful_step_count=12)
test_any_program_with_worker_processes = pytest.mark.slow(WithProcesses.TestCase)
