"""The end of a stream, and what the loader requires of its dataset (C3, C8, C10)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from example_streams import (
    KINDS,
    Generated,
    Sharded,
    StatefulIterator,
    loader_of,
    numbers,
    rest,
    sample,
    taken,
    through_a_file,
)
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataporter import ResumableDataLoader

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
DRAWN = ("python", "numpy", "torch", "explicit")
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


# ---- how a stream ends


@pytest.mark.parametrize("workers", [0, 2])
@kinds
def test_one_epoch_after_another(kind: str, workers: int) -> None:
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


# ---- what the loader requires of the dataset


class Counting(StatefulIterator):
    read: ClassVar[list[int]] = []

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        original = type(iterator).__next__

        class Counted(type(iterator)):  # type: ignore[misc]  # of an object
            def __next__(self) -> Any:
                Counting.read.append(self.offset)
                return original(self)

        iterator.__class__ = Counted
        return iterator


@pytest.mark.parametrize(("every", "again"), [(1, 2), (3, 12), (5, 2), (10, 25)])
def test_a_resume_rereads_the_samples_since_the_snapshot(every: int, again: int) -> None:
    """The snapshot lies before the last two samples of a batch, so that these are compared."""
    stopped = loader_of(Counting(60), batch_size=5, snapshot_every=every)
    taken(stopped, 5)
    state = stopped.state_dict()
    resumed = loader_of(Counting(60), batch_size=5, snapshot_every=every)
    resumed.load_state_dict(state)
    Counting.read.clear()
    next(iter(resumed))
    assert Counting.read == list(range(5 * 5 - again, 6 * 5))


def test_a_dataset_that_is_its_own_iterator_is_asked_for_its_state_once() -> None:
    class Own(IterableDataset[int]):
        asked = 0
        offset = 0

        def __iter__(self) -> Own:
            return self

        def __next__(self) -> Any:
            if self.offset == 9:
                raise StopIteration
            self.offset += 1
            return sample(self.offset)

        def state_dict(self) -> dict[str, Any]:
            self.asked += 1
            return {"offset": self.offset}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.offset = state["offset"]

    dataset = Own()
    loader = loader_of(dataset)
    batches = iter(loader)
    next(batches)
    # Before the first pass, and before the samples that a resume compares.
    assert dataset.asked == 2
    next(batches)
    assert dataset.asked == 3
    state = loader.state_dict()
    assert state["shards"][0][5] == '{"dataset":{"offset":4}}'
    resumed = loader_of(Own())
    resumed.load_state_dict(state)
    assert numbers(list(resumed)) == [7, 8, 9]


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
def test_random_augmentation_belongs_to_shard_and_offset(kind: str) -> None:
    """The pixels of a sample depend neither on the batch size nor on the workers of shards."""
    first, second = (
        {
            number: [batch[name][offset].tolist() for name in DRAWN]
            for batch in loader_of(KINDS[kind](20), batch_size=size)
            for offset, number in enumerate(batch["index"].tolist())
        }
        for size in (1, 6)
    )
    assert first == second
    assert len({str(pixels) for pixels in first.values()}) == 20


def test_the_generators_of_the_training_stay_untouched() -> None:
    torch.manual_seed(1)
    list(DataLoader([0]))  # draws once in each pass, and so do we
    before = torch.get_rng_state()
    torch.manual_seed(1)
    rest(loader_of(Generated(9)))
    assert torch.equal(before, torch.get_rng_state())


class BeginsAnew(IterableDataset[int]):
    """Its own iterator, which each ``iter()`` sets back to the start."""

    def __init__(self) -> None:
        self.next = 0

    def __iter__(self) -> BeginsAnew:
        self.next = 0
        return self

    def __next__(self) -> int:
        if self.next == 200:
            raise StopIteration
        self.next += 1
        return self.next - 1


class BeginsAnewWithAState(BeginsAnew):
    def state_dict(self) -> dict[str, int]:
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next = state["next"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("strategy", ["simple", "advanced"])
@pytest.mark.parametrize("kind", [BeginsAnew, BeginsAnewWithAState])
def test_an_iterator_is_asked_for_an_iterator_once(
    kind: type[BeginsAnew], strategy: str, workers: int
) -> None:
    loader: Any = ResumableDataLoader(kind(), 8, strategy=strategy, num_workers=workers)
    batches = [batch.tolist() for batch in itertools.islice(loader, 40)]
    assert batches == [list(range(first, first + 8)) for first in range(0, 200, 8)]
