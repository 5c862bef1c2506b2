"""Streams on several ranks: shared shards, and states gathered from all ranks (C7, C10)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch.distributed as dist
from budgets import slow
from example_streams import KINDS, Generated, Sharded, numbers
from worlds import outcome, ranks_of

from dataporter import ResumableDataLoader

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
LENGTH = 61


def loader_of(kind: str, workers: int) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(KINDS[kind](LENGTH), batch_size=3, num_workers=workers)


def begin(kind: str, workers: int, steps: int) -> Any:
    loader = loader_of(kind, workers)
    seen = numbers(list(itertools.islice(loader, steps)))
    return seen, loader.state_dict(), loader.state_dict(gather=True), loader.seed


def resume(kind: str, workers: int, state: Any) -> Any:
    loader = loader_of(kind, workers)
    loader.load_state_dict(state[dist.get_rank()] if isinstance(state, list) else state)
    return numbers(list(loader)), loader.seed


@pytest.mark.parametrize(("before", "after"), [(2, 3), *slow((4, 1))])
def test_another_number_of_ranks_resumes_the_shards(before: int, after: int) -> None:
    begun = ranks_of(before, begin, "shards", 0, 2)
    wholes = [json.dumps(whole) for _, _, whole, _ in begun]
    assert len(set(wholes)) == 1
    ended = ranks_of(after, resume, "shards", 2, json.loads(wholes[0]))
    found = [number for rank in (*begun, *ended) for number in rank[0]]
    assert sorted(found) == list(range(LENGTH))
    assert len({rank[-1] for rank in (*begun, *ended)}) == 1


ALL_KINDS = ("replay", "dataset state", "shards")


def begin_all() -> Any:
    return {kind: begin(kind, 2, 3) for kind in ALL_KINDS}


def resume_all(begun: list[Any]) -> Any:
    found = {}
    for kind in ALL_KINDS:
        parts = [one[kind][1] for one in begun]
        for what, state in (("the whole", begun[0][kind][2]), ("parts", parts)):
            found[kind, what], _ = resume(kind, 2, json.loads(json.dumps(state)))
    return found


@pytest.mark.slow
def test_the_same_ranks_load_the_whole_or_their_parts() -> None:
    begun = ranks_of(2, begin_all)
    ended = ranks_of(2, resume_all, begun)
    for kind, what in ended[0]:
        joined = [one[kind][0] + two[kind, what] for one, two in zip(begun, ended)]
        if kind == "shards":
            assert sorted(joined[0] + joined[1]) == list(range(LENGTH)), what
        else:  # each rank reads all of such a stream
            seed = begun[0][kind][-1]
            alone = ResumableDataLoader(KINDS[kind](LENGTH), 3, num_workers=2, seed=seed)
            assert joined == [numbers(list(alone))] * 2, what


def mistakes() -> Any:
    rank = dist.get_rank()
    loader = ResumableDataLoader(Sharded(LENGTH), batch_size=3)
    list(itertools.islice(loader, 2))
    parts: list[Any] = [None, None]
    dist.all_gather_object(parts, loader.state_dict())
    others = outcome(lambda: loader.load_state_dict(parts[1 - rank]))
    one_is_ahead = ResumableDataLoader(Sharded(LENGTH), batch_size=3)
    if rank == 0:
        list(one_is_ahead)
        next(iter(one_is_ahead))
    ahead = outcome(lambda: one_is_ahead.state_dict(gather=True))
    pixels = [batch["python"].tolist() for batch in ResumableDataLoader(Generated(6), 6)]
    return others, ahead, pixels


def test_mistakes_raise_on_all_ranks() -> None:
    (others_0, ahead_0, pixels_0), (others_1, ahead_1, pixels_1) = ranks_of(2, mistakes)
    assert others_0[0] == others_1[0] == "StateMismatchError"
    assert "rank 1's part" in others_0[1]
    assert ahead_0[0] == ahead_1[0] == "RankMismatchError"
    assert "rank 0 is at step 1 of epoch 1" in ahead_0[1]
    assert pixels_0 != pixels_1  # each rank augments differently
