"""Agreement: if one rank differs or fails, all ranks raise."""

from __future__ import annotations

import warnings
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from subjects import Indices, ids
from torch.utils.data import TensorDataset
from worlds import outcome, ranks_of

from dataporter import ResumableDataLoader
from dataporter.ranks import agreement
from dataporter.ranks.agreement import _explanation, _Report

WORLD = 4
ODD = 1  # the rank that does something different


class Marked(Indices):
    fingerprint = "original"


class Lengthless:
    def __getitem__(self, index: int) -> int:
        return index


def loader_of(dataset: Any = None, **arguments: Any) -> ResumableDataLoader[Any]:
    dataset = Marked(48) if dataset is None else dataset
    return ResumableDataLoader(
        dataset, **{"batch_size": 4, "shuffle": True, "seed": 5, **arguments}
    )


def marked_differently() -> Marked:
    dataset = Marked(48)
    dataset.fingerprint = "changed"  # type: ignore[misc]
    return dataset


# What the odd rank builds, and what every other rank's error must say.
BUILT: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a shorter dataset": (
        lambda: loader_of(Marked(47)),
        ("dataset_length: 48 on ranks 0, 2-3; 47 on rank 1",),
    ),
    "changed data": (
        lambda: loader_of(marked_differently()),
        ("dataset_fingerprint: 'original' on ranks 0, 2-3; 'changed' on rank 1",),
    ),
    "other values": (
        lambda: loader_of(TensorDataset(torch.arange(48))),
        (
            "dataset_fingerprint: 'original' on ranks 0, 2-3; 'content1:",
            "on rank 1 (the datasets hold other data)",
        ),
    ),
    "a different seed": (lambda: loader_of(seed=6), ("seed: 5 on ranks 0, 2-3; 6 on rank 1",)),
    "no seed": (lambda: loader_of(seed=None), ("seed: 5 on ranks 0, 2-3; None on rank 1",)),
    "two differences": (
        lambda: loader_of(batch_size=3, tail="drop"),
        ("batch_size: 4 on ranks 0, 2-3; 3 on rank 1", "tail: 'pad' on ranks 0, 2-3; 'drop'"),
    ),
}
# The error that the odd rank raises itself, with a note that the others raise as well.
FAILING: dict[str, tuple[Any, str]] = {
    "no length": (lambda: loader_of(Lengthless()), "UnsupportedDatasetError"),
    "a wrong argument": (lambda: loader_of(batch_size=0), "ConfigurationError"),
    "an argument of torch's": (lambda: loader_of(num_workers=-1), "ConfigurationError"),
}


def building_rank() -> dict[str, Any]:
    odd = dist.get_rank() == ODD
    found = {}
    for name, (build, _) in {**BUILT, **FAILING}.items():
        found[name] = outcome(build if odd else loader_of)
    found["in step"] = ids(next(iter(loader_of())))
    return found


def test_ranks_that_build_different_loaders_all_raise_and_name_ranks_and_values() -> None:
    ranks = ranks_of(WORLD, building_rank)
    for name, (_, differences) in BUILT.items():
        for rank in ranks:
            kind, message, _ = rank[name]
            assert kind == "RankMismatchError", name
            assert [text for text in differences if text not in message] == [], message
    for name, (_, expected) in FAILING.items():
        for number, rank in enumerate(ranks):
            kind, message, notes = rank[name]
            if number == ODD:
                assert kind == expected
                assert "every other rank" in notes
            else:
                assert kind == "RankMismatchError"
                assert f"rank 1 raised {expected}: " in message
    assert len({tuple(rank["in step"]) for rank in ranks}) == WORLD, "the ranks stay in step"


