"""Each epoch draws from torch's generators what torch's loader draws, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from example_streams import Generated, Sharded, Stateful
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, Indices, ids
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    SubsetRandomSampler,
    TensorDataset,
)

from dataporter import DevicePrefetcher, ResumableDataLoader, ResumableSampler


class Numbers(IterableDataset[int]):
    """A stream that draws nothing."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))

    def __len__(self) -> int:
        return self.length


class Holed(Indices):
    """Its first sample fails."""

    def __getitem__(self, index: int) -> int:
        if index == 0:
            raise ValueError("a bad sample")
        return index


DATASETS: dict[str, Callable[[int], Any]] = {
    "samples": Indices,
    "columns": lambda length: TensorDataset(torch.arange(length)),
    "stacked": lambda length: StackDataset(Indices(length), Indices(length)),
    "list": lambda length: list(range(length)),
    "stream": Numbers,
}
SAMPLERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "none": lambda dataset: {},
    "shuffle": lambda dataset: {"shuffle": True},
    "no shuffle": lambda dataset: {"shuffle": False},
    "in sequence": lambda dataset: {"sampler": SequentialSampler(dataset)},
    "random": lambda dataset: {"sampler": RandomSampler(dataset)},
    "with replacement": lambda dataset: {
        "sampler": RandomSampler(dataset, replacement=True, num_samples=5)
    },
    "own generator": lambda dataset: {
        "sampler": RandomSampler(dataset, generator=torch.Generator().manual_seed(3))
    },
    "distributed": lambda dataset: {
        "sampler": DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True)
    },
    "list": lambda dataset: {"sampler": [0, 0]},
    "random batches": lambda dataset: {
        "batch_sampler": BatchSampler(RandomSampler(dataset), 2, drop_last=True)
    },
}
LOOKS: tuple[Callable[[ResumableDataLoader[Any]], object], ...] = (
    lambda loader: loader.seed,
    lambda loader: loader.state_dict(),
    lambda loader: loader.mark(),
    lambda loader: len(loader),
    lambda loader: loader.step or not len(loader) or loader.peek(),
    lambda loader: loader.step or loader.load_state_dict(loader.state_dict()),
)


