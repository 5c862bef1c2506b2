"""Streams whose samples, collate function or workers fail (C10, C12)."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from example_streams import (
    Generated,
    Sharded,
    Stateful,
    StatefulIterator,
    loader_of,
    numbers,
    rest,
    sample,
    taken,
    through_a_file,
)
from subjects import digest

from dataporter import (
    ResumableDataLoader,
    SampleError,
)

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")


class Failing(StatefulIterator):
    """Fails at some samples, and continues after them."""

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
def test_samples_that_fail_are_skipped_and_the_offsets_stay(stop: int) -> None:
    with pytest.warns(RuntimeWarning, match=r"3 samples failed .* index \(0, 4\)"):
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


def test_a_sample_that_fails_may_be_replaced() -> None:
    def instead(error: Exception, index: Any) -> Any:
        return {**sample(0), "index": -index[1]}

    found = numbers(list(loader_of(Failing(30), on_error=instead)))
    assert found == [-n if n in Failing.failing else n for n in range(30)]


def test_a_generator_cannot_continue_after_an_exception() -> None:
    class Broken(Generated):
        def __iter__(self) -> Iterator[Any]:
            yield sample(0)
            raise ValueError("broken")

    with pytest.raises(SampleError, match="a generator cannot continue"):
        rest(loader_of(Broken(0), on_error="skip"))


def test_a_stream_that_only_fails() -> None:
    dataset = Failing(300)
    dataset.failing = tuple(range(6, 300))
    loader = loader_of(dataset, on_error="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(taken(loader, 2)) == 2
        with pytest.raises(
            SampleError, match="102 consecutive samples of shard 0 up to offset 108 failed"
        ):
            rest(loader_of(dataset, on_error="skip"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_a_batch_whose_samples_all_fail_is_skipped(workers: int, batch_size: int | None) -> None:
    def delivered(loader: ResumableDataLoader[Any], steps: int | None = None) -> list[int]:
        batches = itertools.islice(loader, steps)
        return [
            int(number) for batch in batches for number in torch.as_tensor(batch["index"]).view(-1)
        ]

    arguments = {"batch_size": batch_size, "on_error": "skip"}
    with pytest.warns(RuntimeWarning, match=r"3 samples failed .* broken") as caught:
        expected = delivered(loader_of(Failing(20), workers, **arguments))
    # Python 3.12 adds one of its own about forks of a process with threads.
    assert len([one for one in caught if one.category is RuntimeWarning]) == 1
    assert sorted(expected) == [n for n in range(20) if n not in Failing.failing]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for stop in range(len(expected) // (batch_size or 1)):
            stopped = loader_of(Failing(20), workers, **arguments)
            seen = delivered(stopped, stop)
            resumed = loader_of(Failing(20), workers, **arguments)
            resumed.load_state_dict(through_a_file(stopped.state_dict()))
            assert seen + delivered(resumed) == expected


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
