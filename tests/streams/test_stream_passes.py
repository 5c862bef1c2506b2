"""Streams that were abandoned, that read ahead, or that yield nothing (C3, C8, C10, C12)."""

from __future__ import annotations

import itertools
import json
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from example_streams import KINDS, Stateful, numbers, taken
from subjects import digest
from torch.utils.data import IterableDataset

from dataporter import ResumableDataLoader, UnsupportedDatasetError, sample_rng
from dataporter.seeding.generators import global_state

SEED = 5
LENGTH = 20
pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
ways = pytest.mark.parametrize("persistent", [False, True], ids=["inline", "persistent"])


def loader_of(dataset: Any, persistent: bool = False, **arguments: Any) -> ResumableDataLoader[Any]:
    if persistent:
        arguments = {"num_workers": 2, "persistent_workers": True, **arguments}
    return ResumableDataLoader(dataset, **{"batch_size": 3, "seed": SEED, **arguments})


def digests(batches: Any) -> list[str]:
    return [digest(batch) for batch in batches]


# ---- an abandoned pass leaves nothing behind


@kinds
@ways
def test_the_epoch_after_an_abandoned_pass_is_whole(kind: str, persistent: bool) -> None:
    untouched = loader_of(KINDS[kind](LENGTH), persistent)
    untouched.set_epoch(1)
    expected = digests(untouched)
    loader = loader_of(KINDS[kind](LENGTH), persistent)
    for _ in itertools.islice(loader, 3):
        pass
    assert digests(loader) == expected


@kinds
@ways
def test_a_state_loaded_in_mid_pass_resumes_where_it_was_taken(kind: str, persistent: bool) -> None:
    expected = digests(loader_of(KINDS[kind](LENGTH), persistent))
    loader = loader_of(KINDS[kind](LENGTH), persistent)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    next(batches)
    next(batches)
    loader.load_state_dict(state)
    assert digests(loader) == expected[1:]


def test_a_resumed_dataset_starts_its_next_epoch_at_the_first_sample() -> None:
    class Unending(Stateful):
        """Stays at its end."""

        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()
            self.offset = self.length

    expected = loader_of(Unending(LENGTH))
    first, second = (numbers(list(expected)) for _ in "ab")
    assert first == second == list(range(LENGTH))
    loader = loader_of(Unending(LENGTH))
    next(iter(loader))
    resumed = loader_of(Unending(LENGTH))
    resumed.load_state_dict(loader.state_dict())
    assert [numbers(list(resumed)), numbers(list(resumed))] == [first[3:], second]


def test_set_epoch_prevails_over_the_first_state_of_the_dataset() -> None:
    class Epochs(IterableDataset[int]):
        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[int]:
            return iter([self.epoch] * 2)

        def state_dict(self) -> dict[str, Any]:
            return {"epoch": self.epoch}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.epoch = state["epoch"]

    loader = loader_of(Epochs())
    assert [batch.tolist() for _ in range(3) for batch in loader] == [[0, 0], [1, 1], [2, 2]]


def test_a_dataset_may_have_no_state_before_it_is_iterated_over() -> None:
    class Late(IterableDataset[int]):
        start = 0

        def __iter__(self) -> Iterator[int]:
            self.offset, self.start = self.start, 0
            while self.offset < 6:
                self.offset += 1
                yield self.offset

        def state_dict(self) -> dict[str, Any]:
            return {"offset": self.offset}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.start = state["offset"]

    loader = loader_of(Late())
    next(iter(loader))
    resumed = loader_of(Late())
    resumed.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in resumed] == [[4, 5, 6]]
    assert [batch.tolist() for batch in loader] == [[1, 2, 3], [4, 5, 6]]


class Tidy(IterableDataset[int]):
    """Records which shards were closed."""

    def __init__(self, shards: int = 1) -> None:
        self.num_shards = shards
        self.closed: list[int] = []

    def shard(self, num_shards: int, index: int) -> Any:
        return _TidyShard(self.closed, index)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shard(1, 0))


class _TidyShard:
    def __init__(self, closed: list[int], index: int) -> None:
        self.closed, self.index = closed, index

    def __iter__(self) -> Iterator[int]:
        try:
            yield from range(6 * (self.index + 1))
        finally:
            self.closed.append(self.index)


def test_an_abandoned_pass_closes_what_it_has_open() -> None:
    stream = Tidy(2)
    loader = loader_of(stream)
    for _ in itertools.islice(loader, 2):
        pass
    assert sorted(stream.closed) == [0, 1]


def test_a_shard_that_has_ended_is_released() -> None:
    class Open:
        """An iterator that holds something as long as it lives."""

        def __init__(self, living: set[int], index: int) -> None:
            self.living, self.index, self.left = living, index, 2 + 4 * index
            living.add(index)

        def __iter__(self) -> Open:
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration
            self.left -= 1
            return self.left

        def __del__(self) -> None:
            self.living.discard(self.index)

    class Files(IterableDataset[int]):
        num_shards = 2

        def __init__(self) -> None:
            self.living: set[int] = set()

        def shard(self, num_shards: int, index: int) -> Any:
            return Open(self.living, index)

        def __iter__(self) -> Iterator[int]:
            raise NotImplementedError

    files = Files()
    batches = iter(loader_of(files))
    assert next(batches).tolist() == [5, 4, 3]
    assert files.living == {1}
    assert [batch.tolist() for batch in batches] == [[2, 1, 0], [1, 0]]


