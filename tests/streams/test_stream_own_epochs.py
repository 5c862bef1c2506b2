"""A dataset's own state from epoch to epoch is what torch's loader leaves it (C2, C3, C13)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataporter import ResumableDataLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:the stream has no exact state"),
    pytest.mark.filterwarnings("ignore:iter.loader. begins epoch"),
    pytest.mark.filterwarnings("ignore:this pass has no batch"),
]
LENGTH = 7
Sample = tuple[int, int, int]


def _share() -> range:
    info = get_worker_info()
    first, every = (0, 1) if info is None else (info.id, info.num_workers)
    return range(first, LENGTH, every)


class Counting(IterableDataset[Sample]):
    """Counts its epochs in ``__iter__``; ``level`` is for the user to set."""

    level = 0

    def __init__(self) -> None:
        self.epoch = -1

    def __iter__(self) -> Iterator[Sample]:
        self.epoch += 1
        return iter([(self.epoch, self.level, number) for number in _share()])


class StatefulAtIter(Counting):
    """Is its own iterator, and begins an epoch in ``__iter__``."""

    i = 0

    def __iter__(self) -> Iterator[Sample]:
        self.epoch += 1
        self.i = 0
        return self

    def __next__(self) -> Sample:
        share = _share()
        if self.i == len(share):
            raise StopIteration
        self.i += 1
        return self.epoch, self.level, share[self.i - 1]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "i": self.i, "level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.i, self.level = state["epoch"], state["i"], state["level"]


class StatefulAtEnd(StatefulAtIter):
    """A generator that begins where the dataset is, and ends an epoch at its end."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Sample]:
        share = _share()
        while self.i < len(share):
            self.i += 1
            yield self.epoch, self.level, share[self.i - 1]
        self.epoch += 1
        self.i = 0


KINDS: list[Callable[[], Any]] = [Counting, StatefulAtIter, StatefulAtEnd]
ENGINES: dict[str, dict[str, Any]] = {
    "inline": {},
    "workers": {"num_workers": 2},
    "persistent": {"num_workers": 2, "persistent_workers": True},
}


def _ours(dataset: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(dataset, 2, seed=1, collate_fn=list, **arguments)


def _torchs(dataset: Any, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 2, collate_fn=list, **arguments)


def _sorted(batches: Any) -> list[Sample]:
    return sorted(itertools.chain(*batches))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_epochs_are_counted_as_with_torch(kind: Any, engine: str) -> None:
    ours, torchs = kind(), kind()
    mine, theirs = _ours(ours, **ENGINES[engine]), _torchs(torchs, **ENGINES[engine])
    for level in (0, 0, 1, 2):
        ours.level = torchs.level = level
        assert _sorted(mine) == _sorted(theirs)
    assert vars(ours) == vars(torchs)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=cases(40), deadline=None)
@given(
    program=st.lists(
        st.one_of(
            st.just("pass"),
            st.integers(1, 4).map(lambda steps: ("left after", steps)),
            st.integers(1, 3).map(lambda level: ("level", level)),
        ),
        max_size=6,
    )
)
def test_programs_of_passes_are_torchs(kind: Any, program: list[Any]) -> None:
    """Passes, passes that are left, attributes that change.

    torch leaves a dataset in the middle of a pass that was left; here the next one begins from the
    dataset's state from before that pass, so here torch's loader is given that.
    """
    ours, torchs = kind(), kind()
    mine, theirs = _ours(ours), _torchs(torchs)
    before = None
    for order in [*program, "pass"]:
        if order[0] == "level":
            ours.level = torchs.level = order[1]
            continue
        if before is not None:
            torchs.load_state_dict(before)
        steps = None if order == "pass" else order[1]
        before = torchs.state_dict() if steps is not None and kind is not Counting else None
        batches = list(itertools.islice(theirs, steps))
        assert list(itertools.islice(mine, steps)) == batches
        if 2 * len(batches) > LENGTH:  # its last batch was incomplete, so it has ended
            before = None


@pytest.mark.parametrize("engine", ["inline", "persistent", "workers"])
@pytest.mark.parametrize("kind", [StatefulAtIter, StatefulAtEnd])
@pytest.mark.parametrize("epochs", [0, 1, 2])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_a_state_anywhere_resumes_what_the_dataset_carries(
    kind: Any, engine: str, epochs: int, steps: int
) -> None:
    arguments = ENGINES[engine]
    whole = _ours(kind(), **arguments)
    expected = [list(whole) for _ in range(5)]

    stopped = _ours(kind(), **arguments)
    for _ in range(epochs):
        list(stopped)
    seen = list(itertools.islice(stopped, steps)) if steps else []
    state = json.loads(json.dumps(stopped.state_dict()))

    resumed = _ours(kind(), **arguments)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    found = [seen + list(resumed)] if stopped.epoch == epochs else [seen]
    found += [list(resumed) for _ in range(2)]
    assert found == expected[epochs : epochs + len(found)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_of_the_first_step_begins_anew_on_an_exhausted_dataset(engine: str) -> None:
    class Once(IterableDataset[int]):
        """Is its own iterator, and stays at its end."""

        i = 0

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            share = _share()
            if self.i >= len(share):
                raise StopIteration
            self.i += 1
            return share[self.i - 1]

        def state_dict(self) -> dict[str, Any]:
            return {"i": self.i}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.i = state["i"]

    dataset = Once()
    first = _ours(dataset)
    state = json.loads(json.dumps(first.state_dict()))
    expected = list(first)
    assert list(itertools.chain(*expected)) == list(range(LENGTH))
    second = _ours(dataset, **({"num_workers": 1} if engine == "workers" else {}))
    second.load_state_dict(state)
    assert list(second) == expected


def test_a_dataset_that_keeps_where_it_started_is_whole_in_the_next_epoch() -> None:
    class Starting(IterableDataset[int]):
        start = 0
        at = -1

        def __iter__(self) -> Iterator[int]:
            for number in range(self.start, LENGTH):
                self.at = number
                yield number

        def state_dict(self) -> dict[str, Any]:
            return {"at": self.at}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.start = state["at"] + 1

    stopped = _ours(Starting())
    expected = list(stopped)
    assert list(stopped) == expected
    fresh = _ours(Starting())
    batches = iter(fresh)
    next(batches)
    next(batches)
    resumed = _ours(Starting())
    resumed.load_state_dict(fresh.state_dict())
    assert list(itertools.chain(*resumed)) == [4, 5, 6]
    assert list(resumed) == expected
