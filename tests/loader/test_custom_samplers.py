"""Custom samplers: a resumed pass is the uninterrupted one, or is refused beforehand."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import torch
from own_samplers import (
    LENGTH,
    PATTERNS,
    InPlace,
    InPlaceStateful,
    OwnNumpy,
    Pattern,
    Uncopyable,
)
from subjects import Indices, ids
from torch.utils.data import BatchSampler, RandomSampler

from dataporter import ConfigurationError, ResumableDataLoader, StateMismatchError

EPOCHS = 3


def loader_of(pattern: Pattern, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    own = pattern.build()
    if "sampler" in own:
        own["batch_size"] = 2
    torch.manual_seed(5)
    return ResumableDataLoader(Indices(LENGTH), num_workers=workers, **own, **arguments)


def set_epoch_of(loader: ResumableDataLoader[Any], epoch: int) -> None:
    for sampler in (loader.sampler, loader.batch_sampler):
        inner = getattr(sampler, "indices_from", sampler)
        for one in (inner, getattr(inner, "sampler", None)):
            if hasattr(one, "set_epoch"):
                one.set_epoch(epoch)


def run(
    loader: ResumableDataLoader[Any], pattern: Pattern, *, saves: bool = False
) -> tuple[list[list[int]], list[tuple[int, str]]]:
    """The batches of the rest of so many epochs; and states, with how many came before each."""
    seen: list[list[int]] = []
    states: list[tuple[int, str]] = []

    def save() -> None:
        if saves:
            states.append((len(seen), json.dumps(loader.state_dict())))

    save()
    for epoch in range(loader.epoch, EPOCHS):
        if pattern.sets_epoch:
            set_epoch_of(loader, epoch)
        for batch in loader:
            seen.append(ids(batch))
            save()
        seen.append([-1 - epoch])
        save()
    return seen, states


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PATTERNS)
def test_resumed_is_uninterrupted_at_every_step_or_refused(name: str, workers: int) -> None:
    pattern = PATTERNS[name]
    whole, states = run(loader_of(pattern, workers), pattern, saves=True)
    first_end = whole.index([-1])
    for count, text in states if workers == 0 else states[1::3]:
        resumed = loader_of(pattern, workers)
        if pattern.resumes == "first" and count > first_end:
            with pytest.raises(StateMismatchError, match="sampler"):
                resumed.load_state_dict(json.loads(text))
            continue
        resumed.load_state_dict(json.loads(text))
        assert json.loads(json.dumps(resumed.state_dict())) == json.loads(text)
        assert run(resumed, pattern)[0] == whole[count:], (name, count, json.loads(text))


# ---- the first batch of a resumed pass


def moved(place: int) -> InPlace:
    """A sampler that a user has restored by hand."""
    sampler = InPlace()
    sampler.place = place
    return sampler


def single(sampler: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(LENGTH), 2, sampler=sampler, seed=1, **arguments)


def state_after(loader: ResumableDataLoader[Any], steps: int) -> dict[str, Any]:
    for _, _batch in zip(range(steps), loader):
        pass
    return loader.state_dict()


def test_the_issues_sampler_resumes_where_it_was() -> None:
    resumed = single(InPlace())
    resumed.load_state_dict(state_after(single(InPlace()), 2))
    assert [ids(batch) for batch in resumed] == [[4, 5], [6, 7], [8, 9], [10, 11]]


def test_one_restored_by_hand_is_refused_at_the_load() -> None:
    state = state_after(single(InPlace()), 2)
    with pytest.raises(StateMismatchError, match="nothing drawn or skipped"):
        single(moved(4)).load_state_dict(state)


def test_one_that_moves_after_the_load_is_refused_before_its_first_batch() -> None:
    state = state_after(single(InPlace()), 2)
    sampler = InPlace()
    loader = single(sampler)
    loader.load_state_dict(state)
    sampler.place = 4
    for _ in range(2):
        with pytest.raises(StateMismatchError, match="No batch was delivered"):
            next(iter(loader))
        assert loader.state_dict() == state
        sampler.place = 6
    sampler.place = 0
    assert ids(next(iter(loader))) == [4, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_on_mismatch_warns_at_the_load_or_in_the_pass(workers: int) -> None:
    state = state_after(single(InPlace()), 2)
    loader = single(moved(2), num_workers=workers)
    with pytest.warns(RuntimeWarning, match="order_digest"):
        loader.load_state_dict(state, on_mismatch="warn")
    assert [ids(batch) for batch in loader] == [[6, 7], [8, 9], [10, 11]]
    uncopyable = Uncopyable()
    loader = single(uncopyable, num_workers=workers)
    state = state_after(single(Uncopyable()), 2)
    uncopyable.rng.random()
    loader.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="No batch was delivered"):
        next(iter(loader))
    again = Uncopyable()
    again.rng.random()
    loader = single(again, num_workers=workers)
    loader.load_state_dict(state, on_mismatch="warn")
    with pytest.warns(RuntimeWarning, match="digest of their indices"):
        assert len(list(loader)) == 4
    assert (loader.epoch, loader.step) == (1, 0)


def test_a_state_that_the_user_loads_as_well_is_not_skipped_twice() -> None:
    sampler = InPlaceStateful()
    loader = single(sampler)
    list(loader)
    state = state_after(loader, 3)
    own = sampler.state_dict()
    for when in ("before", "after"):
        sampler = InPlaceStateful()
        loader = single(sampler)
        if when == "before":
            sampler.load_state_dict(own)
        loader.load_state_dict(state)
        if when == "after":
            sampler.load_state_dict(own)
        assert [ids(batch) for batch in loader] == [[6, 7], [8, 9], [10, 11]], when


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_snapshot_is_of_the_batch_that_was_delivered(every: int, workers: int) -> None:
    loader = single(InPlaceStateful(), num_workers=workers, snapshot_every=every)
    list(loader)
    for step, _batch in enumerate(loader):
        state = json.loads(loader.state_dict()["sampler"])
        assert state["snapshot"][0] == (1 if step < every else step // every * every)
        assert state["passes"] == 1


def test_a_state_of_the_sampler_that_cannot_be_kept_is_said_once_and_not_used() -> None:
    class Odd(InPlace):
        def state_dict(self) -> Any:
            return {"place": object()}

        def load_state_dict(self, state: Any) -> None:
            raise AssertionError

    loader = single(Odd())
    with pytest.warns(RuntimeWarning, match=r"state_dict\(\) that is no part") as warned:
        state = state_after(loader, 3)
    assert len([one for one in warned if "no part" in str(one.message)]) <= 2
    resumed = single(Odd())
    resumed.load_state_dict(state)
    assert ids(next(iter(resumed))) == [6, 7]


def test_a_state_that_is_no_position_is_found_out() -> None:
    """It is loaded without an error, and the pass would begin anew."""

    class Liar(OwnNumpy):
        def state_dict(self) -> Any:
            return {"nothing": 0}

        def load_state_dict(self, state: Any) -> None:
            pass

    loader = single(Liar())
    first = state_after(loader, 2)
    resumed = single(Liar())
    resumed.load_state_dict(first)
    assert [ids(batch) for batch in resumed] == [ids(batch) for batch in single(Liar())][2:]
    list(loader)
    for steps in (0, 1, 3):
        state = state_after(loader, steps)
        with pytest.raises(StateMismatchError):
            single(Liar()).load_state_dict(state)


# ---- look-ups


@pytest.mark.parametrize("name", PATTERNS)
def test_a_look_ahead_changes_nothing_or_is_an_error(name: str) -> None:
    pattern = PATTERNS[name]
    whole = run(loader_of(pattern), pattern)[0]
    loader, seen, answers = loader_of(pattern), [], 0
    for epoch in range(EPOCHS):
        if pattern.sets_epoch:
            set_epoch_of(loader, epoch)
        batches = iter(loader)
        while True:
            for step in (0, 2):
                with contextlib.suppress(ConfigurationError):
                    found = [int(index) for index in loader.samples_at(epoch, step)]
                    start = whole.index([-epoch]) + 1 if epoch else 0
                    assert found == whole[start + step]
                    answers += 1
                with contextlib.suppress(ConfigurationError):
                    loader.samples_at(epoch + 1, step)
            if (batch := next(batches, None)) is None:
                break
            seen.append(ids(batch))
        seen.append([-1 - epoch])
    assert seen == whole
    if name in ("with set_epoch", "torch's weighted", "transformers'", "timm's"):
        assert answers == 2 * len(whole)


@pytest.mark.parametrize("name", PATTERNS)
def test_seek_goes_where_the_pass_goes_or_is_an_error(name: str) -> None:
    pattern = PATTERNS[name]
    whole = run(loader_of(pattern), pattern)[0]
    loader = loader_of(pattern)
    if name in ("one-shot generator", "not to be copied"):
        with pytest.raises(ConfigurationError, match="cannot be copied"):
            loader.seek(step=2)
        assert ids(next(iter(loader))) == whole[0]
        return
    loader.seek(step=2)
    state = loader.state_dict()
    assert [ids(batch) for batch in loader] == whole[2 : whole.index([-1])]
    resumed = loader_of(pattern)
    resumed.load_state_dict(state)
    assert [ids(batch) for batch in resumed] == whole[2 : whole.index([-1])]


def test_the_mismatch_names_both_batch_sizes() -> None:
    def build(batch_size: int) -> ResumableDataLoader[Any]:
        batches = BatchSampler(RandomSampler(range(LENGTH)), batch_size, False)
        return ResumableDataLoader(Indices(LENGTH), batch_sampler=batches, seed=1)

    state = state_after(build(4), 1)
    with pytest.raises(StateMismatchError, match=r"BatchSampler\(batch_size=4.*batch_size=3"):
        build(3).load_state_dict(state)
    assert state["order"] == (
        "sampler BatchSampler(batch_size=4, drop_last=False, "
        "sampler=RandomSampler(replacement=False))"
    )
    assert len(json.dumps(state)) < 1024


def test_an_endless_sampler_with_a_state_resumes() -> None:
    class Endless(InPlaceStateful):
        def __iter__(self) -> Any:
            while True:
                self.place += 1
                yield self.place * 5 % LENGTH

    loader = single(Endless())
    batches = iter(loader)
    for _ in range(9):
        next(batches)
    resumed = single(Endless())
    resumed.load_state_dict(loader.state_dict())
    again = iter(resumed)
    assert [ids(next(again)) for _ in range(5)] == [ids(next(batches)) for _ in range(5)]
