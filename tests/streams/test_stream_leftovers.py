"""Leftovers of shards are joined: at most one incomplete batch an epoch and rank, exactly."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases, slow
from datasets import Dataset
from example_streams import loader_of, rest, sample, taken, through_a_file
from hypothesis import example, given, settings
from hypothesis import strategies as st
from subjects import digest
from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from dataporter import ResumableDataLoader
from dataporter.fetch.failure import Failure
from dataporter.streams.leftovers import Bundle, Leftover, Leftovers

lengths = st.lists(st.integers(0, 9), min_size=1, max_size=7)


class Uneven(IterableDataset[Any]):
    """Shards of given lengths, which are read anew or have a state, by turns."""

    def __init__(self, lengths: Sequence[int], failing: frozenset[int] = frozenset()) -> None:
        self.lengths, self.failing = lengths, failing
        self.num_shards = len(lengths)

    def shard(self, num_shards: int, index: int) -> Any:
        first = 100 * index
        part = _Part(range(first, first + self.lengths[index]), self.failing)
        return part if index % 2 else _Resumed(part)

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)


class _Part:
    def __init__(self, numbers: range, failing: frozenset[int]) -> None:
        self.numbers, self.failing, self.offset = numbers, failing, 0

    def __iter__(self) -> _Part:
        return self

    def __next__(self) -> Any:
        if self.offset == len(self.numbers):
            raise StopIteration
        number = self.numbers[self.offset]
        self.offset += 1
        if number in self.failing:
            raise ValueError(f"sample {number} is broken")
        return sample(number)


class _Resumed:
    def __init__(self, part: _Part) -> None:
        self.part = part

    def __iter__(self) -> _ResumedIterator:
        return _ResumedIterator(self.part)


class _ResumedIterator:
    def __init__(self, part: _Part) -> None:
        self.part = part

    def __iter__(self) -> _ResumedIterator:
        return self

    def __next__(self) -> Any:
        return next(self.part)

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.part.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.part.offset = state["offset"]


def all_of(stream: Uneven) -> list[int]:
    return [
        100 * index + offset
        for index, length in enumerate(stream.lengths)
        for offset in range(length)
        if 100 * index + offset not in stream.failing
    ]


def numbers_of(batches: Sequence[Any]) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


# ---- the law


@given(
    lengths=lengths,
    batch_size=st.integers(1, 6),
    world=st.integers(1, 3),
    drop_last=st.booleans(),
    in_order=st.booleans(),
)
@settings(max_examples=cases(100))
def test_at_most_one_batch_of_a_rank_is_incomplete(
    lengths: list[int], batch_size: int, world: int, drop_last: bool, in_order: bool
) -> None:
    world = min(world, len(lengths))
    found: list[int] = []
    for rank in range(world):
        arguments = {"batch_size": batch_size, "drop_last": drop_last, "in_order": in_order}
        loader = loader_of(Uneven(lengths), rank=rank, world_size=world, **arguments)
        batches = numbers_of(list(loader))
        samples = sum(lengths[rank::world])
        expected = samples // batch_size if drop_last else -(-samples // batch_size)
        assert len(batches) == expected
        assert all(len(batch) == batch_size for batch in batches[:-1])
        found += itertools.chain.from_iterable(batches)
    assert len(found) == len(set(found))
    if not drop_last:
        assert sorted(found) == all_of(Uneven(lengths))


# A shard of which nothing but a failure is left.
@example(
    lengths=[1, 2],
    batch_size=1,
    stops=[2],
    failing=frozenset({0}),
    snapshot_every=1,
    drop_last=False,
    replaces=False,
)
@example(
    lengths=[2, 2],
    batch_size=3,
    stops=[1, 1],
    failing=frozenset(),
    snapshot_every=1,
    drop_last=False,
    replaces=False,
)
@given(
    lengths=lengths,
    batch_size=st.integers(1, 6),
    stops=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    failing=st.frozensets(st.integers(0, 6).map(lambda n: 101 * n), max_size=4),
    snapshot_every=st.integers(1, 3),
    drop_last=st.booleans(),
    replaces=st.booleans(),
)
@settings(max_examples=cases(150))
def test_a_resume_is_exact_wherever_it_was_stopped(
    lengths: list[int],
    batch_size: int,
    stops: list[int],
    failing: frozenset[int],
    snapshot_every: int,
    drop_last: bool,
    replaces: bool,
) -> None:
    def loader() -> ResumableDataLoader[Any]:
        return loader_of(
            Uneven(lengths, failing),
            batch_size=batch_size,
            on_error=(lambda error, index: sample(-1)) if replaces else "skip",
            snapshot_every=snapshot_every,
            drop_last=drop_last,
        )

    whole = loader()
    expected, states = [], []
    for digested in (rest_of([batch]) for batch in whole):
        expected += digested
        states.append(whole.state_dict())
    found: list[str] = []
    state = None
    for stop in (*stops, None):
        resumed = loader()
        if state is not None:
            resumed.load_state_dict(through_a_file(state))
        found += rest_of(list(itertools.islice(resumed, stop)))
        state = resumed.state_dict()
        if state["epoch"] == 1:
            break
        if state["step"]:
            assert without_digests(state) == without_digests(states[state["step"] - 1])
    assert found == expected
    failures = [(one.index, one.epoch, one.position) for one in resumed.failures]
    assert sorted(failures) == sorted(
        (one.index, one.epoch, one.position) for one in whole.failures
    )


def without_digests(state: dict[str, Any]) -> dict[str, Any]:
    """A resume that rereads a part of a leftover has a digest of that, which its state holds."""
    shards = [[*shard[:6], *shard[8:]] for shard in state["shards"]]
    return {**state, "shards": shards}


def rest_of(batches: list[Any]) -> list[str]:
    return [digest(batch) for batch in batches]


@pytest.mark.parametrize(("workers", "prefetch_factor"), [(2, 1), *slow((1, 6), (5, 1), (5, 6))])
def test_workers_change_nothing(workers: int, prefetch_factor: int) -> None:
    stream = Uneven([5, 0, 9, 1, 2, 7], frozenset({3, 206, 400}))
    expected = rest(loader_of(stream, batch_size=4, on_error="skip"))
    for stop in (0, 3, len(expected) - 1):
        stopped = loader_of(
            stream, workers, batch_size=4, on_error="skip", prefetch_factor=prefetch_factor
        )
        seen = taken(stopped, stop)
        resumed = loader_of(stream, workers, batch_size=4, on_error="skip")
        resumed.load_state_dict(through_a_file(stopped.state_dict()))
        assert seen + rest(resumed) == expected


@pytest.mark.parametrize(("rows", "drop_last"), [(100, True), *slow((65, False), (65, True))])
def test_as_many_batches_as_torch_has(rows: int, drop_last: bool) -> None:
    table = Dataset.from_dict({"n": range(64 * rows)})
    stream = table.to_iterable_dataset(num_shards=64)
    own = ResumableDataLoader(stream, 64, drop_last=drop_last)
    theirs = DataLoader(stream.with_format("torch"), 64, drop_last=drop_last)
    assert [len(batch["n"]) for batch in own] == [len(batch["n"]) for batch in theirs]


def test_the_leftovers_of_other_batch_sizes_are_joined_too() -> None:
    stream = Uneven([7, 7, 7])
    loader = loader_of(stream, batch_size=5)
    seen = numbers_of(list(itertools.islice(loader, 4)))
    assert seen[-1] == [5, 6, 105, 106, 205]
    resumed = loader_of(stream, batch_size=2)
    resumed.load_state_dict(loader.state_dict())
    assert numbers_of(list(resumed)) == [[206]]


# ---- in the workers


def collated_where(samples: list[Any]) -> Any:
    info = get_worker_info()
    batch = default_collate(samples)
    batch["worker"] = torch.full((len(samples),), -1 if info is None else info.id)
    batch["drawn"] = torch.rand(1), np.random.random()
    return batch


def test_a_worker_collates_what_is_joined() -> None:
    stream = Uneven([5, 4, 3, 5])
    inline = list(loader_of(stream, batch_size=3, collate_fn=collated_where))
    batches = list(loader_of(stream, 2, batch_size=3, collate_fn=collated_where))
    assert all((batch["worker"] >= 0).all() for batch in batches)
    assert all((batch.pop("worker") == -1).all() for batch in inline)
    for batch in batches:
        del batch["worker"]
    assert rest_of(batches) == rest_of(inline)


class KillsItself:
    """Collates a joined batch only in the second worker that tries."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self, samples: list[Any]) -> Any:
        batch = default_collate(samples)
        joined = len({number // 100 for number in batch["index"].tolist()}) > 1
        if joined and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch


def test_a_worker_that_dies_over_a_joined_batch_is_replaced(tmp_path: Path) -> None:
    stream = Uneven([5, 4, 3, 5])
    expected = rest(loader_of(stream, batch_size=3))
    collate = KillsItself(tmp_path / "killed")
    loader = loader_of(stream, 2, batch_size=3, collate_fn=collate, worker_restarts=1)
    with pytest.warns(RuntimeWarning, match="leftover samples of the stream .* it is replaced"):
        assert rest(loader) == expected


class Slow(IterableDataset[Any]):
    """Shard 0 waits until the event is set."""

    num_shards = 4

    def __init__(self, event: Any) -> None:
        self.event = event

    def shard(self, num_shards: int, index: int) -> Iterator[int]:
        if index == 0:
            assert self.event.wait(60)
        yield from range(10 * index, 10 * index + 10)

    def __iter__(self) -> Iterator[int]:
        for index in range(4):
            yield from self.shard(4, index)


def test_out_of_order_a_slow_worker_delays_only_its_own_shards() -> None:
    event = torch.multiprocessing.get_context("fork").Event()
    loader = ResumableDataLoader(
        Slow(event), 2, num_workers=2, in_order=False, multiprocessing_context="fork", timeout=60
    )
    batches = iter(loader)
    # Worker 1 has shards 1 and 3.
    early = [next(batches).tolist() for _ in range(10)]
    assert sorted(itertools.chain(*early)) == [*range(10, 20), *range(30, 40)]
    state = through_a_file(loader.state_dict())
    event.set()
    late = [batch.tolist() for batch in batches]
    assert sorted(itertools.chain(*early, *late)) == list(range(40))
    resumed = ResumableDataLoader(Slow(event), 2)
    resumed.load_state_dict(state)
    assert sorted(itertools.chain(*(batch.tolist() for batch in resumed))) == sorted(
        itertools.chain(*late)
    )


# ---- leftovers


def leftover(shard: int, first: int, length: int, missing: Sequence[int]) -> Leftover:
    offsets = [offset for offset in range(first, first + length) if offset not in missing]
    failures = tuple(
        Failure((shard, offset), None, 0, 0, offset, "ValueError", "broken") for offset in missing
    )
    samples = [(shard, offset) for offset in offsets]
    return Leftover(shard, first, length, tuple(missing), failures, True, Bundle(samples))


@given(
    leftovers=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 6), st.sets(st.integers(0, 5))), max_size=6
    ),
    counts=st.lists(st.integers(1, 7), max_size=12),
    pickled=st.booleans(),
)
@settings(max_examples=cases(200))
def test_pieces_are_taken_in_their_order_and_none_is_lost(
    leftovers: list[tuple[int, int, set[int]]], counts: list[int], pickled: bool
) -> None:
    held = Leftovers()
    expected = []
    for shard, (first, length, absent) in enumerate(leftovers):
        missing = sorted(first + offset for offset in absent if offset < length)
        held.add(leftover(shard, first, length, missing))
        expected += [(shard, offset) for offset in range(first, first + length)]
    total = held.count
    assert total == len(expected)
    for count in (*counts, total + 1):
        taken = pickle.loads(pickle.dumps(held.take(count))) if pickled else held.take(count)
        positions = [(one.shard, at) for one in taken for at in range(one.first, one.stop)]
        assert positions == expected[:count]
        del expected[:count]
        missing = [(one.shard, offset) for one in taken for offset in one.missing]
        samples = [found for one in taken for found in one.samples()]
        assert sorted([*samples, *missing]) == sorted(positions)
        assert [failure.index for one in taken for failure in one.failures] == missing
        assert held.count == len(expected)
        # The last leftover of a shard says that it is the last.
        assert all(
            one.ends == (one.stop == leftovers[one.shard][0] + leftovers[one.shard][1])
            for one in taken
        )


def test_a_bundle_takes_the_bytes_of_its_samples() -> None:
    table = torch.arange(1_000_000)
    bundle = Bundle([table[:3], {"row": table[500:510]}])
    message = pickle.dumps(bundle)
    assert len(message) < 2000
    first, second = pickle.loads(message).samples()
    assert first.tolist() == [0, 1, 2]
    assert second["row"].tolist() == list(range(500, 510))
