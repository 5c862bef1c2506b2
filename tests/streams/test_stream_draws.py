"""The law of drawing streams: a stream and its states are those which seeding everything before
each sample would give, whatever its samples draw from, and when (C8, C10).
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import (
    ResumableDataLoader,
    ShuffledStream,
    StreamRepeat,
    UnsupportedDatasetError,
    sample_rng,
)
from dataporter.seeding import keyed
from dataporter.seeding.generators import isolated_generators, saved_generators, seed_generators
from dataporter.seeding.hashing import STREAM_OPENING, STREAM_SHARD, fold, sample_key

SEED = 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:the stream has no exact state"),
    pytest.mark.filterwarnings("ignore:this pass has no batch"),
    pytest.mark.filterwarnings("ignore:drop_last dropped"),
    pytest.mark.filterwarnings("ignore:.*resume rereads"),
]


class Unreadable(Exception):
    """What a sample that fails raises."""


# ---- what samples draw


def forked() -> float:
    with torch.random.fork_rng(devices=[]):
        return float(torch.rand(()))


DRAWS: dict[str, Callable[[], float]] = {
    "python": random.random,
    "normal": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.standard_normal()),
    "torch": lambda: float(torch.rand(())),
    "forked": forked,
    "explicit": lambda: float(sample_rng().random()),
}


@dataclass(frozen=True)
class Habit:
    """When samples draw: every so many, from one on; and what each of these draws next.

    Attributes:
        draws: names of draws.
        first, every: numbers of the samples that draw.
        then: drawn as well where the first value is below a half.
        fails_below: such a sample raises where the first value is lower.
    """

    draws: tuple[str, ...]
    first: int
    every: int
    then: tuple[str, ...] = ()
    fails_below: float = -math.inf

    def values(self, number: int) -> list[float]:
        if number < self.first or (number - self.first) % self.every:
            return []
        values = [DRAWS[name]() for name in self.draws]
        if values and values[0] < self.fails_below:
            raise Unreadable(number)
        if values and values[0] < 0.5:
            values += [DRAWS[name]() for name in self.then]
        return values


def sample(shard: int, number: int, habits: tuple[Habit, ...]) -> Any:
    return [shard, number, [value for habit in habits for value in habit.values(number)]]


NAMES = st.lists(st.sampled_from(sorted(DRAWS)), max_size=2).map(tuple)
HABITS = st.lists(
    st.builds(
        Habit,
        draws=NAMES,
        first=st.integers(0, 150),
        every=st.sampled_from([1, 2, 7, 50, 1000]),
        then=NAMES,
        fails_below=st.sampled_from([-math.inf, -math.inf, 0.3]),
    ),
    max_size=3,
).map(tuple)


# ---- streams


class Samples(Iterator[Any]):
    """An iterator that continues after a sample that fails."""

    def __init__(self, shard: int, numbers: range, habits: tuple[Habit, ...]) -> None:
        self.shard, self.numbers, self.habits, self.at = shard, numbers, habits, 0

    def __next__(self) -> Any:
        if self.at == len(self.numbers):
            raise StopIteration
        self.at += 1
        return sample(self.shard, self.numbers[self.at - 1], self.habits)


class StatefulSamples(Samples):
    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


class Plain(IterableDataset[Any]):
    """Has no state, and is divided among the workers."""

    iterator: type[Samples] = Samples
    draws = False

    def __init__(self, lengths: list[int], habits: tuple[Habit, ...]) -> None:
        self.lengths, self.habits = lengths, habits

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, every = (0, 1) if info is None else (info.id, info.num_workers)
        return self.iterator(first, range(first, sum(self.lengths), every), self.habits)


class Sharded(Plain):
    """In shards without a state."""

    def __init__(self, lengths: list[int], habits: tuple[Habit, ...]) -> None:
        super().__init__(lengths, habits)
        self.num_shards = len(lengths)

    def shard(self, num_shards: int, index: int) -> Any:
        return Shard(index, self.lengths[index], self.habits, self.iterator)


@dataclass
class Shard:
    index: int
    length: int
    habits: tuple[Habit, ...]
    iterator: type[Samples]

    def __iter__(self) -> Iterator[Any]:
        return self.iterator(self.index, range(self.length), self.habits)


class Stateful(Plain):
    iterator = StatefulSamples


class StatefulShards(Sharded):
    iterator = StatefulSamples


class Everything:
    """Mixed in: all generators are seeded before each sample."""

    draws = True


SHARDED = (Sharded, StatefulShards)
WHOLE = (Plain, Stateful)


def eager(kind: type[Plain]) -> type[Plain]:
    return type(f"Eager{kind.__name__}", (Everything, kind), {})


# ---- the law


def reference(samples: Iterator[Any], shard: int, epoch: int) -> list[Any]:
    """The samples of a shard, with all generators seeded before each one."""
    key, found, offset = fold(SEED, shard, STREAM_SHARD), [], 0
    with isolated_generators():
        while True:
            seed_generators(sample_key(key, epoch, offset))
            explicit[0] = np.random.default_rng(sample_key(key, epoch, offset))
            offset += 1
            try:
                found.append(next(samples))
            except StopIteration:
                return found
            except Unreadable:
                pass


# sample_rng() of the reference, which is no loader.
explicit: list[Any] = [None]


def expected(kind: type[Plain], lengths: list[int], habits: tuple[Habit, ...]) -> dict[int, Any]:
    dataset = kind(lengths, habits)
    before = DRAWS["explicit"]
    DRAWS["explicit"] = lambda: float(explicit[0].random())
    try:
        if isinstance(dataset, Sharded):
            shards = {n: iter(dataset.shard(len(lengths), n)) for n in range(len(lengths))}
        else:
            shards = {0: iter(dataset)}
        found = {n: reference(shard, n, 0) for n, shard in shards.items()}
        return {n: samples for n, samples in found.items() if samples}
    finally:
        DRAWS["explicit"] = before


def loader_of(dataset: Any, batch_size: int, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(
        dataset,
        batch_size,
        seed=SEED,
        collate_fn=drawing,
        on_error="skip",
        **{"strategy": "advanced", "snapshot_every": 1, **arguments},
    )


def drawing(samples: list[Any]) -> list[Any]:
    """Collates, and draws for some batches."""
    last = samples[-1][1]
    return [
        *samples,
        random.random() if last % 5 == 0 else np.random.rand() if last % 7 == 0 else 0,
    ]


def delivered(batches: list[Any]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for batch in batches:
        for each in batch[:-1]:
            found.setdefault(each[0], []).append(each)
    return found


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


@settings(max_examples=cases(60), deadline=None)
@given(
    kind=st.sampled_from([*SHARDED, *WHOLE]),
    lengths=st.lists(st.integers(0, 260), min_size=1, max_size=3),
    habits=HABITS,
    batch_size=st.integers(1, 40),
    snapshot_every=st.sampled_from([1, 1, 3]),
    stops=st.lists(st.integers(0, 12), max_size=3),
)
def test_a_stream_and_its_states_are_those_of_seeding_everything(
    kind: type[Plain],
    lengths: list[int],
    habits: tuple[Habit, ...],
    batch_size: int,
    snapshot_every: int,
    stops: list[int],
) -> None:
    every = {"snapshot_every": snapshot_every}
    lazy = loader_of(kind(lengths, habits), batch_size, **every)
    twin = loader_of(eager(kind)(lengths, habits), batch_size, **every)
    batches: list[Any] = []
    random.seed(1)
    before = saved_generators()[:2]
    for stop in [*stops, None]:
        count = len(batches)
        passes = zip(islice(lazy, stop), islice(twin, stop), strict=True)
        for batch, other in passes:
            assert batch == other
            assert lazy.state_dict() == twin.state_dict()
            batches.append(batch)
        if stop is not None and len(batches) < count + stop:
            break  # that was the end
        if stop is not None:
            state = through_json(lazy.state_dict())
            lazy = loader_of(kind(lengths, habits), batch_size, **every)
            twin = loader_of(eager(kind)(lengths, habits), batch_size, **every)
            lazy.load_state_dict(state)
            twin.load_state_dict(state)
    assert saved_generators()[:2] == before  # torch's: each pass draws from it, as in torch
    assert lazy.failures == twin.failures
    event(f"{len(lazy.failures) > 0} failures")
    assert delivered(batches) == expected(kind, lengths, habits)
    for batch, other in zip(lazy, twin, strict=True):  # the next epoch
        assert batch == other
        assert lazy.state_dict() == twin.state_dict()


@pytest.mark.filterwarnings("ignore:worker .* has delivered the same samples")
@settings(max_examples=cases(15), deadline=None)
@given(
    kind=st.sampled_from(SHARDED),
    lengths=st.lists(st.integers(0, 200), min_size=2, max_size=4),
    habits=HABITS,
    batch_size=st.integers(5, 40),
    stop=st.integers(0, 8),
    workers=st.tuples(st.integers(0, 2), st.integers(1, 2)),
)
def test_it_is_so_in_workers_and_after_a_resume_with_others(
    kind: type[Plain],
    lengths: list[int],
    habits: tuple[Habit, ...],
    batch_size: int,
    stop: int,
    workers: tuple[int, int],
) -> None:
    first, second = workers
    lazy = loader_of(kind(lengths, habits), batch_size, num_workers=first)
    passing = iter(lazy)
    batches = list(islice(passing, stop))
    state = through_json(lazy.state_dict())
    passing.close() if hasattr(passing, "close") else None
    del passing
    twin = loader_of(eager(kind)(lengths, habits), batch_size)
    assert batches == list(islice(iter(twin), stop))
    assert state == through_json(twin.state_dict())
    resumed = loader_of(kind(lengths, habits), batch_size, num_workers=second)
    resumed.load_state_dict(state)
    if state["epoch"] == 0:  # and not stopped behind the end
        batches += list(resumed)
    assert delivered(batches) == expected(kind, lengths, habits)


@settings(max_examples=cases(15), deadline=None)
@given(habits=HABITS, batch_size=st.integers(1, 30), stop=st.integers(0, 12))
def test_it_is_so_for_repeated_and_shuffled_streams(
    habits: tuple[Habit, ...], batch_size: int, stop: int
) -> None:
    habits = tuple(Habit(h.draws, h.first, h.every, h.then) for h in habits)

    def built(kind: type[Plain], wrapper: Any) -> Any:
        return loader_of(wrapper(kind([90, 130], habits)), batch_size)

    for kind in SHARDED:
        for wrapper in (lambda s: StreamRepeat(s, 2), lambda s: ShuffledStream(s, 50)):
            lazy, twin = built(kind, wrapper), built(eager(kind), wrapper)
            states = []
            for batch, other in zip(lazy, twin, strict=True):
                assert batch == other
                assert lazy.state_dict() == twin.state_dict()
                states.append((batch, lazy.state_dict()))
            rest = [batch for batch, _ in states[stop + 1 :]]
            if stop < len(states):
                resumed = built(kind, wrapper)
                resumed.load_state_dict(through_json(states[stop][1]))
                assert list(resumed) == rest


class KilledOnce(StatefulShards):
    """Kills the process that reads a sample, once."""

    def __init__(self, lengths: list[int], habits: tuple[Habit, ...], at: int, done: Path) -> None:
        super().__init__(lengths, habits)
        self.at, self.done = at, done

    def shard(self, num_shards: int, index: int) -> Any:
        shard = super().shard(num_shards, index)
        return Lethal(shard, self.at, self.done) if index == 1 else shard


@dataclass
class Lethal:
    shard: Shard
    at: int
    done: Path

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.shard)
        return LethalSamples(iterator.shard, iterator.numbers, iterator.habits, self.at, self.done)


class LethalSamples(StatefulSamples):
    def __init__(self, shard: int, numbers: range, habits: Any, lethal: int, done: Path) -> None:
        super().__init__(shard, numbers, habits)
        self.lethal, self.done = lethal, done

    def __next__(self) -> Any:
        if self.at == self.lethal and not self.done.exists():
            self.done.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__next__()


@pytest.mark.filterwarnings("ignore:worker")
@pytest.mark.parametrize("at", [30, 131, 140, 190])
def test_a_killed_worker_changes_no_draw(at: int, tmp_path: Path) -> None:
    """... before the first draw, in its batch, just after it, and later."""
    habits = (Habit(("numpy",), 130, 50), Habit(("python",), 130, 7))
    lengths = [200, 230, 150]
    dataset = KilledOnce(lengths, habits, at, tmp_path / "done")
    lazy = loader_of(dataset, 16, num_workers=2)
    assert list(lazy) == list(loader_of(eager(StatefulShards)(lengths, habits), 16))
    assert dataset.done.exists()


# ---- Hugging Face


def with_habits(example: dict[str, Any], habits: tuple[Habit, ...] = ()) -> dict[str, Any]:
    return {"drawn": str([value for h in habits for value in h.values(example["n"])])}


@settings(max_examples=cases(20), deadline=None)
@given(
    habits=HABITS,
    batch_size=st.integers(1, 40),
    batched=st.booleans(),
    stop=st.integers(0, 10),
)
def test_it_is_so_for_pipelines_of_hugging_face(
    habits: tuple[Habit, ...], batch_size: int, batched: bool, stop: int
) -> None:
    datasets = pytest.importorskip("datasets")
    habits = tuple(Habit(h.draws, h.first, h.every, h.then) for h in habits)

    def stream() -> Any:
        rows = datasets.Dataset.from_dict({"n": range(300)}).to_iterable_dataset(num_shards=2)
        if batched:
            rows = rows.map(lambda group: {"m": group["n"]}, batched=True, batch_size=7)
        return rows.map(with_habits, fn_kwargs={"habits": habits}).filter(
            lambda example: random.random() < 0.9 if example["n"] % 50 == 49 else True
        )

    def built(draws: bool) -> Any:
        rows = stream()
        rows.draws = draws
        return ResumableDataLoader(rows, batch_size, seed=SEED, num_shards=2)

    lazy, twin = built(False), built(True)
    states = []
    for batch, other in zip(lazy, twin, strict=True):
        assert str(batch) == str(other)
        assert lazy.state_dict() == twin.state_dict()
        states.append((batch, lazy.state_dict()))
    if stop < len(states):
        resumed = built(False)
        resumed.load_state_dict(through_json(states[stop][1]))
        assert [b["drawn"] for b in resumed] == [b["drawn"] for b, _ in states[stop + 1 :]]


# ---- what is seeded, and what is read twice


class Counted(IterableDataset[Any]):
    """Counts what it yields, and draws at one sample."""

    def __init__(self, draws_at: int, draw: Callable[[], Any] = random.random) -> None:
        self.draws_at, self.draw = draws_at, draw
        self.read: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        for number in range(400):
            self.read.append(number)
            yield number, self.draw() if number == self.draws_at else 0.0


def test_a_stream_that_draws_nothing_is_read_once() -> None:
    dataset = Counted(-1)
    list(ResumableDataLoader(dataset, 16, seed=1))
    assert dataset.read == list(range(400))


def test_a_stream_that_draws_for_the_first_time_is_read_again_up_to_there() -> None:
    dataset = Counted(200)
    list(ResumableDataLoader(dataset, 16, seed=1))
    assert dataset.read == [*range(208), *range(400)]


def test_nothing_is_read_twice_of_a_stream_that_says_it_draws() -> None:
    dataset = Counted(200)
    dataset.draws = True  # type: ignore[attr-defined]
    list(ResumableDataLoader(dataset, 16, seed=1))
    assert dataset.read == list(range(400))


class Unrepeatable(Counted):
    """Yields other samples each time."""

    def __iter__(self) -> Iterator[Any]:
        start = len(self.read)
        for number, drawn in super().__iter__():
            yield number + start, drawn


def test_a_stream_that_does_not_repeat_itself_cannot_draw_late() -> None:
    with pytest.raises(UnsupportedDatasetError, match="draws = True"):
        list(ResumableDataLoader(Unrepeatable(200), 16, seed=1))
    early = Unrepeatable(5)
    list(ResumableDataLoader(early, 16, seed=1))
    assert len(early.read) == 400
    declared = Unrepeatable(200)
    declared.draws = True  # type: ignore[attr-defined]
    assert len(list(ResumableDataLoader(declared, 16, seed=1))) == 25


class OwnIterator(Counted):
    """Is its own iterator, and continues where it is."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        number = len(self.read)
        if number == 400:
            raise StopIteration
        self.read.append(number)
        return number, self.draw() if number == self.draws_at else 0.0


