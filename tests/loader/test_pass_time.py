"""How long the loop has waited: what counts, by a clock that only reading and training move."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dataporter import (
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
    create_resumable_dataloader,
)
from dataporter.loader import delivery, pass_time


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clock.seconds = 100.0
    for module in (delivery, pass_time):
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock


class Slow(Dataset[int]):
    """A sample takes two seconds; a negative one fails after them."""

    def __init__(self, clock: Clock, length: int, bad: int = -1) -> None:
        self.clock, self.length, self.bad = clock, length, bad

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.clock.seconds += 2
        if index == self.bad:
            raise ValueError("a bad sample")
        return index


class SlowStream(IterableDataset[int]):
    def __init__(self, clock: Clock, length: int) -> None:
        self.clock, self.length = clock, length

    def __iter__(self) -> Iterator[int]:
        for number in range(self.length):
            self.clock.seconds += 2
            yield number


def figures(timed: Any) -> tuple[float, float, float]:
    return timed.wait_seconds, timed.wait_share, timed.batches_per_second


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    length=st.integers(1, 8),
    batch_size=st.integers(1, 4),
    step_takes=st.integers(0, 5),
    stream=st.booleans(),
    prefetched=st.sampled_from(["no", "cpu", "meta"]),
)
def test_reading_is_waiting_and_training_is_not(
    clock: Clock, length: int, batch_size: int, step_takes: int, stream: bool, prefetched: str
) -> None:
    dataset: Any = (SlowStream if stream else Slow)(clock, length)
    loader = create_resumable_dataloader(dataset, batch_size=batch_size)
    timed: Any = loader if prefetched == "no" else DevicePrefetcher(loader, prefetched)
    assert figures(timed) == (0, 0, 0)
    for _ in range(2):  # each pass counts for itself
        done = 0
        for _ in timed:
            done += 1
            read = min(length, batch_size * (done + (prefetched == "meta")))
            elapsed = 2 * read + step_takes * (done - 1)
            assert figures(timed) == (2 * read, 2 * read / elapsed, done / elapsed)
            clock.seconds += step_takes
        whole = 2 * length + step_takes * done
        assert figures(timed) == (2 * length, 2 * length / whole, done / whole)
        clock.seconds += 50  # validation, say
        assert figures(timed) == (2 * length, 2 * length / whole, done / whole)


def test_it_is_of_the_last_pass_that_has_begun(clock: Clock) -> None:
    loader = ResumableDataLoader(Slow(clock, 4), 1)
    first, second = iter(loader), iter(loader)
    next(first), next(first)
    assert loader.wait_seconds == 4
    next(second)
    assert loader.wait_seconds == 2
    next(first)
    assert loader.wait_seconds == 2
    state = loader.state_dict()
    resumed = ResumableDataLoader(Slow(clock, 4), 1)
    resumed.load_state_dict(state)
    assert figures(resumed) == (0, 0, 0)
    list(resumed)
    assert resumed.wait_seconds == 6


def test_peek_does_not_count(clock: Clock) -> None:
    for dataset in (Slow(clock, 4), SlowStream(clock, 4)):
        loader: Any = ResumableDataLoader(dataset, 2)
        assert loader.peek().tolist() == [0, 1]
        assert loader.wait_seconds == 0
        next(iter(loader))
        # A stream was read for peek(), and a map-style dataset is read again.
        assert loader.wait_seconds == (4 if isinstance(dataset, Slow) else 0)


def test_waiting_for_a_batch_that_fails_counts_and_the_batch_does_not(clock: Clock) -> None:
    loader = ResumableDataLoader(Slow(clock, 3, bad=1), 1)
    batches = iter(loader)
    next(batches)
    with pytest.raises(ValueError, match="a bad sample"):
        next(batches)
    next(batches)
    assert figures(loader) == (6, 1, 2 / 6)


def test_a_copy_has_waited_for_nothing(clock: Clock) -> None:
    loader = ResumableDataLoader(range(4), 2)
    next(iter(loader))
    clock.seconds += 1
    for other in (copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert figures(other) == (0, 0, 0)


def test_a_prefetcher_counts_widening_and_any_loader(clock: Clock) -> None:
    class Widening(KeyBasedDtypeConverter):
        def widen(self, batch: Any, **options: Any) -> Any:
            clock.seconds += 5
            return super().widen(batch, **options)

    batches = {"x": torch.arange(4, dtype=torch.float32)}
    loader = ResumableDataLoader(batches, 2, converter=Widening({"x": "float16"}))
    prefetcher = DevicePrefetcher(loader, "cpu", widen=loader.converter)
    assert [batch["x"].dtype for batch in prefetcher] == [torch.float32] * 2
    assert (prefetcher.wait_seconds, loader.wait_seconds) == (10, 0)
    plain: Any = DevicePrefetcher(DataLoader(Slow(clock, 4), 2), "cpu")
    list(plain)
    assert (plain.wait_seconds, plain.wait_share) == (8, 1)