def states() -> dict[str, tuple[Any, str, str]]:
    """What the odd rank loads, the error it raises, and what the others' errors say."""
    good = loader_of(rank=0, world_size=WORLD).state_dict()
    other = {**good, "dataset_length": 9, "step": 1, "position": 8}
    return {
        "missing": (None, "InvalidStateError", "rank 1 raised InvalidStateError"),
        "damaged": ({**good, "step": "x"}, "InvalidStateError", "'step'"),
        "foreign": ({"model": 1}, "InvalidStateError", "'dataporter'"),
        "contradicting": ({**good, "position": 10**9}, "InvalidStateError", "do not fit"),
        "of other data": (other, "StateMismatchError", "dataset_length"),
        "older": (
            {**good, "step": 1, "position": 16},
            "RankMismatchError",
            "step: 2 on ranks 0, 2-3; 1 on rank 1",
        ),
    }


def loading_rank() -> dict[str, Any]:
    odd = dist.get_rank() == ODD
    loader = loader_of()
    before = loader.state_dict()
    good = {**before, "step": 2, "position": 32}
    found: dict[str, Any] = {}
    for name, (state, *_) in states().items():
        found[name] = outcome(lambda state=state: loader.load_state_dict(state if odd else good))
        found[f"{name}: untouched"] = loader.state_dict() == before
    # The ranks are still in step after all of this, and agree if a state is wrong on all of them.
    found["all"] = outcome(lambda: loader.load_state_dict({**good, "seed": 6}))
    found["calls"] = outcome(loader_of if odd else lambda: loader.load_state_dict(good))
    found["in the end"] = outcome(lambda: loader.load_state_dict(good))
    found["position"] = (loader.epoch, loader.position)
    return found


def test_a_rank_with_a_different_state_or_none_makes_all_ranks_raise_and_no_rank_applies_one() -> (
    None
):
    ranks = ranks_of(WORLD, loading_rank)
    for name, (_, expected, text) in states().items():
        for number, rank in enumerate(ranks):
            kind, message, notes = rank[name]
            assert kind == (expected if number == ODD else "RankMismatchError"), name
            assert number == ODD or text in message, message
            assert ("every other rank" in notes) == (number == ODD and kind != "RankMismatchError")
            assert rank[f"{name}: untouched"]
    for rank in ranks:
        assert rank["all"][0] == "StateMismatchError"
        assert rank["all"][2] == "", "an error on all ranks needs no note about the others"
        assert "call: load_state_dict() on ranks 0, 2-3" in rank["calls"][1]
        assert "ResumableDataLoader() on rank 1" in rank["calls"][1]
        assert rank["in the end"] is None
        assert rank["position"] == (0, 32)


def waiting_rank() -> Any:
    impatient = dist.new_group(timeout=timedelta(seconds=1))
    if dist.get_rank() == ODD:
        dist.barrier()
        return None
    agreement._WARNS_AFTER = 0.2
    warned: list[str] = []
    warnings.showwarning = lambda message, *_, **__: warned.append(str(message))
    raised = outcome(lambda: loader_of(process_group=impatient))
    dist.barrier()
    return raised, warned


def test_a_missing_rank_causes_a_warning_and_a_wait_until_the_groups_timeout() -> None:
    (kind, *_), warned = next(found for found in ranks_of(2, waiting_rank) if found)
    assert kind == "RuntimeError", "torch's"
    (one,) = warned
    assert "ResumableDataLoader() has waited 0 s" in one
    assert "all 2 ranks must call it" in one
    assert "rank=0, world_size=1" in one


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ([3], "rank 3"),
        ([0, 1], "ranks 0-1"),
        ([0, 2, 3, 4, 9], "ranks 0, 2-4, 9"),
    ],
)
def test_ranks_are_named_in_runs(ranks: list[int], named: str) -> None:
    reports = [_Report("load", {"length": "9" if rank in ranks else "8"}) for rank in range(10)]
    assert f"9 on {named}" in _explanation(reports)


def test_a_thousand_ranks_that_all_differ_are_not_listed_individually() -> None:
    reports = [_Report("load", {"seed": str(rank)}) for rank in range(1000)]
    message = _explanation(reports)
    assert "7 on rank 7; and 992 other values" in message
    assert len(message) < 600