def test_a_stream_that_is_its_own_iterator_is_seeded_always() -> None:
    dataset = OwnIterator(200)
    batches = list(ResumableDataLoader(dataset, 16, seed=1))
    assert dataset.read == list(range(400))
    key = sample_key(fold(1, 0, STREAM_SHARD), 0, 200)
    assert float(batches[12][1][8]) == random.Random(key).random()


class ShufflesFiles(IterableDataset[Any]):
    """Draws where it begins."""

    def __iter__(self) -> Iterator[Any]:
        numbers = list(range(100))
        random.shuffle(numbers)
        yield from numbers


def test_a_draw_for_the_first_sample_seeds_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [batch.tolist() for batch in ResumableDataLoader(ShufflesFiles(), 64, seed=1)]
    seeded: list[int] = []
    plain = keyed._seeding

    def seeding(generators: Any) -> Any:
        seeded.append(len(generators))
        return plain(generators)

    monkeypatch.setattr(keyed, "_seeding", seeding)
    again = [batch.tolist() for batch in ResumableDataLoader(ShufflesFiles(), 64, seed=1)]
    assert again == batches
    assert set(seeded) == {0}


class Warns(Counted):
    def __init__(self, draws_at: int) -> None:
        super().__init__(draws_at)
        self.at = 0

    def __iter__(self) -> Iterator[Any]:
        while self.at < 400:
            self.at += 1
            number = self.at - 1
            warnings.warn(f"sample {number}", UserWarning, stacklevel=1)
            yield number, self.draw() if number == self.draws_at else 0.0
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def test_a_warning_of_a_sample_that_is_read_twice_is_shown_once() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        list(ResumableDataLoader(Warns(200), 16, seed=1))
    texts = [str(each.message) for each in shown if str(each.message).startswith("sample")]
    # The snapshot's own samples are reread, as after a resume; those of the batch are not shown.
    assert all(texts.count(f"sample {number}") == 1 for number in range(192, 208))


