"""A stream's own state, in each form in which people write it (C2, C10)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from budgets import slow
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import ResumableDataLoader

LENGTH = 40


def share() -> range:
    info = get_worker_info()
    first, every = (0, 1) if info is None else (info.id, info.num_workers)
    return range(first, LENGTH, every)


class _Placed:
    """Keeps its place in ``i``, and yields the numbers of its share."""

    i = 0

    def __init__(self, numbers: range | None = None) -> None:
        self.numbers = numbers

    @property
    def given(self) -> range:
        return share() if self.numbers is None else self.numbers

    def state_dict(self) -> dict[str, Any]:
        return {"i": self.i}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.i = state["i"]


class Resetting(_Placed, IterableDataset[int]):
    """Is its own iterator, and begins at the front at each ``iter()``."""

    def __iter__(self) -> Iterator[int]:
        self.i = 0
        return self

    def __next__(self) -> int:
        if self.i == len(self.given):
            raise StopIteration
        self.i += 1
        return self.given[self.i - 1]


class Keeping(Resetting):
    """Is its own iterator, and stays where it is."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        try:
            return super().__next__()
        except StopIteration:
            self.i = 0
            raise


class StartingAt(Resetting):
    """Is its own iterator, and takes the place that was loaded at its next ``iter()``."""

    start = 0

    def __iter__(self) -> Iterator[int]:
        self.i, self.start = self.start, 0
        return self

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start = state["i"]


class ResettingGenerator(Resetting):
    """Sets its place at ``iter()``, and returns a generator that moves it."""

    def __iter__(self) -> Iterator[int]:
        self.i = 0
        return self.generated()

    def generated(self) -> Iterator[int]:
        while self.i < len(self.given):
            self.i += 1
            yield self.given[self.i - 1]


class GeneratorThatStartsAt(StartingAt):
    def __iter__(self) -> Iterator[int]:
        self.i, self.start = self.start, 0
        while self.i < len(self.given):
            self.i += 1
            yield self.given[self.i - 1]


class Generator(Resetting):
    """A generator that begins where the dataset is."""

    def __iter__(self) -> Iterator[int]:
        while self.i < len(self.given):
            self.i += 1
            yield self.given[self.i - 1]
        self.i = 0


FORMS: list[Any] = [
    Resetting,
    Keeping,
    StartingAt,
    ResettingGenerator,
    GeneratorThatStartsAt,
    Generator,
]
forms = pytest.mark.parametrize("form", FORMS)


class Shards(IterableDataset[int]):
    """Its shards have one of these forms."""

    num_shards = 4

    def __init__(self, form: Any) -> None:
        self.form = form

    def shard(self, num_shards: int, index: int) -> Any:
        return self.form(range(index, LENGTH, num_shards))

    def __iter__(self) -> Iterator[int]:
        return iter(range(LENGTH))


def loader_of(dataset: Any, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(
        dataset, **{"batch_size": 3, "seed": 1, "num_workers": workers, **arguments}
    )


def numbers(batches: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


def state_after(loader: ResumableDataLoader[Any], steps: int) -> dict[str, Any]:
    batches = iter(loader)
    for _ in range(steps):
        next(batches)
    return loader.state_dict()


@pytest.mark.parametrize("make", [lambda form: form(), Shards], ids=["dataset", "shards"])
@pytest.mark.parametrize("workers", [0, *slow(1), 2])
@forms
def test_a_stream_resumes_from_its_state(
    form: Any, workers: int, make: Callable[[Any], Any]
) -> None:
    expected = numbers(loader_of(make(form), workers))
    assert sorted(itertools.chain(*expected)) == list(range(LENGTH))
    for stop in (1, 7, len(expected) - 1):
        state = state_after(loader_of(make(form), workers), stop)
        # The first batch of a shard is read again, and compared.
        assert stop == 1 or state["stream"] in ("snapshots", "shards")
        assert all(shard[5] is not None for shard in state["shards"] if shard[1] > 1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resumed = loader_of(make(form), workers)
            resumed.load_state_dict(state)
            assert numbers(resumed) == expected[stop:]
    # Also one sample at a time, and with batches that a snapshot is behind.
    for batch_size, every in ((1, 1), (4, 2)):
        arguments = {"batch_size": batch_size, "snapshot_every": every}
        expected_so = numbers(loader_of(make(form), workers, **arguments))
        resumed = loader_of(make(form), workers, **arguments)
        resumed.load_state_dict(state_after(loader_of(make(form), workers, **arguments), 4))
        assert numbers(resumed) == expected_so[4:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda form: form(), Shards], ids=["dataset", "shards"])
@forms
def test_a_killed_worker_repeats_and_loses_nothing(form: Any, make: Callable[[Any], Any]) -> None:
    loader = loader_of(make(form), 1)
    seen: list[list[int]] = []
    for batch in loader:
        seen.append(batch.tolist())
        if len(seen) in (2, 6):
            for worker in multiprocessing.active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)
    assert seen == numbers(loader_of(make(form), 1))


class NeedsArguments(IterableDataset[int]):
    """Has the methods of MosaicML's and LitData's streams, which their own loaders call."""

    def __iter__(self) -> Iterator[int]:
        return iter(share())

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        raise NotImplementedError

    def load_state_dict(self, obj: dict[str, Any]) -> None:
        raise NotImplementedError


class _NeedingIterator:
    def __init__(self) -> None:
        self.numbers = iter(share())

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self.numbers)

    state_dict = NeedsArguments.state_dict
    load_state_dict = NeedsArguments.load_state_dict


class IteratorNeedsArguments(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return _NeedingIterator()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [NeedsArguments, IteratorNeedsArguments])
def test_a_state_that_needs_arguments_is_none(kind: Any, workers: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = numbers(loader_of(kind(), workers))
        state = state_after(loader_of(kind(), workers), 4)
        assert state["stream"] == "replay"
        resumed = loader_of(kind(), workers)
        resumed.load_state_dict(state)
        assert numbers(resumed) == expected[4:]


@pytest.mark.parametrize("kind", [NeedsArguments, IteratorNeedsArguments])
def test_a_warning_says_once_which_arguments_are_needed(kind: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        loader = loader_of(kind())
        for _ in range(2):
            list(loader)
    (warning,) = caught
    assert "state_dict(num_samples, from_beginning) needs" in str(warning.message)
    assert "rereads the delivered samples" in str(warning.message)