def drawn(generator: torch.Generator | None = None) -> int:
    """The next value, as torch's loader draws it."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


def all_generators() -> Any:
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, int, str, dict[str, Any], bool]:
    """A dataset's kind and length, a sampler's kind, further arguments, and a generator or not."""
    kind, length = draw(st.sampled_from(sorted(DATASETS))), draw(st.integers(1, 9))
    sampling = "none" if kind == "stream" else draw(st.sampled_from(sorted(SAMPLERS)))
    arguments: dict[str, Any] = {}
    if sampling != "random batches":
        arguments["batch_size"] = draw(st.none() | st.integers(1, 4))
        if arguments["batch_size"] is not None:
            arguments["drop_last"] = draw(st.booleans())
    return kind, length, sampling, arguments, draw(st.booleans())


@settings(max_examples=cases(300), deadline=None)
@given(calls(), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data())
def test_after_each_pass_torchs_generator_is_where_torchs_loader_leaves_it(
    call: tuple[str, int, str, dict[str, Any], bool], passes: list[int], data: st.DataObject
) -> None:
    """Whatever the arguments, with a seed or without, wherever a pass is left or looked at."""
    kind, length, sampling, arguments, has_generator = call
    seed = data.draw(st.none() | st.just(7))

    def loader_of(build: Any, **more: Any) -> Any:
        dataset = DATASETS[kind](length)
        if has_generator:
            more["generator"] = torch.Generator().manual_seed(2)
        return build(dataset, **SAMPLERS[sampling](dataset), **arguments, **more)

    theirs, ours = loader_of(DataLoader), loader_of(ResumableDataLoader, seed=seed)
    torch.manual_seed(1)
    states = []
    for most in passes:
        list(islice(theirs, most))
        states.append(torch.get_rng_state())
    torch.manual_seed(1)
    for most, state in zip(passes, states):
        for _ in range(data.draw(st.integers(0, 2))):
            data.draw(st.sampled_from(LOOKS))(ours)
        for _ in islice(ours, most):
            ours.state_dict()
        assert torch.equal(torch.get_rng_state(), state)
    # A shuffled order, and a sampler, draw more from a generator of theirs.
    if has_generator and sampling in ("none", "no shuffle", "in sequence", "distributed", "list"):
        assert torch.equal(ours.generator.get_state(), theirs.generator.get_state())


@pytest.mark.parametrize("persistent", [False, True])
def test_with_workers_as_well_but_persistent_ones_take_a_seed_in_each_epoch(
    persistent: bool,
) -> None:
    """torch gives persistent workers one seed in a process, which a resumed one cannot repeat."""
    arguments: dict[str, Any] = {"num_workers": 2, "persistent_workers": persistent}
    theirs = DataLoader(Indices(6), 2, shuffle=True, **arguments)
    ours = ResumableDataLoader(Indices(6), 2, shuffle=True, **arguments)
    torch.manual_seed(1)
    states = []
    for passes in range(3):
        list(theirs)
        if persistent and passes:
            drawn()
        states.append(torch.get_rng_state())
    torch.manual_seed(1)
    for state in states:
        list(ours)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_the_seed_of_the_workers_and_of_the_order_and_nothing_else(
    workers: int,
) -> None:
    """Also with a dataset that draws from all generators."""
    loader = ResumableDataLoader(Augmented(8), 2, shuffle=True, seed=3, num_workers=workers)
    torch.manual_seed(1)
    np.random.standard_normal()  # leaves a second value cached, which belongs to the state as well
    drawn(), drawn()
    expected = all_generators()
    torch.manual_seed(1)
    for _ in loader:
        assert all_generators() == expected


def rows(length: int) -> dict[str, torch.Tensor]:
    return {"index": torch.arange(length)}


RESUMED: dict[str, Callable[[], ResumableDataLoader[Any]]] = {
    "shuffled": lambda: ResumableDataLoader(Augmented(7), 2, shuffle=True),
    "seeded": lambda: ResumableDataLoader(Augmented(7), 2, shuffle=True, seed=4),
    "rows": lambda: ResumableDataLoader(rows(7), 2),
    "out of order": lambda: ResumableDataLoader(
        Indices(7), 2, shuffle=True, num_workers=2, worker_kind="thread", in_order=False
    ),
    "limited": lambda: ResumableDataLoader(Augmented(7), 2, steps_per_epoch=2),
    "limited stream": lambda: ResumableDataLoader(Sharded(7), 2, steps_per_epoch=2),
    "shards": lambda: ResumableDataLoader(Sharded(7), 2),
    "dataset state": lambda: ResumableDataLoader(Stateful(7), 2),
    "replay": lambda: ResumableDataLoader(Generated(7), 2),
    "sampler": lambda: ResumableDataLoader(Indices(7), 2, sampler=RandomSampler(Indices(7))),
    "subset": lambda: ResumableDataLoader(Indices(7), 2, sampler=SubsetRandomSampler(range(7))),
    "skipping": lambda: ResumableDataLoader(Holed(8), 2, shuffle=True, on_error="skip"),
    "empty": lambda: ResumableDataLoader(Indices(0), 2, shuffle=True),
    "prefetched": lambda: ResumableDataLoader(Augmented(7), 2, shuffle=True),
}


class Training:
    """Draws in each step, and validates by a loader without a seed."""

    def __init__(self, kind: str, every: int) -> None:
        self.loader: Any = RESUMED[kind]()
        self.batches: Any = self.loader
        if kind == "prefetched":
            self.batches = DevicePrefetcher(self.loader, "meta")
        self.every = every
        self.validation = ResumableDataLoader(Indices(3), 2, shuffle=True)
        self.done = 0

    def steps(self, epochs: int) -> Iterator[tuple[Any, ...]]:
        """What each step drew; and what is to be saved after it."""
        for epoch in self.loader.epochs(epochs):
            for _ in self.batches:
                self.done += 1
                if self.done % self.every == 0:
                    list(self.validation)
                yield "step", epoch, torch.rand(1).item(), random.random(), np.random.random()
            list(self.validation)
            yield "end", epoch, torch.rand(1).item(), random.random(), np.random.random()

    def saved(self) -> Any:
        state = self.batches.state_dict()
        generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
        return state, generators, self.done

    def restore(self, saved: Any) -> None:
        state, generators, self.done = saved
        self.batches.load_state_dict(state)
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])


@pytest.mark.parametrize("kind", sorted(RESUMED))
@settings(max_examples=cases(20), deadline=None)
@given(stops=st.lists(st.integers(0, 12), min_size=1, max_size=3), every=st.integers(1, 5))
def test_a_resumed_training_draws_what_the_uninterrupted_one_draws(
    kind: str, stops: list[int], every: int
) -> None:
    """Saved after any step, before the first one, and between two epochs."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = list(Training(kind, every).steps(3))
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    found: list[Any] = []
    training = Training(kind, every)
    saved = training.saved()
    for stop in stops:
        for step in islice(training.steps(3), stop):
            found.append(step)
            saved = training.saved()
        drawn(), random.random(), np.random.random()  # of another process
        training = Training(kind, every)
        training.restore(saved)
    found += training.steps(3)
    assert found == expected