def test_on_error_is_called_once_for_a_sample_that_is_read_twice() -> None:
    called: list[int] = []

    def instead(error: Exception, index: Any) -> Any:
        called.append(index[1])
        return index[0], index[1], [random.random()]

    # Whether sample 197 fails is decided by a generator that is drawn from for the first time.
    habits = (Habit(("python",), 197, 1000, fails_below=2.0), Habit(("numpy",), 205, 1000))
    dataset, twin = Plain([400], habits), eager(Plain)([400], habits)
    batches, others = (
        list(ResumableDataLoader(each, 16, seed=1, on_error=instead, collate_fn=list))
        for each in (dataset, twin)
    )
    assert [list(map(list, batch)) for batch in batches] == [
        list(map(list, batch)) for batch in others
    ]
    assert called == [197, 197]


def test_the_opening_is_seeded_apart() -> None:
    class Shuffled(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            numbers = list(range(100))
            random.shuffle(numbers)
            return iter(numbers)

    numbers = list(range(100))
    key = sample_key(fold(fold(1, 0, STREAM_SHARD), STREAM_OPENING), 0, 0)
    random.Random(key).shuffle(numbers)
    loader = ResumableDataLoader(Shuffled(), 100, seed=1)
    assert next(iter(loader)).tolist() == numbers