# ---- samples computed together


class Chunked(IterableDataset[Any]):
    """Computes four samples when the first of them is requested, and again when it resumes among
    them, so that random values are drawn under the seed of another sample.
    """

    reads_ahead = True

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.offset = 0

    def __iter__(self) -> Iterator[Any]:
        while self.offset < LENGTH:
            first = self.offset - self.offset % 4
            for drawn in [self.draw(number) for number in range(first, first + 4)][
                self.offset % 4 :
            ]:
                self.offset += 1
                yield {"index": self.offset - 1, "drawn": drawn}

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offset = state["offset"]


DRAWS = {
    "nothing": lambda number: 0.0,
    "python": lambda number: random.random(),
    "numpy": lambda number: np.random.rand(),
    "sample_rng": lambda number: sample_rng().random(),
    # As many words as the generator makes at a time, so that its index is the same afterwards.
    "a whole turn": lambda number: float(np.random.rand(312).sum()),
    "late": lambda number: random.random() if number > 9 else 0.0,
}


@pytest.mark.parametrize("strategy", ["advanced", "simple"])
@pytest.mark.parametrize("draws", DRAWS)
def test_values_drawn_for_several_samples_at_once_are_drawn_again(
    draws: str, strategy: str
) -> None:
    """... since a resume rereads the samples from the first draw on, where no state is taken."""
    arguments = {"strategy": strategy}
    expected = digests(loader_of(Chunked(DRAWS[draws]), **arguments))
    for stop in range(len(expected) + 1):
        loader = loader_of(Chunked(DRAWS[draws]), **arguments)
        batches = iter(loader)
        seen = digests(itertools.islice(batches, stop))
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = loader_of(Chunked(DRAWS[draws]), **arguments)
        resumed.load_state_dict(state)
        assert seen + digests(resumed) == expected
        if stop == 3:
            # Before the last two samples of the third batch, or before all of it.
            last = 7 if strategy == "advanced" else 6
            snapshot_offset = last if draws in ("nothing", "late") else 0
            assert state["shards"][0][4] == snapshot_offset


@pytest.mark.parametrize("draws", [draw for draw in DRAWS if draw not in ("nothing", "sample_rng")])
def test_a_draw_is_seen(draws: str) -> None:
    before = global_state()
    assert global_state() == before
    DRAWS[draws](10)
    assert global_state() != before


def test_a_dataset_may_say_that_its_states_are_not_exact() -> None:
    class Buffered(Stateful):
        snapshots_are_exact = False

    loader = loader_of(Buffered(LENGTH))
    next(iter(loader))
    assert loader.state_dict()["stream"] == "replay"


# ---- streams that yield nothing


def test_a_warning_says_that_drop_last_leaves_nothing() -> None:
    loader = loader_of(KINDS["replay"](LENGTH), num_workers=4, batch_size=16, drop_last=True)
    with pytest.warns(RuntimeWarning, match=r"drop_last dropped all 20 samples .* 4 workers"):
        assert list(loader) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(loader_of(KINDS["shards"](0), drop_last=True)) == []
        assert len(list(loader_of(KINDS["shards"](LENGTH), drop_last=True))) == LENGTH // 3


@kinds
def test_seek_reaches_the_start_of_any_epoch_of_a_stream(kind: str) -> None:
    loader = loader_of(KINDS[kind](LENGTH))
    expected = digests(loader)
    for _ in itertools.islice(loader, 2):
        pass
    loader.seek(epoch=0)
    assert digests(loader) == expected
    with pytest.raises(UnsupportedDatasetError, match="none can be looked up or jumped to"):
        loader.seek(epoch=0, step=1)


def test_a_mark_keeps_the_workers_that_it_was_taken_with() -> None:
    loader = loader_of(KINDS["dataset state"](24), num_workers=2)
    taken(loader, 3)
    mark, state = loader.mark(), loader.state_dict()
    loader.num_workers = 1
    loader.set_epoch(1)
    taken(loader, 1)
    assert loader.state_dict(at=mark) == state
    resumed = loader_of(KINDS["dataset state"](24), num_workers=2)
    resumed.load_state_dict(loader.state_dict(at=mark))
    assert resumed.step == 3


def test_a_streams_fingerprint_is_read_once() -> None:
    class Changing(Stateful):
        reads = 0

        @property
        def fingerprint(self) -> str:
            self.reads += 1
            return f"read {self.reads}"

    loader = loader_of(Changing(24))
    before = loader.state_dict()["dataset_fingerprint"]
    loader.num_workers = 2
    taken(loader, 1)
    assert loader.state_dict()["dataset_fingerprint"] == before
