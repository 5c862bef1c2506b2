"""Iterable datasets go on from the exact next sample, whatever they offer (C10)."""

from __future__ import annotations

import collections
import itertools
import json
import os
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from budgets import cases
from example_streams import (
    KINDS,
    Generated,
    Sharded,
    Stateful,
    StatefulIterator,
    numbers,
    sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import digest
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import (
    ConfigurationError,
    DatasetChangedError,
    InvalidStateError,
    ResumableDataLoader,
    SampleError,
    ShardedStream,
    StateMismatchError,
    UnsupportedDatasetError,
)

pytestmark = pytest.mark.filterwarnings("ignore:the stream gives no exact state")
SEED = 11
DRAWN = ("python", "numpy", "torch", "explicit")
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def loader_of(dataset: Any, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"batch_size": 3, "seed": SEED, **arguments}
    return ResumableDataLoader(dataset, num_workers=workers, **arguments)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


def taken(loader: ResumableDataLoader[Any], steps: int) -> list[str]:
    """Digests of the first batches of a pass, which is left there."""
    return [digest(batch) for batch in itertools.islice(loader, steps)]


def rest(loader: ResumableDataLoader[Any]) -> list[str]:
    return [digest(batch) for batch in loader]


# ---- the law: stop anywhere, go on from the next sample


@kinds
@settings(max_examples=cases(60))
@given(
    length=st.integers(0, 40),
    batch_size=st.integers(1, 7),
    stop=st.integers(0, 14),
    snapshot_every=st.integers(1, 4),
    strategy=st.sampled_from(["simple", "advanced", "distributed"]),
    drop_last=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_a_resumed_stream_is_the_uninterrupted_one(
    kind: str,
    length: int,
    batch_size: int,
    stop: int,
    snapshot_every: int,
    strategy: str,
    drop_last: bool,
    epoch: int,
) -> None:
    arguments = {
        "batch_size": batch_size,
        "snapshot_every": snapshot_every,
        "strategy": strategy,
        "drop_last": drop_last,
    }
    whole = loader_of(KINDS[kind](length), **arguments)
    whole.set_epoch(epoch)
    expected = [*rest(whole), "end", *rest(whole)]

    stopped = loader_of(KINDS[kind](length), **arguments)
    stopped.set_epoch(epoch)
    seen = taken(stopped, stop)
    ended = len(seen) < stop
    state = through_a_file(stopped.state_dict())

    resumed = loader_of(KINDS[kind](length), **arguments)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    found = [*seen, *(["end"] if ended else []), *rest(resumed)]
    if not ended:
        found += ["end", *rest(resumed)]
    assert found == expected


@kinds
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("stop", [0, 1, 4, 8, 100])
def test_workers_stop_and_go_on(kind: str, workers: int, stop: int) -> None:
    expected = rest(loader_of(KINDS[kind](31), workers))
    stopped = loader_of(KINDS[kind](31), workers)
    seen = taken(stopped, stop)
    state = through_a_file(stopped.state_dict())
    resumed = loader_of(KINDS[kind](31), workers, prefetch_factor=3)
    resumed.load_state_dict(state)
    if stop < 100:
        assert seen + rest(resumed) == expected
    else:
        assert (seen, resumed.epoch, resumed.step) == (expected, 1, 0)


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (2, 0), (5, 2)])
@pytest.mark.parametrize("stop", [0, 3, 7])
def test_other_workers_take_shards_over(before: int, after: int, stop: int) -> None:
    """Neither the batches nor their sequence know of workers."""
    expected = rest(loader_of(Sharded(37)))
    stopped = loader_of(Sharded(37), before)
    seen = taken(stopped, stop)
    resumed = loader_of(Sharded(37), after)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    assert seen + rest(resumed) == expected


