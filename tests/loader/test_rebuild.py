"""Rebuilding: a loader with other arguments is the one that these arguments would have built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from subjects import Indices, ids
from torch.utils.data import IterableDataset, RandomSampler, SequentialSampler

from dataporter import ConfigurationError, ResumableDataLoader, StateMismatchError
from dataporter.loader.rebuild import rebuild, rebuilt


class Named(ResumableDataLoader[Any]):
    name = "of the class"


class Counting(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(9))


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 3},
        {"num_workers": 1},
        {"seed": 5, "shuffle": False},
        {"drop_last": True},
        {"rank": 1, "world_size": 2},
        {"strategy": "simple", "collate_fn": tuple},
        {"sampler": SequentialSampler(range(10)), "shuffle": None},
    ],
)
def test_a_rebuilt_loader_gives_what_the_changed_arguments_give(changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 1}
    loader = ResumableDataLoader(Indices(10), **arguments)
    next(iter(loader))
    other = rebuilt(loader, **changes)
    direct = ResumableDataLoader(Indices(10), **{**arguments, **changes})
    assert other.state_dict() == direct.state_dict()
    assert [batch if isinstance(batch, tuple) else ids(batch) for batch in other] == [
        batch if isinstance(batch, tuple) else ids(batch) for batch in direct
    ]
    assert loader.step == 1, "the loader itself is unchanged"


def test_what_users_have_set_since_is_kept() -> None:
    loader = ResumableDataLoader(Indices(10), 2, num_workers=2, prefetch_factor=3)
    loader.collate_fn = tuple
    loader.num_workers, loader.prefetch_factor = 0, None
    assert rebuilt(loader, batch_size=5).collate_fn is tuple
    assert rebuilt(loader).num_workers == 0
    assert rebuilt(loader, num_workers=1).prefetch_factor == 2


def test_without_workers_their_arguments_are_left_out() -> None:
    loader = ResumableDataLoader(Indices(10), 2, num_workers=1, persistent_workers=True, timeout=9)
    other = rebuilt(loader, num_workers=0)
    assert (other.persistent_workers, other.timeout, other.prefetch_factor) == (False, 0, None)
    assert [ids(batch) for batch in other] == [ids(batch) for batch in loader]


def test_a_subclass_stays_one() -> None:
    loader = Named(Indices(10), 2)
    loader.name = "of the loader"
    other = rebuilt(loader, batch_size=5)
    assert type(other) is Named
    assert (other.name, other.batch_size) == ("of the loader", 5)


def test_a_stream_is_rebuilt_too() -> None:
    loader = ResumableDataLoader(Counting(), 2, snapshot_every=4)
    other = rebuilt(loader, num_workers=1)
    assert other.setup.stream is not None
    assert (other.setup.stream.num_workers, other.setup.stream.snapshot_every) == (1, 4)


def test_rebuild_changes_the_loader_itself_and_keeps_its_position() -> None:
    loader = ResumableDataLoader(Indices(12), 2, shuffle=True, seed=1)
    batches = iter(loader)
    seen = [index for _ in range(2) for index in ids(next(batches))]
    state = loader.state_dict()
    rebuild(loader, batch_size=4)
    assert loader.state_dict() == {**state, "batch_size": 4}
    loader.load_state_dict(state)
    rest = [index for batch in loader for index in ids(batch)]
    assert sorted(seen + rest) == list(range(12))


def test_a_refused_rebuild_changes_nothing() -> None:
    sampler = RandomSampler(range(12))
    loader = ResumableDataLoader(Indices(12), 2, sampler=sampler, seed=1)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(StateMismatchError, match="batch_size"):
        rebuild(loader, batch_size=4)
    assert loader.state_dict() == state
    with pytest.raises(ConfigurationError, match="colour: a loader has no such argument"):
        rebuild(loader, colour="red")


def test_a_loaders_sampler_serves_another_loader() -> None:
    """As frameworks build a loader anew around the sampler that they find."""
    first = ResumableDataLoader(Indices(17), 4, shuffle=True, seed=2)
    expected = [ids(batch) for batch in ResumableDataLoader(Indices(17), 4, shuffle=True, seed=2)]
    second = ResumableDataLoader(Indices(17), 4, sampler=first.sampler)
    single = ResumableDataLoader(Indices(17), None, sampler=first.sampler)
    assert [ids(batch) for batch in second] == expected
    assert list(single) == [one for batch in expected for one in batch]
    assert first.sampler.rank == 0
    assert [ids(batch) for batch in first] == expected
