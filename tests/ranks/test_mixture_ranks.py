"""Mixtures on several ranks: weights that change at one step, and states of other worlds (C14)."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch.distributed as dist
from worlds import ranks_of

from dataporter import ConfigurationError, Mixture, RankMismatchError, ResumableDataLoader

LENGTHS = {"web": 120, "code": 50, "books": 9}
BEGINS = {"web": 0, "code": 1000, "books": 2000}


def mixture(weights: dict[str, float] | None = None) -> Mixture:
    return Mixture(
        {name: range(BEGINS[name], BEGINS[name] + n) for name, n in LENGTHS.items()},
        weights or {"web": 0.7, "code": 0.2, "books": 0.1},
        stopping=480,
    )


def loader_of(data: Mixture, batch_size: int = 4, **options: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(data, batch_size, shuffle=True, seed=3, **options)


def changing() -> Any:
    rank = dist.get_rank()
    data = mixture()
    # One rank prefetches, so that it has asked further ahead than the others.
    loader = loader_of(
        data, num_workers=2 if rank == 0 else 0, prefetch_factor=3 if rank == 0 else None
    )
    batches = iter(loader)
    before = [next(batches).tolist() for _ in range(5)]
    data.set_weights({"web": 0, "code": 0, "books": 1})
    after = [next(batches).tolist() for _ in range(20)]
    state = loader.state_dict()
    rest = [batch.tolist() for batch in batches]
    return before + after, rest, state


def changing_apart() -> list[str]:
    rank = dist.get_rank()
    data = mixture()
    batches = iter(loader_of(data))
    for _ in range(3 + rank):
        next(batches)
    messages = []
    for weights in ({"web": 1, "code": 1, "books": 1}, {"web": 1, "code": rank, "books": 1}):
        try:
            data.set_weights(weights)
        except RankMismatchError as error:
            messages.append(str(error))
        for _ in range(1 - rank):
            next(batches)
    return messages


def resumed(state: Any) -> Any:
    world_size = dist.get_world_size()
    loader = loader_of(mixture({"web": 1, "code": 1, "books": 1}), 8 // world_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loader.load_state_dict(state)
    return [batch.tolist() for batch in loader]


def other_blends() -> str:
    rank = dist.get_rank()
    try:
        loader_of(mixture({"web": 1, "code": rank + 1, "books": 1}))
    except RankMismatchError as error:
        return str(error)
    return ""


def streams(run: list[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number in run:
        name = next(name for name in reversed(BEGINS) if number >= BEGINS[name])
        found.setdefault(name, []).append(number - BEGINS[name])
    return found


def together(ranks: list[list[list[int]]]) -> list[int]:
    return [number for step in zip(*ranks) for batch in step for number in batch]


def test_ranks_change_weights_at_the_same_step_however_far_each_has_asked() -> None:
    found = ranks_of(2, changing)
    delivered = together([before for before, _, _ in found])
    rest = together([rest for _, rest, _ in found])
    states = [state for _, _, state in found]
    assert states[0] == states[1]
    run = delivered + rest
    assert len(run) == 480
    # One rank alone, that changes at the same position, has the same samples.
    changed_at = next(n for n in range(0, 480, 8) if set(streams(run[n:])) == {"books"})
    assert 40 <= changed_at <= 40 + 8 * 8
    data = mixture()
    alone = loader_of(data, 8)
    batches = iter(alone)
    expected = [number for _ in range(changed_at // 8) for number in next(batches).tolist()]
    data.set_weights({"web": 0, "code": 0, "books": 1})
    expected += [number for batch in batches for number in batch.tolist()]
    assert run == expected
    for world_size in (1, 2):
        parts = ranks_of(world_size, resumed, states[0])
        more = streams(delivered + together(parts))
        assert sum(map(len, more.values())) == 480
        for name, stream in more.items():
            whole = [stream[n : n + LENGTHS[name]] for n in range(0, len(stream), LENGTHS[name])]
            for one in whole[:-1]:
                assert sorted(one) == list(range(LENGTHS[name]))
            assert len(set(whole[-1])) == len(whole[-1])


def test_ranks_that_change_apart_are_refused_on_all() -> None:
    found = ranks_of(2, changing_apart)
    for messages in found:
        assert len(messages) == 2
        assert "step: 3 on rank 0; 4 on rank 1" in messages[0]
        assert "weights" in messages[1]


def test_ranks_with_other_mixtures_are_refused() -> None:
    for message in ranks_of(2, other_blends):
        assert "mixture" in message


def test_without_a_process_group_the_ranks_cannot_agree() -> None:
    data = mixture()
    loader = loader_of(data, rank=0, world_size=2)
    next(iter(loader))
    with pytest.raises(ConfigurationError, match=r"set_weights\(\) on rank 0 of 2, without"):
        data.set_weights({"web": 1, "code": 1, "books": 1})
