"""Keyed: whatever was read before, a batch is the one that seeding everything gives (C8)."""

from __future__ import annotations

import multiprocessing
import random
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import getstate as _getstate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataporter import ResumableDataLoader, SampleError, sample_rng
from dataporter.fetch.fetch import fetch_for
from dataporter.schedule.request import Request
from dataporter.seeding import keyed as keyed_module
from dataporter.seeding.generators import (
    NUMPY,
    PYTHON,
    isolated_generators,
    saved_generators,
    seed_generators,
)
from dataporter.seeding.hashing import sample_keys
from dataporter.seeding.samples import reading

BATCH, BATCHES = 8, 16


def _forked() -> float:
    with torch.random.fork_rng(devices=[]):
        return float(torch.rand(()))


def _same_twice() -> float:
    state = random.getstate()
    first = random.random()
    random.setstate(state)
    return first


def _copy_of_numpys() -> float:
    copy = np.random.RandomState()
    copy.set_state(np.random.get_state())
    return float(copy.rand())


DRAWS: dict[str, Callable[[], Any]] = {
    "python": random.random,
    "python, a normal number": lambda: random.gauss(0, 1),
    "python, read": _same_twice,
    "numpy": lambda: float(np.random.rand()),
    "numpy, a normal number": lambda: float(np.random.standard_normal()),
    # The generator stands at the same place again, with other words.
    "numpy, 624 words": lambda: zlib.crc32(np.random.bytes(624 * 4)),
    "numpy, read": _copy_of_numpys,
    "torch": lambda: float(torch.rand(())),
    "torch, a normal number": lambda: float(torch.randn(())),
    "torch, read": lambda: torch.initial_seed(),  # looked up when it is called
    "torch, forked": _forked,
    "sample_rng": lambda: float(sample_rng().random()),
}


@dataclass(frozen=True)
class Rule:
    """What is done for some samples; None: for all."""

    indices: frozenset[int] | None
    draw: str
    then: str = "nothing"

    def apply(self, index: int) -> list[Any]:
        if self.indices is not None and index not in self.indices:
            return []
        drawn = DRAWS[self.draw]()
        low = hash(drawn) % 2 == 0
        if self.then == "warn":
            warnings.warn(f"{index} draws {drawn!r}", UserWarning, stacklevel=2)
        if self.then == "warn alike":
            warnings.warn("a sample draws", UserWarning, stacklevel=2)
        if self.then == "raise" or (self.then == "raise if low" and low):
            raise ValueError(f"{index} has drawn {drawn!r}")
        if self.then == "draw if low" and low:
            return [drawn, *(draw() for draw in list(DRAWS.values())[:-1])]
        return [drawn]


@dataclass
class Drawing:
    """A dataset that draws by rules."""

    rules: list[Rule]
    collating: list[Rule] = field(default_factory=list)

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Any:
        return [index, *(drawn for rule in self.rules for drawn in rule.apply(index))]

    def collate(self, samples: list[Any]) -> Any:
        first = samples[0][0]
        drawn = [drawn for rule in self.collating for drawn in rule.apply(first)]
        changed = [samples.pop(0)]  # so that samples cannot be collated twice
        return [*changed, *samples, drawn]


THEN = ["nothing", "nothing", "warn", "warn alike", "raise", "raise if low", "draw if low"]
# The first batch is read in another way than the others, so most draws are to come later.
INDICES = st.one_of(
    st.none(),
    st.frozensets(st.integers(BATCH, BATCHES * BATCH - 1), min_size=1, max_size=4),
    st.frozensets(st.integers(0, BATCHES * BATCH - 1), min_size=1, max_size=12),
)
RULES = st.lists(
    st.builds(
        Rule, INDICES, st.sampled_from(sorted(set(DRAWS) - {"sample_rng"})), st.sampled_from(THEN)
    ),
    max_size=4,
)
OWN = st.just(Rule(None, "sample_rng"))


