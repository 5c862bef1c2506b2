"""States of streams: replays, what may change, the ranks' parts, and damage (C5, C6, C10)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from example_streams import (
    KINDS,
    Generated,
    Sharded,
    Stateful,
    StatefulIterator,
    loader_of,
    numbers,
    rest,
    taken,
)

from dataporter import (
    ConfigurationError,
    DatasetChangedError,
    InvalidStateError,
    StateMismatchError,
)

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")


def test_a_replay_issues_a_warning() -> None:
    loader = loader_of(Generated(30))
    taken(loader, 4)
    resumed = loader_of(Generated(30))
    resumed.load_state_dict(loader.state_dict())
    with pytest.warns(RuntimeWarning, match="reread and discard 12 delivered samples"):
        rest(resumed)


def test_a_replay_has_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(Generated):
        def __iter__(self) -> Iterator[Any]:
            for number in range(9001):
                if number % 3000 == 0:
                    time.sleep(0.6)
                yield number

    state = {
        **loader_of(Slow(0)).state_dict(),
        "shards": [[0, 3000, 9000, False, 0, None]],
    }
    loader = loader_of(Slow(0))
    loader.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == [[9000]]
    assert "replaying the stream" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["replay", "shards"])
def test_a_stream_that_has_become_shorter_is_noticed(kind: str) -> None:
    loader = loader_of(KINDS[kind](40), snapshot_every=4)
    taken(loader, 11)
    resumed = loader_of(KINDS[kind](9), snapshot_every=4)
    resumed.load_state_dict(loader.state_dict())
    with pytest.raises(DatasetChangedError, match="of the stream ended at sample"):
        rest(resumed)


@pytest.mark.parametrize("kind", [Generated, Stateful])
def test_the_number_of_workers_that_iterate_over_a_stream_cannot_change(kind: Any) -> None:
    loader = loader_of(kind(30), 2)
    taken(loader, 4)
    state = loader.state_dict()
    for workers in (0, 3):
        with pytest.raises(StateMismatchError, match="num_workers: the state has 2"):
            loader_of(kind(30), workers).load_state_dict(state)
    anyway = loader_of(kind(30), 0)
    with pytest.warns(RuntimeWarning, match="num_workers"):
        anyway.load_state_dict(state, on_mismatch="warn")
    assert numbers(list(anyway)) == list(range(30))  # from the start of the epoch
    with pytest.raises(StateMismatchError, match="world_size: the state has 1"):
        loader_of(kind(30), 2, rank=0, world_size=2).load_state_dict(
            {**state, "strategy": "distributed"}
        )


def test_the_number_of_workers_that_iterate_may_be_set_between_epochs() -> None:
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


def test_no_workers_and_one_worker_are_the_same() -> None:
    loader = loader_of(Generated(30))
    seen = taken(loader, 4)
    resumed = loader_of(Generated(30), 1)
    resumed.load_state_dict(loader.state_dict())
    assert seen + rest(resumed) == rest(loader_of(Generated(30)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_shards": 3}, "num_shards: the state has 4"),
        ({"batch_size": 5, "strategy": "simple"}, "strategy"),
        ({"drop_last": True}, "tail"),
        ({"seed": 3}, "seed"),
    ],
    ids=str,
)
def test_what_must_stay_is_named(changed: dict[str, Any], message: str) -> None:
    loader = loader_of(Sharded(30))
    taken(loader, 4)
    other = loader_of(Sharded(30), **changed)
    before = other.state_dict()
    with pytest.raises(StateMismatchError, match=message):
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


def test_gathering_changes_nothing_with_one_rank_or_a_map_style_dataset() -> None:
    stream, indexed = loader_of(Sharded(9)), loader_of(range(9))
    assert stream.state_dict(gather=True) == stream.state_dict()
    assert indexed.state_dict(gather=True) == indexed.state_dict()


def test_a_state_of_the_other_kind_is_refused() -> None:
    stream, indexed = loader_of(Sharded(9)), loader_of(range(9))
    with pytest.raises(InvalidStateError, match="is of an iterable dataset"):
        indexed.load_state_dict(stream.state_dict())
    with pytest.raises(InvalidStateError, match="is of a map-style dataset"):
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


def test_a_damaged_snapshot_is_refused() -> None:
    loader = loader_of(StatefulIterator(30))
    taken(loader, 4)
    state = loader.state_dict()
    state["shards"][0][5] = '{"iterator":'
    loader.load_state_dict(state)
    with pytest.raises(InvalidStateError, match="snapshot in the state is damaged"):
        rest(loader)


def test_a_snapshot_for_a_stream_that_has_lost_its_state_is_refused() -> None:
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


def test_copies_are_independent() -> None:
    import copy
    import pickle

    loader = loader_of(Sharded(30))
    seen = taken(loader, 4)
    expected = rest(loader_of(Sharded(30)))
    for other in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        other.load_state_dict(loader.state_dict())
        assert seen + rest(other) == expected
    assert (loader.epoch, loader.step) == (0, 4)
