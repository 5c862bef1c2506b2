"""Inspecting states of mixtures: each source's count and share, and the samples that come next."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dataporter import (
    LinearWeights,
    Mixture,
    ResumableDataLoader,
    inspect_checkpoint,
)
from dataporter.tools.inspection.report import StateReport
from dataporter_cli import main

LENGTHS = {"web": 50, "code": 23, "books": 5, "talk": 1}
WEIGHTS = {"web": 0.7, "code": 0.25, "books": 0.05}


def mixture(weights: Any, **options: Any) -> Mixture:
    first = weights.knots[0][1] if isinstance(weights, LinearWeights) else weights
    first = first[0][1] if isinstance(first, list) else first
    return Mixture({name: range(LENGTHS[name]) for name in first}, weights, **options)


def loader_of(data: Mixture, batch_size: int = 8, **options: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(data, batch_size, **{"shuffle": True, "seed": 5, **options})


def inspected(folder: Path, state: Any, **options: Any) -> StateReport:
    path = folder / "state.json"
    path.write_text(json.dumps(state))
    (report,) = inspect_checkpoint(path, **options).states
    json.dumps(report.to_dict())
    return report


chain_of = st.lists(
    st.fixed_dictionaries(
        {
            "weights": st.dictionaries(
                st.sampled_from(sorted(LENGTHS)), st.sampled_from([0, 0.05, 0.7, 2]), min_size=1
            ).filter(lambda weights: any(weights.values())),
            "steps": st.integers(0, 12),
            "stopping": st.sampled_from(["first_exhausted", "all_exhausted", 77]),
        }
    ),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(
    chain_of,
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from(["pad", "drop", "uneven"]),
    st.sampled_from(["shuffled", "sequential", "blocks", "torch"]),
)
def test_the_next_samples_and_the_counts_are_those_of_a_resumed_loader(
    tmp_path_factory: pytest.TempPathFactory,
    chain: list[Any],
    batch_size: int,
    world_size: int,
    tail: Any,
    order: str,
) -> None:
    folder = tmp_path_factory.mktemp("state")
    state = None
    for life in chain:
        data = mixture(life["weights"], stopping=life["stopping"])

        def rank_of(rank: int, data: Mixture = data) -> ResumableDataLoader[Any]:
            world = {"rank": rank, "world_size": world_size, "strategy": "distributed"}
            return loader_of(data, batch_size, shuffle=None, order=order, tail=tail, **world)

        loader = rank_of(0)
        if state is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                loader.load_state_dict(state)
        for _, _ in zip(range(life["steps"]), loader):
            pass
        state = loader.state_dict()
    report = inspected(folder, state, ranks=world_size, indices=batch_size)
    found = report.mixture
    assert found is not None
    assert {s.name: s.consumed for s in found.sources} == {
        **{s.name: 0 for s in found.sources},
        **data.consumed(),
    }
    present = [source for source in found.sources if source.length is not None]
    assert {source.name: source.passes for source in present}.items() <= data.passes().items()
    assert {source.name: source.weight for source in present} == data.weights
    assert found.sample == sum(source.consumed for source in found.sources)
    for batch in report.next:
        resumed = rank_of(batch.rank, mixture(life["weights"], stopping=life["stopping"]))
        resumed.load_state_dict(state)
        assert batch.count == 0 or list(batch.indices) == resumed.samples_at(
            batch.epoch, batch.step
        )


def test_a_source_that_was_left_out_is_listed_with_its_count(tmp_path: Path) -> None:
    loader = loader_of(mixture(WEIGHTS, stopping=1000))
    for _, _ in zip(range(20), loader):
        pass
    fewer = loader_of(mixture({"web": 1, "code": 1}, stopping=1000))
    with pytest.warns(UserWarning, match="left out 'books'"):
        fewer.load_state_dict(loader.state_dict())
    found = inspected(tmp_path, fewer.state_dict()).mixture
    assert found is not None
    counts = Counter(name for step in range(20) for name, _ in loader.samples_at(0, step))
    by_name = {source.name: source for source in found.sources}
    assert list(by_name) == ["web", "code", "books"]
    books = by_name["books"]
    assert (books.length, books.weight) == (None, None)
    assert (books.consumed, books.passes) == (counts["books"], counts["books"] / 5)
    assert books.share == counts["books"] / 160
    assert found.changes == ()


def test_weights_that_are_yet_to_come_are_listed(tmp_path: Path) -> None:
    data = mixture(WEIGHTS, stopping=1000)
    loader = loader_of(data, num_workers=2)
    batches = iter(loader)
    next(batches)
    data.set_weights({"web": 1, "code": 1, "books": 2})
    found = inspected(tmp_path, loader.state_dict()).mixture
    assert found is not None
    assert [source.weight for source in found.sources] == [0.7, 0.25, 0.05]
    (change,) = found.changes
    assert change.weights == {"web": 0.25, "code": 0.25, "books": 0.5}
    assert not change.is_reached_gradually
    assert change.sample > 8
    assert change.sample % 8 == 0


def test_a_schedule_is_listed_from_the_position_on(tmp_path: Path) -> None:
    steps = [(0, {"web": 1, "code": 0}), (40, {"web": 3, "code": 1}), (90, {"web": 0, "code": 1})]
    loader = loader_of(
        Mixture({"web": range(50), "code": range(23)}, steps, stopping=60),
    )
    for _, _ in zip(range(7), loader):
        pass
    found = inspected(tmp_path, loader.state_dict()).mixture
    assert found is not None
    assert [(change.sample, dict(change.weights)) for change in found.changes] == [
        (90, {"web": 0.0, "code": 1.0})
    ]
    ramp = LinearWeights([(0, {"web": 1, "code": 0}), (1000, {"web": 1, "code": 1})])
    ramped = loader_of(mixture(ramp, stopping=60, max_passes={"code": 4}))
    report = inspected(tmp_path, ramped.state_dict())
    assert report.mixture is not None
    (change,) = report.mixture.changes
    assert str(change) == "on a straight line until sample 1,000 of the run: web 0.5, code 0.5"
    assert [source.max_passes for source in report.mixture.sources] == [None, 4]


def test_the_command_prints_the_sources(tmp_path: Path) -> None:
    data = mixture([(0, WEIGHTS), (400, WEIGHTS)], stopping=200)
    loader = loader_of(data)
    for _, _ in zip(range(13), loader):
        pass
    path = tmp_path / "state.json"
    path.write_text(json.dumps(loader.state_dict()))
    ran = CliRunner().invoke(main, ["inspect", str(path)])
    assert ran.exit_code == 0
    lines = [" ".join(line.split()) for line in ran.stdout.splitlines()]
    assert "mixture 104 samples of the run so far, epochs of 200 samples" in lines
    assert "weights from sample 400 of the run on: web 0.7, code 0.25, books 0.05" in lines
    assert "source samples consumed passes share so far weight now" in lines
    consumed = data.consumed()
    assert (
        f"web 50 {consumed['web']} {consumed['web'] / 50:.2f} {consumed['web'] / 104:.1%} 70.0%"
        in lines
    )
    shown = next(line for line in lines if line.startswith("next batch epoch 0, step 13: "))
    name, index = loader.samples_at(0, 13)[0]
    assert shown.startswith(f"next batch epoch 0, step 13: {name} {index}, ")
    (state,) = json.loads(CliRunner().invoke(main, ["inspect", str(path), "--json"]).stdout)[
        "files"
    ][0]["states"]
    assert state["mixture"]["sources"][0] == {
        "name": "web",
        "length": 50,
        "consumed": consumed["web"],
        "passes": consumed["web"] / 50,
        "share": consumed["web"] / 104,
        "weight": 0.7,
        "max_passes": None,
    }
    assert state["next"][0]["indices"][0] == [name, index]


def test_many_sources_are_cut_off_in_the_table_alone(tmp_path: Path) -> None:
    data = Mixture({f"s{n}": range(9) for n in range(50)})
    report = inspected(tmp_path, loader_of(data).state_dict())
    assert report.mixture is not None
    assert len(report.mixture.sources) == 50
    assert "20 more; --json lists them" in str(inspect_checkpoint(tmp_path / "state.json"))


@pytest.mark.parametrize("damage", [[], [None, [], []], 7])
def test_a_damaged_mixture_is_a_fault(tmp_path: Path, damage: Any) -> None:
    state = {**loader_of(mixture(WEIGHTS)).state_dict(), "mixture": damage}
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state))
    (fault,) = inspect_checkpoint(path).faults
    assert "'mixture'" in fault


def test_a_mixture_that_begins_after_the_position_is_a_fault(tmp_path: Path) -> None:
    data = mixture(WEIGHTS, stopping=1000)
    loader = loader_of(data)
    next(iter(loader))
    data.set_weights({"web": 1, "code": 1, "books": 1})
    path = tmp_path / "state.json"
    path.write_text(json.dumps({**loader.state_dict(), "step": 0, "position": 0}))
    (fault,) = inspect_checkpoint(path).faults
    assert "begins at position 8 of epoch 0, after position 0" in fault