def seeding_everything(
    dataset: Drawing, request: Request, seeds_each: str, reaction: Any
) -> tuple[Any, Any]:
    """What a batch is by definition."""
    keys = sample_keys(request.seed, request.epoch, request.positions).tolist()
    samples: list[Any] = []
    failures = []
    of_batch = reading(request.seed, request.epoch, request.positions)
    with isolated_generators(), of_batch as current:
        if seeds_each == "batch":
            seed_generators(keys[0])
        for offset, index in enumerate(request.plain_indices):
            current.offset = offset
            if seeds_each == "sample":
                seed_generators(keys[offset])
            try:
                samples.append(dataset[index])
            except ValueError as error:
                if reaction == "raise":
                    raise
                failures.append(str(error))
                if callable(reaction):
                    samples.append(reaction(error, index))
        current.offset = None
        if not samples:
            raise ValueError("left nothing")
        return dataset.collate(samples), failures


def outcome(make: Callable[[], tuple[Any, Any]]) -> tuple[Any, list[str]]:
    """The batch or the exception, and the warnings that were shown."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        try:
            result: Any = make()
        except (ValueError, SampleError) as error:
            result = "nothing is left" if "left nothing" in str(error) else str(error)
    return result, sorted(str(each.message) for each in shown)


@given(
    rules=RULES,
    own=st.lists(OWN, max_size=1),
    collating=RULES,
    seeds_each=st.sampled_from(["sample", "batch"]),
    on_error=st.sampled_from(["raise", "skip", "substitute"]),
    seed=st.integers(0, 2**32),
)
def test_a_batch_is_the_one_that_seeding_everything_gives(
    rules: list[Rule],
    own: list[Rule],
    collating: list[Rule],
    seeds_each: Any,
    on_error: str,
    seed: int,
) -> None:
    dataset = Drawing([*own, *rules, *own], collating)
    called: list[int] = []

    def substitute(error: Exception, index: int) -> Any:
        called.append(index)
        return [-index, str(error), random.random(), np.random.rand(), float(torch.rand(()))]

    reaction: Any = substitute if on_error == "substitute" else on_error
    fetch = fetch_for(
        dataset, dataset.collate, batched=True, seeds_each=seeds_each, on_error=reaction
    )

    def fetched(request: Request) -> tuple[Any, Any]:
        made = fetch(request)
        return made.batch, [failure.message for failure in made.failures]

    torch.manual_seed(seed)
    for step in range(BATCHES):
        start = step * BATCH
        positions = np.arange(start, start + BATCH)
        request = Request(seed, 0, step, positions, positions)
        before = saved_generators()
        given = outcome(lambda request=request: fetched(request))
        assert saved_generators() == before, "the training's generators are as they were"
        called_then = called[:]
        called.clear()
        expected = outcome(
            lambda request=request: seeding_everything(dataset, request, seeds_each, reaction)
        )
        assert given[0] == expected[0]
        assert called_then == called, "and in the place of no sample twice"
        called.clear()
        for shown in given[1]:
            assert given[1].count(shown) >= expected[1].count(shown)
        # Also an attempt that is discarded may have shown as many as one attempt can.
        each_sample, each_batch = (
            sum(rule.then == "warn alike" for rule in some) for some in (rules, collating)
        )
        assert given[1].count("a sample draws") <= each_sample * BATCH + each_batch


def at(index: int, draw: str) -> Rule:
    return Rule(frozenset({index}), draw)


def reads(dataset: Any, batches: int) -> list[int]:
    """How often the samples of each batch are read."""
    counts = []
    read = type(dataset).__getitem__
    number = 0

    class Counting(type(dataset)):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            nonlocal number
            number += 1
            return read(self, index)

    counted = Counting(dataset.rules, dataset.collating)
    loader: Any = ResumableDataLoader(counted, BATCH, collate_fn=counted.collate, seed=1)
    for _, _batch in zip(range(batches), loader):
        counts.append(number // BATCH)
        number = 0
    return counts


@pytest.mark.parametrize("seeds_each", ["sample", "batch"])
@pytest.mark.parametrize("of", ["samples", "collation"])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_first_draw_after_many_batches_is_the_seeded_one(
    draw: str, of: str, seeds_each: Any
) -> None:
    # Where a batch has one seed, the first eight batches are looked at.
    index = 83 if of == "samples" else 80
    rules = [at(index, draw), at(index + BATCH, draw)]
    dataset = Drawing(rules) if of == "samples" else Drawing([], rules)
    fetch = fetch_for(
        dataset, dataset.collate, batched=True, seeds_each=seeds_each, on_error="raise"
    )
    for step in range(13):
        positions = np.arange(step * BATCH, step * BATCH + BATCH)
        request = Request(7, 0, step, positions, positions)
        expected = seeding_everything(dataset, request, seeds_each, "raise")
        assert fetch(request).batch == expected[0]


def test_a_batch_is_read_again_once_for_a_generator_that_was_not_known() -> None:
    assert reads(Drawing([]), 4) == [1, 1, 1, 1]
    assert reads(Drawing([Rule(None, name) for name in ("python", "numpy", "torch")]), 3) == [1] * 3
    late = [at(20, "python"), at(30, "torch"), at(40, "torch, read")]
    assert reads(Drawing(late), 7) == [1, 1, 2, 2, 1, 1, 1]
    assert reads(Drawing([], [at(16, "python"), at(24, "python")]), 5) == [1, 1, 2, 1, 1]
    both = [at(20, "python"), at(21, "torch")]
    assert reads(Drawing(both), 4) == [1, 1, 2, 1]


class Slow(Drawing):
    def __getitem__(self, index: int) -> Any:
        time.sleep(0.001)
        return super().__getitem__(index)


def test_samples_that_are_slow_to_read_are_never_read_twice() -> None:
    late = [at(20, "python"), at(30, "torch"), at(40, "torch, read")]
    assert reads(Slow(late), 7) == [1] * 7


def test_a_generator_that_only_collation_draws_from_is_seeded_once_a_batch() -> None:
    """Also where a batch is made again, because another one was drawn from late."""
    dataset = Drawing([], [Rule(None, "python"), at(24, "numpy")])
    fetch: Any = fetch_for(
        dataset, dataset.collate, batched=True, seeds_each="sample", on_error="raise"
    )
    for step in range(6):
        positions = np.arange(step * BATCH, step * BATCH + BATCH)
        fetch(Request(7, 0, step, positions, positions))
    assert fetch.drawn_from.samples == ()
    assert fetch.drawn_from.batch == (PYTHON, NUMPY)


def _forks() -> float:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(random.random)


OTHER_WAYS: dict[str, Callable[[], Any]] = {
    "another name": lambda: zlib.crc32(repr(_getstate()).encode()),
    "a bit generator": lambda: int(np.random.get_bit_generator().state["state"]["key"][7]),
    "a fork": _forks,
    "the seed of a loader within": lambda: ResumableDataLoader(range(9), shuffle=True).seed,
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_a_state_that_is_read_in_another_way_counts_as_a_draw(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRAWS, way, OTHER_WAYS[way])
    dataset = Drawing([at(20, way), at(37, way)])
    fetch = fetch_for(dataset, list, batched=True, seeds_each="sample", on_error="raise")
    made = []
    for seed in (1, 2):  # of the training's generators
        seed_generators(seed)
        positions = [np.arange(step * BATCH, step * BATCH + BATCH) for step in range(6)]
        made.append([fetch(Request(7, 0, 0, each, each)).batch for each in positions])
        fetch = fetch_for(dataset, list, batched=True, seeds_each="sample", on_error="raise")
    assert made[0] == made[1]


@pytest.mark.parametrize("index", [3, 20])
def test_a_bit_generator_that_a_sample_sets_is_taken_out_again(index: int) -> None:
    class Sets(Drawing):
        def __getitem__(self, asked: int) -> Any:
            if asked == index:
                np.random.set_bit_generator(np.random.PCG64(5))
            return asked, float(np.random.rand())

    ours = np.random.get_bit_generator()
    before = saved_generators()
    loader: Any = ResumableDataLoader(Sets([]), BATCH, collate_fn=list, seed=1)
    first = [batch for _, batch in zip(range(4), loader)]
    assert np.random.get_bit_generator() is ours
    assert saved_generators()[:2] == before[:2]
    loader = ResumableDataLoader(Sets([]), BATCH, collate_fn=list, seed=1, num_workers=2)
    assert [batch for _, batch in zip(range(4), loader)] == first


def test_an_exit_that_depends_on_a_draw_is_the_seeded_one() -> None:
    class Exits(Drawing):
        def __getitem__(self, index: int) -> Any:
            if index >= 20 and random.random() < 0.3:
                raise SystemExit(f"at {index}")
            return index

    outcomes = set()
    for seed in range(6):
        random.seed(seed)
        loader: Any = ResumableDataLoader(Exits([]), BATCH, collate_fn=list, seed=1)
        try:
            outcomes.add(str([batch for _, batch in zip(range(6), loader)]))
        except SystemExit as exit:
            outcomes.add(str(exit))
    assert len(outcomes) == 1


def test_only_generators_that_are_drawn_from_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[Any] = []
    original = keyed_module._seeding
    monkeypatch.setattr(
        keyed_module, "_seeding", lambda drawn: seeded.append(drawn) or original(drawn)
    )
    loader: Any = ResumableDataLoader(Drawing([Rule(None, "numpy")]), BATCH, collate_fn=list)
    for _ in zip(range(4), loader):
        pass
    assert {generator.name for drawn in seeded for generator in drawn} == {"numpy.random"}


def test_a_warning_of_a_batch_that_is_read_again_is_shown_once() -> None:
    class Warns(Drawing):
        def __getitem__(self, index: int) -> Any:
            warnings.warn(f"sample {index}", UserWarning, stacklevel=1)
            return super().__getitem__(index)

    loader: Any = ResumableDataLoader(Warns([at(13, "python")]), BATCH, collate_fn=list, seed=1)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        for _ in zip(range(3), loader):
            pass
    assert [str(each.message) for each in shown] == [f"sample {index}" for index in range(24)]


def test_what_a_sample_does_to_the_showing_of_warnings_is_no_loop() -> None:
    class Wraps(Drawing):
        def __getitem__(self, index: int) -> Any:
            if index == 20:
                plain = warnings.showwarning
                warnings.showwarning = lambda *shown: plain(*shown)
            if index % BATCH == 0:
                warnings.warn(f"sample {index}", UserWarning, stacklevel=1)
            return super().__getitem__(index)

    for _ in range(2):
        with warnings.catch_warnings(record=True) as shown:
            warnings.simplefilter("always")
            for epoch in range(2):
                loader: Any = ResumableDataLoader(
                    Wraps([at(28, "python")]), BATCH, collate_fn=list, seed=epoch
                )
                for _, _batch in zip(range(5), loader):
                    pass
        assert [str(each.message) for each in shown] == 2 * [f"sample {8 * n}" for n in range(5)]


def test_the_functions_that_read_a_state_are_put_back() -> None:
    functions = random.getstate, np.random.get_state, torch.initial_seed, torch.get_rng_state
    showing = warnings.showwarning
    seen: list[Any] = []

    class Looks(Drawing):
        def __getitem__(self, index: int) -> Any:
            seen.append(torch.initial_seed is functions[2])
            return index

    loader: Any = ResumableDataLoader(Looks([]), BATCH, collate_fn=list, seed=1)
    for _ in zip(range(2), loader):
        now = random.getstate, np.random.get_state, torch.initial_seed, torch.get_rng_state
        assert now == functions
        assert warnings.showwarning is showing
    assert not any(seen)