def test_the_seed_is_the_value_that_the_first_pass_draws() -> None:
    torch.manual_seed(5)
    value = drawn()
    torch.manual_seed(5)
    first = ResumableDataLoader(Indices(10), shuffle=True)
    batches = [ids(batch) for batch in first]
    assert first.seed == first.state_dict()["seed"] == value
    generator = torch.Generator().manual_seed(5)
    second = ResumableDataLoader(Indices(10), shuffle=True, generator=generator)
    assert [ids(batch) for batch in second] == batches


def test_a_look_at_the_seed_is_what_a_pass_would_have_drawn_and_moves_no_generator() -> None:
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(6)
    before = torch.get_rng_state(), generator.get_state()
    loader = ResumableDataLoader(Indices(10), shuffle=True)
    of_generator = ResumableDataLoader(Indices(10), shuffle=True, generator=generator)
    seeds = loader.seed, of_generator.seed
    for one in (loader, of_generator):
        one.samples_at(0, 1), one.state_dict(), one.peek(), list(one.sampler), one.progress()
    sampler = ResumableSampler(10, shuffle=True)
    assert sampler.state_dict(delivered=0)["seed"] == loader.seed
    list(sampler)
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.equal(before[1], generator.get_state())
    assert seeds == (drawn(), drawn(generator)) == (loader.seed, of_generator.seed)


def test_two_loaders_without_a_seed_differ() -> None:
    first, second = (ResumableDataLoader(Indices(100), shuffle=True) for _ in "ab")
    for left, right in zip(first, second):
        assert ids(left) != ids(right) or len(left) == 1
    assert first.seed != second.seed


def test_a_generator_set_on_the_loader_is_drawn_from() -> None:
    loader = ResumableDataLoader(Indices(4), seed=1)
    loader.generator = torch.Generator().manual_seed(3)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.Generator().manual_seed(3)
    drawn(expected)
    assert torch.equal(loader.generator.get_state(), expected.get_state())


@pytest.mark.parametrize("arguments", ["order", "sampler"])
def test_a_generator_that_an_order_begins_from_is_not_moved(arguments: str) -> None:
    """Else the same arguments would be refused, or give another order, a second time."""
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    given: dict[str, Any] = {"order": "torch"}
    if arguments == "sampler":
        given = {"sampler": RandomSampler(Indices(9), replacement=True, generator=generator)}
    loaders = [ResumableDataLoader(Indices(9), 2, generator=generator, **given) for _ in "ab"]
    batches = [ids(batch) for batch in loaders[0]]
    generator.set_state(before) if arguments == "sampler" else None
    assert torch.equal(generator.get_state(), before)
    assert [ids(batch) for batch in loaders[1]] == batches


def test_a_first_batch_that_fails_is_drawn_for_with_the_one_that_is_delivered() -> None:
    """A state that is saved where it fails leads to a whole epoch, which draws."""
    loader = ResumableDataLoader(Holed(6), 2, seed=1)
    before = torch.get_rng_state()
    batches = iter(loader)
    with pytest.raises(ValueError, match="a bad sample"):
        next(batches)
    assert loader.step == 0
    assert torch.equal(torch.get_rng_state(), before)
    next(batches)
    assert loader.step == 2
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_jump_into_an_epoch_draws_nothing_and_the_next_epoch_does() -> None:
    loader: Any = ResumableDataLoader(Indices(6), 2, seed=1)
    loader.seek(epoch=1, step=1)
    before = torch.get_rng_state()
    assert len(list(loader)) == 2
    assert torch.equal(torch.get_rng_state(), before)
    list(loader)
    assert not torch.equal(torch.get_rng_state(), before)
