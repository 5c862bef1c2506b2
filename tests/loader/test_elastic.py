"""One run on changing numbers of ranks: each sample once, and each as it would have been."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from budgets import cases, slow_except
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, Indices, digest, ids
from worlds import ranks_of

from dataporter import ConfigurationError, ResumableDataLoader, StateMismatchError

SEED = 9
SHARING_TAILS = st.sampled_from(["pad", "uneven"])
State = dict[str, Any]


def loader_of(length: int, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"shuffle": True, "seed": SEED, "strategy": "distributed", **arguments}
    return ResumableDataLoader(Augmented(length), **arguments)


def samples(loader: ResumableDataLoader[Any], batch: Any) -> list[tuple[int, str, bool]]:
    """(index, digest of the augmented sample, whether it is a repeat) of a batch just delivered."""
    padding = loader.padding(loader.step - 1)
    return [
        (index, digest({key: values[place] for key, values in batch.items()}), bool(repeat))
        for place, (index, repeat) in enumerate(zip(ids(batch), padding))
    ]


def take(loader: ResumableDataLoader[Any], steps: int) -> tuple[list[Any], list[State], State]:
    """What ``steps`` batches hold, the state after each, and the state after the loop."""
    seen, states = [], []
    for batch in loader if steps else ():
        seen += samples(loader, batch)
        states.append(loader.state_dict())
        if len(states) == steps:
            return seen, states, states[-1]
    return seen, states, loader.state_dict()


@cache
def undisturbed(length: int) -> dict[int, str]:
    """The epoch as one rank sees it without a stop."""
    loader = loader_of(length, batch_size=length, rank=0, world_size=1)
    return {index: text for batch in loader for index, text, _ in samples(loader, batch)}


def assert_once(seen: list[tuple[int, str, bool]], length: int) -> None:
    """Each sample once and as it was, besides what ``padding`` has named."""
    fresh = [(index, text) for index, text, repeat in seen if not repeat]
    assert sorted(index for index, _ in fresh) == list(range(length))
    assert dict(fresh) == undisturbed(length)


@given(
    length=st.integers(1, 60),
    tail=SHARING_TAILS,
    chain=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 5)), max_size=4),
)
@settings(max_examples=cases(60))
def test_loaders_in_a_chain_of_worlds_give_each_sample_once_and_as_it_was(
    length: int, tail: str, chain: list[tuple[int, int, int]]
) -> None:
    seen: list[Any] = []
    state: State | None = None
    for batch_size, world_size, steps in [*chain, (4, 3, length + 1)]:
        # One rank alone has "advanced" by default, and counts alike.
        strategy = "advanced" if world_size == 1 else "distributed"
        arguments = {"batch_size": batch_size, "tail": tail, "strategy": strategy}
        ranks = [
            loader_of(length, rank=rank, world_size=world_size, **arguments)
            for rank in range(world_size)
        ]
        taken = []
        for loader in ranks:
            if state is not None:
                loader.load_state_dict(state)
            taken.append(take(loader, steps))
            seen += taken[-1][0]
        for states in zip(*(states for _, states, _ in taken)):
            assert all(one == states[0] for one in states), "one state at the same step"
        state = taken[0][2]
        if state["epoch"] > 0:
            assert all(last == state for _, _, last in taken), "and after the pass"
            break
        # The first rank has every step: where others had none left, it is the one to save from.
        assert state["step"] == max(last["step"] for _, _, last in taken if last["epoch"] == 0)
    assert_once(seen, length)


# ---- with processes


def chained_rank(
    length: int, batch_size: int, tail: str, steps: int, state: State | None
) -> tuple[list[Any], State]:
    loader = loader_of(length, batch_size=batch_size, seed=None, tail=tail)
    if state is not None:
        loader.load_state_dict(state)
    else:
        loader.load_state_dict({**loader.state_dict(), "seed": SEED})
    seen, _, last = take(loader, steps)
    dist.barrier()
    return seen, last


CHAINS = [
    [(4, 4, 2), (4, 2, 2), (4, 3, 1), (2, 8, 1), (5, 1, None)],
    [(3, 2, 3), (6, 1, 2), (3, 2, None)],
    [(1, 5, 0), (1, 5, 4), (7, 2, None)],
]


def drawn_chain(rng: random.Random) -> list[tuple[int, int, int | None]]:
    links = [(rng.randint(1, 6), rng.randint(1, 3), rng.randint(0, 4)) for _ in range(3)]
    return [*links[:2], (*links[2][:2], None)]


@pytest.mark.parametrize("number", slow_except([1], range(6)))
def test_real_worlds_in_a_chain_give_each_sample_once_and_as_it_was(number: int) -> None:
    rng = random.Random(number)
    chain = CHAINS[number] if number < len(CHAINS) else drawn_chain(rng)
    length, tail = rng.randint(50, 90), "pad" if number % 2 else "uneven"
    print(f"{length} samples, tail={tail!r}, (batch size, world size, steps): {chain}")
    seen: list[Any] = []
    state: State | None = None
    for batch_size, world_size, steps in chain:
        arguments = (length, batch_size, tail, length + 1 if steps is None else steps, state)
        ranks = ranks_of(world_size, chained_rank, *arguments)
        state = ranks[0][1]
        for taken, last in ranks:
            seen += taken
            # A rank that has no share of an uneven tail is through with the epoch before others.
            assert last == state or (tail == "uneven" and last["epoch"] == 1)
        if state["epoch"] == 1:
            break
    assert_once(seen, length)


# ---- the tail, as a loader has it


def test_padding_names_the_repeats_of_a_batch_so_that_evaluation_can_mask_them() -> None:
    for world_size in (1, 2, 3, 5):
        correct = 0
        for rank in range(world_size):
            loader = ResumableDataLoader(
                Indices(11), 2, shuffle=True, seed=1, rank=rank, world_size=world_size
            )
            for step, batch in enumerate(loader):
                padding = loader.padding(step)
                assert padding.shape == batch.shape
                correct += int(torch.bincount(batch[~padding], minlength=11).sum())
        assert correct == 11


def test_padding_after_the_last_batch_of_an_epoch_whose_world_changed() -> None:
    """The plan that the last batches went by is known as long as their epoch is the current one."""
    before = loader_of(20, batch_size=3, rank=0, world_size=2)
    next(iter(before))
    loader = loader_of(20, batch_size=4, rank=2, world_size=3)
    loader.load_state_dict(before.state_dict())
    batches = list(zip(range(2), loader))
    # 14 were left: a global batch of 12, and 2 shared by 3 ranks with one repeat.
    assert [len(ids(batch)) for _, batch in batches] == [4, 1]
    assert [loader.padding(step).tolist() for step in (1, 2)] == [[False] * 4, [True]]
    assert loader.samples_at(0, 2).tolist() == ids(batches[-1][1])
    with pytest.raises(ConfigurationError, match="another batch size"):
        loader.padding(0)


def test_an_epoch_after_an_abandoned_one_goes_by_its_own_plan() -> None:
    before = loader_of(20, batch_size=3, rank=0, world_size=2)
    next(iter(before))
    loader = loader_of(20, batch_size=4, rank=2, world_size=3)
    loader.load_state_dict(before.state_dict())
    next(iter(loader))
    batch = next(iter(loader))
    assert loader.epoch == 1
    assert loader.samples_at(1, 0).tolist() == ids(batch)
    # 20 are a global batch of 12, and 8 shared by 3 ranks with one repeat.
    assert [loader.padding(step).tolist() for step in (0, 1)] == [[False] * 4, [False, False, True]]


def test_padding_is_refused_where_it_is_not_known() -> None:
    loader = loader_of(10, batch_size=2, rank=0, world_size=2)
    with pytest.raises(ConfigurationError, match=r"3 steps on this rank.*0\.\.2"):
        loader.padding(3)
    own = ResumableDataLoader(Indices(4), 2, sampler=[1, 2, 3], seed=1)
    with pytest.raises(ConfigurationError, match="unknown for a custom sampler"):
        own.padding(0)


def test_uneven_lengths_are_truthful_on_every_rank() -> None:
    ranks = [
        ResumableDataLoader(
            Indices(13), 4, seed=1, rank=rank, world_size=3, tail="uneven", shuffle=True
        )
        for rank in range(3)
    ]
    assert [len(loader) for loader in ranks] == [2, 1, 1]
    assert [len(loader.sampler) for loader in ranks] == [5, 4, 4]
    assert [len(list(loader)) for loader in ranks] == [2, 1, 1]
    for loader in ranks:
        loader.seek(epoch=0, step=2)
        assert loader.remaining == 0, "a step that only other ranks have can be passed over"
    assert all(loader.state_dict() == ranks[0].state_dict() for loader in ranks)
    with pytest.raises(ConfigurationError, match="an epoch has 2 steps"):
        ranks[0].seek(step=3)


@pytest.mark.parametrize("tail", ["pad", "drop", "uneven"])
def test_drop_last_and_the_samplers_are_truthful_for_each_tail(tail: str) -> None:
    loader = ResumableDataLoader(Indices(11), 3, tail=tail)
    assert loader.tail == tail
    assert loader.drop_last == loader.batch_sampler.drop_last == (tail == "drop")
    assert [len(loader), len(list(loader)), len(list(loader.batch_sampler))] == [
        3 if tail == "drop" else 4
    ] * 3


def test_simple_counts_steps_over_all_ranks_where_only_some_have_the_last() -> None:
    """Under ``warn`` a state of a longer run stops at the epoch's end, everywhere the same."""
    saved = loader_of(40, batch_size=2, strategy="simple", rank=0, world_size=3, tail="uneven")
    saved.seek(step=6)
    found = []
    for rank in range(3):
        loader = loader_of(
            13, batch_size=4, strategy="simple", rank=rank, world_size=3, tail="uneven"
        )
        with pytest.raises(StateMismatchError):
            loader.load_state_dict(saved.state_dict())
        with pytest.warns(RuntimeWarning):
            loader.load_state_dict(saved.state_dict(), on_mismatch="warn")
        found.append(loader.state_dict())
    assert found == [found[0]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tail": "wrap"}, "tail='wrap': expected 'pad', 'drop' or 'uneven'"),
        ({"tail": "pad", "drop_last": True}, "tail='pad' and drop_last=True contradict"),
        ({"tail": "uneven", "drop_last": True}, "tail='uneven' and drop_last=True contradict"),
        ({"tail": "pad", "sampler": [1]}, "tail='pad': sampler="),
    ],
)
def test_tails_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ResumableDataLoader(Indices(4), 2, **arguments)


def test_drop_last_may_be_said_twice() -> None:
    assert ResumableDataLoader(Indices(4), 2, tail="drop", drop_last=True).tail == "drop"
