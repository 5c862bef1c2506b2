"""The state: flat, small, JSON, and the same through every carrier (C5, C6)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from subjects import Indices, ids
from torch.distributed.checkpoint.stateful import Stateful

from dataporter import ResumableDataLoader, StateMismatchError
from dataporter.schedule.progress import Delivered, Progress
from dataporter.state.schema import Identity, State, build, parse

NUMBERS = st.integers(0, 2**63 - 1)
NAMES = st.text(max_size=20)
IDENTITIES = st.builds(
    Identity,
    strategy=NAMES,
    order=NAMES,
    order_version=st.integers(0, 99),
    dataset_length=st.none() | NUMBERS,
    dataset_fingerprint=st.none() | NAMES,
    batch_size=st.none() | st.integers(1, 2**31),
    world_size=st.integers(1, 2**20),
    tail=st.sampled_from(["pad", "drop", "uneven"]),
)


@st.composite
def progresses(draw: st.DrawFn) -> Progress:
    position = draw(st.integers(0, 10**12))
    edges = sorted(draw(st.sets(st.integers(position + 1, position + 10**6), max_size=8)))
    early = tuple(
        Delivered(start, stop, draw(st.integers(0, 2**32 - 1)))
        for start, stop in zip(edges[::2], edges[1::2])
    )
    return Progress(draw(NUMBERS), draw(NUMBERS), position, early, draw(st.integers(0, 2**32 - 1)))


@given(identity=IDENTITIES, seed=NUMBERS, progress=progresses())
def test_building_and_parsing_are_inverse_through_json(
    identity: Identity, seed: int, progress: Progress
) -> None:
    state = State(identity, seed, progress)
    assert parse(json.loads(json.dumps(build(state)))) == state


def test_the_state_is_flat_json_below_a_kilobyte_whatever_the_length() -> None:
    loader = ResumableDataLoader(Indices(10**18), 2**20, shuffle=True, seed=2**63 - 1)
    loader.seek(epoch=10**9, step=10**11)
    state = loader.state_dict()
    assert len(json.dumps(state)) < 1024
    assert all(isinstance(v, int | str | bool | list | type(None)) for v in state.values())
    assert state["early"] == []


@pytest.mark.parametrize("carrier", ["torch.save", "json", "dcp"])
def test_every_carrier_brings_the_state_back(carrier: str, tmp_path: Path) -> None:
    def fresh() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(Indices(40), 4, shuffle=True)

    loader = fresh()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    resumed = fresh()
    if carrier == "torch.save":
        torch.save({"dataloader": loader.state_dict()}, tmp_path / "checkpoint.pt")
        checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        resumed.load_state_dict(checkpoint["dataloader"])
    elif carrier == "json":
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    else:
        assert isinstance(loader, Stateful)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is no process group
            dcp.save({"loader": loader}, checkpoint_id=tmp_path)
            dcp.load({"loader": resumed}, checkpoint_id=tmp_path)
    assert resumed.state_dict() == loader.state_dict()
    assert [ids(batch) for batch in resumed] == [ids(batch) for batch in batches]


def build_loader(strategy: str, **changed: Any) -> ResumableDataLoader[Any]:
    arguments = {
        "dataset": Indices(changed.pop("length", 48)),
        "batch_size": 4,
        "order": "shuffled",
        "strategy": strategy,
        "seed": 6,
        "rank": 0,
        "world_size": 2,
    }
    return ResumableDataLoader(**{**arguments, **changed})


# C6, line by line: what changes between save and load, and which strategies take it.
CHANGES = [
    ({"num_workers": 2}, ("simple", "advanced", "distributed"), None),
    ({"pin_memory": True}, ("simple", "advanced", "distributed"), None),
    ({"batch_size": 6}, ("advanced", "distributed"), "batch_size.*4.*6"),
    ({"world_size": 4}, ("distributed",), "world_size.*2.*4.*'distributed'"),
    ({"length": 50}, (), "dataset_length.*48.*50"),
    ({"order": "sequential"}, (), "order.*'shuffled'.*'sequential'"),
    ({"drop_last": True}, (), "tail.*'pad'.*'drop'"),
    ({"tail": "uneven"}, (), "tail.*'pad'.*'uneven'"),
    ({"seed": 7}, (), "seed.*6.*7"),
]


@pytest.mark.filterwarnings("ignore:'pin_memory'")
@pytest.mark.parametrize("strategy", ["simple", "advanced", "distributed"])
@pytest.mark.parametrize(
    ("change", "taken_by", "message"), CHANGES, ids=[next(iter(change)) for change, _, _ in CHANGES]
)
def test_what_may_change_between_save_and_load(
    strategy: str, change: dict[str, Any], taken_by: tuple[str, ...], message: str | None
) -> None:
    loader = build_loader(strategy)
    loader.seek(epoch=1, step=2)
    changed = build_loader(strategy, **change)
    before = changed.state_dict()
    if strategy in taken_by:
        changed.load_state_dict(loader.state_dict())
        assert (changed.epoch, changed.position) == (1, 16)
        return
    with pytest.raises(StateMismatchError, match=message):
        changed.load_state_dict(loader.state_dict())
    assert changed.state_dict() == before, "nothing of a refused state is applied"
    with pytest.warns(RuntimeWarning, match=message):
        changed.load_state_dict(loader.state_dict(), on_mismatch="warn")
    assert changed.epoch == 1
    by_batches = 2 * changed.batch_size * changed.world_size
    assert changed.position == (by_batches if strategy == "simple" else 16)
    list(changed)


@pytest.mark.parametrize("other", ["advanced", "distributed"])
def test_another_strategy_that_counts_otherwise_is_refused(other: str) -> None:
    state = build_loader("simple").state_dict()
    with pytest.raises(StateMismatchError, match=rf"strategy.*'simple'.*'{other}'"):
        build_loader(other).load_state_dict(state)
    with pytest.raises(StateMismatchError, match=rf"strategy.*'{other}'.*'simple'"):
        build_loader("simple").load_state_dict(build_loader(other).state_dict())


def test_a_state_taken_over_from_another_strategy_can_be_saved_and_loaded_again() -> None:
    advanced = build_loader("advanced", batch_size=3)
    advanced.seek(step=3)
    resized = build_loader("advanced", batch_size=5)
    resized.load_state_dict(advanced.state_dict())
    simple = build_loader("simple", batch_size=5)
    with pytest.warns(RuntimeWarning, match="strategy"):
        simple.load_state_dict(resized.state_dict(), on_mismatch="warn")
    again = build_loader("simple", batch_size=5)
    again.load_state_dict(simple.state_dict())
    assert again.state_dict() == simple.state_dict()


def test_a_fingerprint_of_the_data_is_part_of_the_state() -> None:
    class Marked(Indices):
        fingerprint = "one"

    loader = ResumableDataLoader(Marked(4), seed=1)
    assert loader.state_dict()["dataset_fingerprint"] == "one"
    other = Marked(4)
    other.fingerprint = "two"  # type: ignore[misc]
    with pytest.raises(StateMismatchError, match=r"dataset_fingerprint.*'one'.*'two'"):
        ResumableDataLoader(other, seed=1).load_state_dict(loader.state_dict())


def test_a_shorter_dataset_under_warn_ends_the_epoch() -> None:
    loader = ResumableDataLoader(Indices(40), 4, seed=1)
    loader.seek(step=9)
    shorter = ResumableDataLoader(Indices(20), 4, seed=1)
    with pytest.warns(RuntimeWarning, match="dataset_length"):
        shorter.load_state_dict(loader.state_dict(), on_mismatch="warn")
    assert [ids(batch) for batch in shorter] == []
    assert len([ids(batch) for batch in shorter]) == 5


class Wandering:
    """A sampler with random state that the loader cannot see."""

    def __init__(self) -> None:
        import random

        self.rng = random.Random(3)

    def __iter__(self) -> Any:
        return iter([self.rng.randrange(100) for _ in range(10)])

    def __len__(self) -> int:
        return 10


def test_a_sampler_that_gives_other_indices_is_refused_not_followed() -> None:
    loader = ResumableDataLoader(Indices(100), 2, sampler=Wandering(), seed=1)
    list(loader)
    next(iter(loader))
    resumed = ResumableDataLoader(Indices(100), 2, sampler=Wandering(), seed=1)
    with pytest.raises(
        StateMismatchError, match=r"pass 2 over a Wandering.*state_dict\(\) and load_state_dict"
    ):
        resumed.load_state_dict(loader.state_dict())