@given(
    length=st.integers(0, 60),
    batch_sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    stops=st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
@settings(max_examples=cases(60))
def test_the_batch_size_changes_and_each_sample_comes_once(
    length: int, batch_sizes: list[int], stops: list[int]
) -> None:
    found: dict[int, Any] = {}
    state = None
    for batch_size, stop in itertools.zip_longest(batch_sizes, stops[: len(batch_sizes) - 1]):
        loader = loader_of(Sharded(length), batch_size=batch_size)
        if state is not None:
            loader.load_state_dict(state)
        for batch in itertools.islice(loader, stop):
            for place, number in enumerate(batch["index"].tolist()):
                assert number not in found
                found[number] = batch["explicit"][place].item()
        if loader.epoch == 1:
            break
        state = through_a_file(loader.state_dict())
    whole = {
        int(batch["index"]): batch["explicit"].item()
        for batch in loader_of(Sharded(length), batch_size=1)
    }
    assert found == whole


@given(
    length=st.integers(0, 60),
    num_shards=st.integers(1, 7),
    worlds=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    stop=st.integers(0, 4),
)
@settings(max_examples=cases(60))
def test_ranks_come_and_go_and_each_sample_comes_once(
    length: int, num_shards: int, worlds: list[int], stop: int
) -> None:
    worlds = [min(world, num_shards) for world in worlds]
    found: list[int] = []
    whole: dict[str, Any] | None = None
    for world in worlds:
        loaders = [
            loader_of(
                Sharded(length, num_shards), strategy="distributed", rank=rank, world_size=world
            )
            for rank in range(world)
        ]
        if whole is not None:
            for loader in loaders:
                loader.load_state_dict(whole)
        passes = [iter(loader) for loader in loaders]
        for a_pass in passes:
            found += numbers(list(itertools.islice(a_pass, stop)))
        parts = [loader.state_dict() for loader in loaders]
        whole = through_a_file(loaders[0]._flow.joined(parts))
        if whole["epoch"] == 1:
            break
    if whole is not None and whole["epoch"] == 0:
        for loader in loaders:
            loader.load_state_dict(whole)
            found += numbers(list(loader))
    assert sorted(found) == list(range(length))


# ---- one sequence, whoever reads


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_has_the_same_batches_on_any_number_of_ranks_that_divides_the_shards(
    world: int,
) -> None:
    class Even(Sharded):
        def shard(self, num_shards: int, index: int) -> Any:
            return [sample(number) for number in range(index, self.length, num_shards)]

    alone = rest(loader_of(Even(48, 8)))
    steps = zip(
        *(rest(loader_of(Even(48, 8), rank=rank, world_size=world)) for rank in range(world))
    )
    assert [batch for step in steps for batch in step] == alone


def test_shards_take_turns() -> None:
    class Letters(IterableDataset[str]):
        num_shards = 3

        def shard(self, num_shards: int, index: int) -> list[str]:
            return list(["abcdefg", "", "xyz"][index])

        def __iter__(self) -> Iterator[str]:
            return iter("abcdefgxyz")

    batches = list(loader_of(Letters(), batch_size=2))
    assert batches == [["a", "b"], ["x", "y"], ["c", "d"], ["z"], ["e", "f"], ["g"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_one_shard(workers: int) -> None:
    loader = loader_of(Sharded(10, 1), workers)
    assert numbers(list(loader)) == list(range(10))


def test_workers_beyond_the_shards_have_nothing_to_read() -> None:
    loader = loader_of(Sharded(10, 2), 4)
    assert sorted(numbers(list(loader))) == list(range(10))


def test_every_shard_is_cut_once_and_as_often_as_is_said() -> None:
    assert len(loader_of(Sharded(64, 64), num_shards=8, batch_size=100).state_dict()["shards"]) == 0
    batches = list(loader_of(Sharded(64, 64), num_shards=8, batch_size=100))
    assert len(batches) == 8
    assert sorted(numbers(batches)) == list(range(64))


def test_by_default_no_more_than_64_shards_are_open() -> None:
    loader = loader_of(Sharded(1000, 500), batch_size=100)
    assert loader.state_dict()["num_shards"] == 64
    assert sorted(numbers(list(loader))) == list(range(1000))


def test_the_protocol_is_seen_at_runtime() -> None:
    assert isinstance(Sharded(3), ShardedStream)
    assert not isinstance(Generated(3), ShardedStream)


# ---- how a stream ends


@pytest.mark.parametrize("workers", [0, 2])
@kinds
def test_an_epoch_after_the_other(kind: str, workers: int) -> None:
    loader = loader_of(KINDS[kind](20), workers)
    first, second = list(loader), list(loader)
    assert sorted(numbers(first)) == sorted(numbers(second)) == list(range(20))
    assert (loader.epoch, loader.step) == (2, 0)
    pixels = [{float(x) for batch in epoch for x in batch["python"]} for epoch in (first, second)]
    assert not pixels[0] & pixels[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_endless_stream(workers: int) -> None:
    class Endless(Generated):
        def __iter__(self) -> Iterator[Any]:
            return map(sample, itertools.count())

    loader = loader_of(Endless(0), workers)
    seen = taken(loader, 7)
    resumed = loader_of(Endless(0), workers)
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    assert seen + taken(resumed, 6) == taken(loader_of(Endless(0), workers), 13)


@pytest.mark.parametrize("stop", [0, 2, 5, 6])
@pytest.mark.parametrize("state", [True, False])
def test_one_worker_ends_early(stop: int, state: bool) -> None:
    expected = sorted(numbers(list(loader_of(_uneven(state), 2))))
    assert expected == [0, *range(100, 117)]
    stopped = loader_of(_uneven(state), 2)
    batches = list(itertools.islice(stopped, stop))
    resumed = loader_of(_uneven(state), 2)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    assert sorted(numbers(batches + list(resumed))) == expected


def _uneven(state: bool) -> IterableDataset[Any]:
    base: Any = StatefulIterator if state else Generated

    class Uneven(base):  # type: ignore[misc]  # one of two classes
        def __iter__(self) -> Any:
            info = get_worker_info()
            share = range(1) if info is None or info.id == 0 else range(100, 117)
            if not state:
                return (sample(number) for number in share)
            iterator = super().__iter__()
            iterator.share = share
            return iterator

    return Uneven(0)


def test_the_state_after_the_last_batch_resumes_with_none() -> None:
    for kind in KINDS.values():
        loader = loader_of(kind(12))
        batches = iter(loader)
        count = len(rest(loader_of(kind(12))))
        for _ in range(count):
            next(batches)
        state = loader.state_dict()
        assert (state["epoch"], state["step"]) == (0, count)
        resumed = loader_of(kind(12))
        resumed.load_state_dict(state)
        assert rest(resumed) == []
        assert resumed.epoch == 1
        assert sorted(numbers(list(resumed))) == list(range(12))


# ---- what the dataset is asked for


class Counting(StatefulIterator):
    read: ClassVar[list[int]] = []

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        original = type(iterator).__next__

        class Counted(type(iterator)):  # type: ignore[misc]  # of an object
            def __next__(self) -> Any:
                Counting.read.append(self.place)
                return original(self)

        iterator.__class__ = Counted
        return iterator


@pytest.mark.parametrize(("every", "again"), [(1, 0), (3, 2), (5, 0), (10, 5)])
def test_a_resume_reads_again_what_came_since_the_snapshot(every: int, again: int) -> None:
    stopped = loader_of(Counting(60), snapshot_every=every)
    taken(stopped, 5)
    state = stopped.state_dict()
    resumed = loader_of(Counting(60), snapshot_every=every)
    resumed.load_state_dict(state)
    Counting.read.clear()
    next(iter(resumed))
    assert Counting.read == list(range((5 - again) * 3, 6 * 3))


def test_what_is_its_own_iterator_gives_its_state_once() -> None:
    class Own(IterableDataset[int]):
        asked = 0
        place = 0

        def __iter__(self) -> Own:
            return self

        def __next__(self) -> Any:
            if self.place == 9:
                raise StopIteration
            self.place += 1
            return sample(self.place)

        def state_dict(self) -> dict[str, Any]:
            self.asked += 1
            return {"place": self.place}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.place = state["place"]

    dataset = Own()
    loader = loader_of(dataset)
    batches = iter(loader)
    next(batches)
    assert dataset.asked == 2  # as it was found, and behind the batch
    state = loader.state_dict()
    assert state["shards"][0][-1] == '{"dataset":{"place":3}}'
    resumed = loader_of(Own())
    resumed.load_state_dict(state)
    assert numbers(list(resumed)) == [4, 5, 6, 7, 8, 9]


def test_a_dataset_and_its_iterator_may_both_have_a_state() -> None:
    class Both(StatefulIterator):
        offset = 0

        def __iter__(self) -> Any:
            iterator = super().__iter__()
            iterator.share = range(self.offset, self.offset + 9)
            return iterator

        def state_dict(self) -> dict[str, Any]:
            return {"offset": self.offset}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.offset = state["offset"]

    dataset = Both(0)
    dataset.offset = 70
    loader = loader_of(dataset)
    taken(loader, 2)
    resumed = loader_of(Both(0))
    resumed.load_state_dict(loader.state_dict())
    assert numbers(list(resumed)) == [76, 77, 78]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Generated, Sharded])
def test_the_epoch_reaches_the_stream(kind: Any, workers: int) -> None:
    class Epochs(kind):  # type: ignore[misc]  # one of two classes
        epoch = -1

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def shard(self, num_shards: int, index: int) -> Any:
            return [sample(self.epoch)] * 3

        def __iter__(self) -> Iterator[Any]:
            return iter([sample(self.epoch)] * 3)

    loader = loader_of(Epochs(12), workers)
    assert [set(numbers(list(loader))) for _ in range(2)] == [{0}, {1}]
    loader.set_epoch(7)
    assert set(numbers(list(loader))) == {7}


@kinds
def test_random_augmentation_belongs_to_shard_and_place(kind: str) -> None:
    """The pixels of a sample do not depend on the batch size, and not on the workers of shards."""
    first, second = (
        {
            number: [batch[name][place].tolist() for name in DRAWN]
            for batch in loader_of(KINDS[kind](20), batch_size=size)
            for place, number in enumerate(batch["index"].tolist())
        }
        for size in (1, 6)
    )
    assert first == second
    assert len({str(pixels) for pixels in first.values()}) == 20


def test_the_trainings_own_generators_stay_untouched() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    rest(loader_of(Generated(9)))
    assert torch.equal(before, torch.get_rng_state())


# ---- arguments


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_without_batches(workers: int) -> None:
    loader = loader_of(Sharded(11), workers, batch_size=None)
    batches = iter(loader)
    seen = [int(next(batches)["index"]) for _ in range(4)]
    resumed = loader_of(Sharded(11), workers, batch_size=None)
    resumed.load_state_dict(loader.state_dict())
    seen += [int(item["index"]) for item in resumed]
    assert sorted(seen) == list(range(11))


def test_persistent_workers_begin_anew_after_a_pass_that_was_left() -> None:
    loader = loader_of(Sharded(40), 2, persistent_workers=True)
    expected = rest(loader_of(Sharded(40)))
    assert taken(loader, 3) == expected[:3]
    state = loader.state_dict()
    assert rest(loader) != expected  # epoch 1
    loader.load_state_dict(state)
    assert rest(loader) == expected[3:]


def test_batches_out_of_turn_are_counted_by_shard() -> None:
    stopped = loader_of(Sharded(60), 3, in_order=False)
    seen = list(itertools.islice(stopped, 7))
    resumed = loader_of(Sharded(60), 2, in_order=False)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    assert sorted(numbers([*seen, *resumed])) == list(range(60))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_converter_works_where_the_stream_is_read(workers: int) -> None:
    class Where(Generated):
        def __iter__(self) -> Iterator[Any]:
            return iter([{"pixels": torch.full((2,), 0.5), "pid": os.getpid()}] * 4)

    loader = loader_of(Where(0), workers, converter={"pixels": "float16"})
    (batch, *_) = list(loader)
    assert batch["pixels"].dtype is torch.float16
    assert (int(batch["pid"][0]) == os.getpid()) == (workers == 0)


@pytest.mark.parametrize(
    ("dataset", "arguments", "told"),
    [
        (Generated(3), {"num_shards": 2}, "Generated cannot be cut into shards"),
        (Sharded(3), {"num_shards": 5}, "1 to 4 shards"),
        (Sharded(3), {"num_shards": 0}, "1 to 4 shards"),
        (Sharded(3), {"rank": 0, "world_size": 5, "seed": 1}, "5 ranks"),
        (Sharded(3), {"order": "shuffled"}, "no indices to order"),
        (Sharded(3), {"tail": "pad"}, "cannot be made equal"),
        (Sharded(3), {"worker_kind": "thread", "num_workers": 2}, "one sample after another"),
        (Sharded(3), {"snapshot_every": 0}, "snapshot_every=0"),
        ([1, 2], {"num_shards": 2}, "read by index"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_has_no_meaning_here(
    dataset: Any, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        ResumableDataLoader(dataset, **arguments)


def test_a_stream_has_no_place_to_jump_to() -> None:
    loader = loader_of(Sharded(9))
    for act in (
        lambda: loader.seek(step=1),
        lambda: loader.samples_at(0, 0),
        lambda: loader.padding(0),
        lambda: loader.remaining,
    ):
        with pytest.raises(UnsupportedDatasetError, match="Sharded is an IterableDataset"):
            act()


def test_what_is_left_is_known_where_the_length_is() -> None:
    class Sized(Generated):
        def __len__(self) -> int:
            return self.length

    loader = loader_of(Sized(10))
    assert (len(loader), loader.remaining) == (4, 4)
    batches = iter(loader)
    next(batches)
    assert (len(loader), loader.remaining, loader.position) == (4, 3, 3)
    larger = ResumableDataLoader(loader.dataset, batch_size=6, strategy="advanced")
    larger.load_state_dict({**loader.state_dict(), "strategy": "advanced"})
    assert (len(larger), larger.remaining) == (2, len(list(larger)))


def test_nothing_is_left_to_a_rank_whose_shards_have_ended() -> None:
    class Sized(Sharded):
        def __len__(self) -> int:
            return self.length

    def ranks() -> list[Any]:
        return [
            loader_of(Sized(16, 2), batch_size=2, rank=rank, world_size=2, strategy="distributed")
            for rank in range(2)
        ]

    begun = ranks()
    for loader in begun:
        batches = iter(loader)
        for _ in range(3):  # the first one has two
            next(batches, None)
    whole = begun[0]._flow.joined([loader.state_dict() for loader in begun])
    for loader in (resumed := ranks()):
        loader.load_state_dict(whole)
    assert [loader.remaining for loader in resumed] == [0, 1]


# ---- failures


class Failing(StatefulIterator):
    """Fails at some samples, and can go on behind them."""

    failing = (4, 5, 13)

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        original = type(iterator).__next__
        failing = self.failing

        class Fails(type(iterator)):  # type: ignore[misc]  # of an object
            def __next__(self) -> Any:
                found = original(self)
                if found["index"] in failing:
                    raise ValueError(f"sample {found['index']} is broken")
                return found

        iterator.__class__ = Fails
        return iterator


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_raises_ends_the_pass_and_not_the_epoch(workers: int) -> None:
    loader = loader_of(Failing(30), workers)
    batches = iter(loader)
    seen: list[Any] = []
    with pytest.raises(ValueError, match="is broken") as caught:
        collections.deque((seen.append(batch) for batch in batches), maxlen=0)
    assert "of shard 0 of the stream (epoch 0)" in str(caught.value.__notes__)
    assert list(batches) == []
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (0, len(seen))
    mended = Failing(30)
    mended.failing = ()
    resumed = loader_of(mended, workers)
    resumed.load_state_dict(state)
    assert sorted(numbers([*seen, *resumed])) == list(range(30))


@pytest.mark.parametrize("stop", range(0, 10, 3))
def test_samples_that_fail_are_left_out_and_the_places_stay(stop: int) -> None:
    with pytest.warns(RuntimeWarning, match=r"left out sample index \(0, 4\)"):
        expected = list(loader_of(Failing(30), on_error="skip"))
    assert numbers(expected) == [n for n in range(30) if n not in Failing.failing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stopped = loader_of(Failing(30), on_error="skip")
        seen = taken(stopped, stop)
        state = stopped.state_dict()
        state["shards"] = [[*entry[:4], 0, None] for entry in state["shards"]]  # replay all
        resumed = loader_of(Failing(30), on_error="skip")
        resumed.load_state_dict(state)
        assert seen + rest(resumed) == [digest(batch) for batch in expected]


def test_something_may_take_the_place_of_a_sample_that_fails() -> None:
    def instead(error: Exception, index: Any) -> Any:
        return {**sample(0), "index": -index[1]}

    found = numbers(list(loader_of(Failing(30), on_error=instead)))
    assert found == [-n if n in Failing.failing else n for n in range(30)]


def test_a_generator_cannot_be_gone_on_with() -> None:
    class Broken(Generated):
        def __iter__(self) -> Iterator[Any]:
            yield sample(0)
            raise ValueError("broken")

    with pytest.raises(SampleError, match="a generator cannot go on"):
        rest(loader_of(Broken(0), on_error="skip"))


def test_a_stream_that_only_fails() -> None:
    dataset = Failing(300)
    dataset.failing = tuple(range(6, 300))
    loader = loader_of(dataset, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(taken(loader, 2)) == 2
        with pytest.raises(SampleError, match="102 samples of shard 0 up to offset 108 failed"):
            rest(loader_of(dataset, on_error="skip"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_batch_of_which_nothing_is_left_is_passed_over(
    workers: int, batch_size: int | None
) -> None:
    def told(loader: ResumableDataLoader[Any], steps: int | None = None) -> list[int]:
        batches = itertools.islice(loader, steps)
        return [
            int(number) for batch in batches for number in torch.as_tensor(batch["index"]).view(-1)
        ]

    arguments = {"batch_size": batch_size, "on_error": "skip"}
    with pytest.warns(RuntimeWarning, match=r"left out sample index .* broken") as caught:
        expected = told(loader_of(Failing(20), workers, **arguments))
    assert len(caught) == 3
    assert sorted(expected) == [n for n in range(20) if n not in Failing.failing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stop in range(len(expected) // (batch_size or 1)):
            stopped = loader_of(Failing(20), workers, **arguments)
            seen = told(stopped, stop)
            resumed = loader_of(Failing(20), workers, **arguments)
            resumed.load_state_dict(through_a_file(stopped.state_dict()))
            assert seen + told(resumed) == expected


def test_a_collate_function_that_fails_loses_nothing() -> None:
    def collate(samples: list[Any]) -> Any:
        if os.environ.get("DATAPORTER_TEST_BREAKS") and samples[0]["index"] >= 9:
            raise ValueError("cannot collate")
        return torch.utils.data.default_collate(samples)

    os.environ["DATAPORTER_TEST_BREAKS"] = "1"
    try:
        loader = loader_of(Generated(20), collate_fn=collate)
        batches = iter(loader)
        seen = [next(batches) for _ in range(3)]
        with pytest.raises(ValueError, match="cannot collate") as caught:
            next(batches)
    finally:
        del os.environ["DATAPORTER_TEST_BREAKS"]
    assert "while collating 3 samples of shard 0" in str(caught.value.__notes__)
    loader.load_state_dict(loader.state_dict())
    assert numbers([*seen, *loader]) == list(range(20))


def killing_workers(loader: ResumableDataLoader[Any], steps: tuple[int, ...]) -> Iterator[str]:
    for step, batch in enumerate(loader):
        yield digest(batch)
        if step in steps:
            os.kill(loader.usage().workers[step % 2], signal.SIGKILL)
            time.sleep(0.05)


@pytest.mark.parametrize("kind", [Stateful, StatefulIterator, Sharded, Generated])
def test_a_worker_that_is_killed_is_replaced_and_nothing_is_lost(kind: Any) -> None:
    expected = rest(loader_of(kind(60), 2))
    loader = loader_of(kind(60), 2)
    with pytest.warns(RuntimeWarning, match="it is replaced"):
        seen = list(killing_workers(loader, steps=(3, 9)))
    assert seen == expected


# ---- states


def test_a_replay_is_told_of() -> None:
    loader = loader_of(Generated(30))
    taken(loader, 4)
    resumed = loader_of(Generated(30))
    resumed.load_state_dict(loader.state_dict())
    with pytest.warns(RuntimeWarning, match="12 samples that were delivered are read again"):
        rest(resumed)


def test_a_replay_has_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(Generated):
        def __iter__(self) -> Iterator[Any]:
            for place in range(9001):
                if place % 3000 == 0:
                    time.sleep(0.6)
                yield place

    state = {
        **loader_of(Slow(0)).state_dict(),
        "shards": [[0, 3000, 9000, False, 0, None]],
    }
    loader = loader_of(Slow(0))
    loader.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == [[9000]]
    assert "replaying the stream" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["replay", "shards"])
def test_data_that_have_become_fewer_are_noticed(kind: str) -> None:
    loader = loader_of(KINDS[kind](40), snapshot_every=4)
    taken(loader, 11)
    resumed = loader_of(KINDS[kind](9), snapshot_every=4)
    resumed.load_state_dict(loader.state_dict())
    with pytest.raises(DatasetChangedError, match="of the stream ended at sample"):
        rest(resumed)


@pytest.mark.parametrize("kind", [Generated, Stateful])
def test_the_workers_of_a_stream_that_they_read_cannot_change(kind: Any) -> None:
    loader = loader_of(kind(30), 2)
    taken(loader, 4)
    state = loader.state_dict()
    for workers in (0, 3):
        with pytest.raises(StateMismatchError, match="num_workers: the state has 2"):
            loader_of(kind(30), workers).load_state_dict(state)
    anyway = loader_of(kind(30), 0)
    with pytest.warns(RuntimeWarning, match="num_workers"):
        anyway.load_state_dict(state, on_mismatch="warn")
    assert numbers(list(anyway)) == list(range(30))  # from the epoch's beginning
    with pytest.raises(StateMismatchError, match="world_size: the state has 1"):
        loader_of(kind(30), 2, rank=0, world_size=2).load_state_dict(
            {**state, "strategy": "distributed"}
        )


def test_the_workers_of_a_stream_that_they_read_may_be_set_between_epochs() -> None:
    loader = loader_of(Generated(30), 2)
    assert sorted(numbers(list(loader))) == list(range(30))
    loader.num_workers = 3
    assert sorted(numbers(list(loader))) == list(range(30))
    taken(loader, 2)
    state = loader.state_dict()
    assert state["num_workers"] == 3
    loader.load_state_dict(state)
    loader.num_workers = 0
    with pytest.raises(ConfigurationError, match="num_workers was 3"):
        rest(loader)
    loader.set_epoch(7)
    assert numbers(list(loader)) == list(range(30))


def test_no_worker_is_one_worker() -> None:
    loader = loader_of(Generated(30))
    seen = taken(loader, 4)
    resumed = loader_of(Generated(30), 1)
    resumed.load_state_dict(loader.state_dict())
    assert seen + rest(resumed) == rest(loader_of(Generated(30)))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"num_shards": 3}, "num_shards: the state has 4"),
        ({"batch_size": 5, "strategy": "simple"}, "strategy"),
        ({"drop_last": True}, "tail"),
        ({"seed": 3}, "seed"),
    ],
    ids=str,
)
def test_what_must_stay_is_named(changed: dict[str, Any], told: str) -> None:
    loader = loader_of(Sharded(30))
    taken(loader, 4)
    other = loader_of(Sharded(30), **changed)
    before = other.state_dict()
    with pytest.raises(StateMismatchError, match=told):
        other.load_state_dict(loader.state_dict())
    assert other.state_dict() == before


def test_a_part_is_loaded_where_it_was_saved() -> None:
    ranks = [loader_of(Sharded(30), rank=rank, world_size=2) for rank in range(2)]
    for loader in ranks:
        taken(loader, 2)
    part = ranks[0].state_dict()
    assert part["rank"] == 0
    loader_of(Sharded(30), rank=0, world_size=2).load_state_dict(part)
    for rank, world in ((1, 2), (0, 1), (0, 3)):
        with pytest.raises(StateMismatchError, match=r"rank 0's part.*gather=True"):
            loader_of(
                Sharded(30), rank=rank, world_size=world, strategy="distributed"
            ).load_state_dict(part)
    with pytest.raises(ConfigurationError, match="no process group"):
        ranks[0].state_dict(gather=True)


def test_gathering_changes_nothing_where_there_is_one_rank_or_an_index() -> None:
    stream, indexed = loader_of(Sharded(9)), loader_of(range(9))
    assert stream.state_dict(gather=True) == stream.state_dict()
    assert indexed.state_dict(gather=True) == indexed.state_dict()


def test_states_of_streams_and_of_indices_are_told_apart() -> None:
    stream, indexed = loader_of(Sharded(9)), loader_of(range(9))
    with pytest.raises(InvalidStateError, match="is of an iterable dataset"):
        indexed.load_state_dict(stream.state_dict())
    with pytest.raises(InvalidStateError, match="is of a dataset with an index"):
        stream.load_state_dict(indexed.state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        {"stream": "fast"},
        {"rank": 7},
        {"shards": [[0, 1, 2]]},
        {"shards": [[9, 1, 2, False, 0, None]]},
        {"shards": [[0, 1, 2, False, 3, None]]},
        {"shards": [[0, 1, 2, False, 0, None], [0, 1, 2, False, 0, None]]},
        {"shards": [[0, 1, 2, 1, 0, None]]},
        {"shards": "all"},
        {"num_shards": None},
        {"num_workers": 3},
        {"epoch": -1},
        {"step": 1.5},
        {"world_size": 0},
        {"more": 1},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_whole(damage: dict[str, Any]) -> None:
    loader = loader_of(Sharded(30))
    taken(loader, 4)
    before = loader.state_dict()
    with pytest.raises(InvalidStateError):
        loader.load_state_dict({**before, **damage})
    assert loader.state_dict() == before
    for field in before:
        with pytest.raises(InvalidStateError):
            loader.load_state_dict({name: before[name] for name in before if name != field})


def test_a_damaged_snapshot_is_told_of() -> None:
    loader = loader_of(StatefulIterator(30))
    taken(loader, 4)
    state = loader.state_dict()
    state["shards"][0][-1] = '{"iterator":'
    loader.load_state_dict(state)
    with pytest.raises(InvalidStateError, match="snapshot in the state is damaged"):
        rest(loader)


def test_a_snapshot_that_nobody_takes_any_more() -> None:
    loader = loader_of(StatefulIterator(30))
    taken(loader, 4)
    state = loader.state_dict()
    resumed = loader_of(Generated(30))
    resumed.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="has no load_state_dict"):
        rest(resumed)


def test_a_state_passes_through_torch_save(tmp_path: Path) -> None:
    loader = loader_of(Sharded(30))
    seen = taken(loader, 4)
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    resumed = loader_of(Sharded(30))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert seen + rest(resumed) == rest(loader_of(Sharded(30)))


def test_copies_go_their_own_way() -> None:
    import copy
    import pickle

    loader = loader_of(Sharded(30))
    seen = taken(loader, 4)
    expected = rest(loader_of(Sharded(30)))
    for other in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        other.load_state_dict(loader.state_dict())
        assert seen + rest(other) == expected
    assert (loader.epoch, loader.step) == (0, 4)
