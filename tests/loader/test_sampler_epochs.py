"""The epoch of a custom sampler is the user's, as with torch's loader."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from own_samplers import CountingItsEpoch, HiddenEpoch
from subjects import Indices, ids
from torch.utils.data import DataLoader, DistributedSampler

from dataporter import ResumableDataLoader

LENGTH = 24


def distributed() -> Any:
    return DistributedSampler(range(LENGTH), num_replicas=2, rank=0)  # type: ignore[arg-type]


def loader_of(sampler: Any, workers: int = 0) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(LENGTH), 3, sampler=sampler, num_workers=workers)


def order_of(epoch: int) -> list[list[int]]:
    sampler = distributed()
    sampler.set_epoch(epoch)
    return [ids(batch) for batch in DataLoader(Indices(LENGTH), 3, sampler=sampler)]


def rest(loader: Any) -> list[list[int]]:
    return [ids(batch) for batch in loader]


@pytest.mark.parametrize("reach", ["sampler", "loader", "both"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_look_at_a_batch_before_set_epoch_is_not_an_epoch(reach: str, workers: int) -> None:
    sampler = distributed()
    loader = loader_of(sampler, workers)
    for epoch in range(4):
        next(iter(loader))
        for one in {"sampler": [sampler], "loader": [loader], "both": [loader, sampler]}[reach]:
            one.set_epoch(epoch)
        assert rest(loader) == order_of(epoch), epoch


@pytest.mark.parametrize("when", ["before the load", "after it", "after iter()", "twice"])
@pytest.mark.parametrize("reach", ["sampler", "loader"])
@pytest.mark.parametrize("set_now", [0, 1, 2])
def test_the_epoch_of_the_state_keeps_its_position_and_another_does_not(
    when: str, reach: str, set_now: int
) -> None:
    sampler = distributed()
    loader = loader_of(sampler)
    next(iter(loader))
    sampler.set_epoch(0)
    rest(loader)
    sampler.set_epoch(1)
    batches = iter(loader)
    next(batches), next(batches)
    state = json.loads(json.dumps(loader.state_dict()))

    sampler = distributed()
    loader = loader_of(sampler)
    one: Any = sampler if reach == "sampler" else loader
    if when in ("before the load", "twice"):
        one.set_epoch(set_now)
    loader.load_state_dict(state)
    batches = iter(loader)
    if when == "before the load":
        assert rest(batches) == order_of(1)[2:]
        return
    one.set_epoch(set_now)
    if when == "twice":
        one.set_epoch(set_now)
    if when != "after iter()":
        batches = iter(loader)
    assert rest(batches) == (order_of(1)[2:] if set_now == 1 else order_of(set_now))
    assert loader.epoch == set_now + 1


def test_nobody_sets_it_and_a_resume_repeats_the_order_as_well() -> None:
    sampler = distributed()
    loader = loader_of(sampler)
    assert rest(loader) == rest(loader) == order_of(0)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    resumed = loader_of(distributed())
    resumed.load_state_dict(state)
    assert (resumed.epoch, rest(resumed)) == (2, order_of(0)[1:])
    assert rest(resumed) == order_of(0)


def test_one_that_was_set_once_stays_over_a_resume() -> None:
    sampler = distributed()
    loader = loader_of(sampler)
    sampler.set_epoch(5)
    assert rest(loader) == rest(loader) == order_of(5)
    for step in (0, 1):
        if step:
            next(iter(loader))
        resumed = loader_of(distributed())
        resumed.load_state_dict(loader.state_dict())
        assert (resumed.sampler.epoch, resumed.step) == (5, step)
        assert rest(resumed) == order_of(5)[step:]
        assert rest(resumed) == order_of(5)


def test_epochs_and_seek_set_it() -> None:
    loader = loader_of(distributed())
    assert [rest(loader) for _ in loader.epochs(3)] == [order_of(epoch) for epoch in range(3)]
    loader.seek(epoch=7, step=2)
    assert loader.samples_at(7, 0) == order_of(7)[0]
    assert rest(loader) == order_of(7)[2:]
    loader.seek(epoch=1)
    assert rest(loader) == order_of(1)


def test_epochs_resumes_in_mid_epoch_with_the_order_of_the_state() -> None:
    loader = loader_of(distributed())
    for _ in loader.epochs(2):
        for step, _batch in enumerate(loader):
            if (loader.epoch, step) == (1, 2):
                state = loader.state_dict()
    resumed = loader_of(distributed())
    resumed.load_state_dict(state)
    assert [rest(resumed) for _ in resumed.epochs(3)] == [order_of(1)[3:], order_of(2)]


def test_what_is_refused_leaves_the_epoch() -> None:
    loader = loader_of(distributed())
    loader.sampler.set_epoch(4)
    with pytest.raises(ValueError, match="ends before"):
        loader.seek(epoch=2, step=99)
    assert loader.sampler.epoch == 4
    assert rest(loader) == order_of(4)
    assert loader.epoch == 5


def test_an_epoch_that_does_not_show_is_followed() -> None:
    def hidden() -> ResumableDataLoader[Any]:
        return loader_of(HiddenEpoch())

    loader = hidden()
    loader.sampler.set_epoch(3)
    batches = iter(loader)
    expected = rest(batches)
    assert loader.epoch == 4
    loader.sampler.set_epoch(3)
    next(iter(loader))
    resumed = hidden()
    resumed.load_state_dict(loader.state_dict())
    assert rest(resumed) == expected[1:]


def test_samples_at_asks_for_the_epoch_only_where_somebody_sets_epochs() -> None:
    loader = loader_of(distributed())
    assert loader.samples_at(2, 0) == order_of(0)[0], "what it would deliver"
    loader.sampler.set_epoch(0)
    batches = iter(loader)
    next(batches)
    assert loader.samples_at(2, 0) == order_of(2)[0]
    assert loader.sampler.epoch == 0
    assert rest(batches) == order_of(0)[1:]
    loader.sampler.set_epoch(1)
    assert loader.samples_at(4, 1) == order_of(4)[1]
    assert rest(loader) == order_of(1), "what the user has set is still seen"


def test_copies_see_what_is_set_on_their_own_sampler() -> None:
    loader = loader_of(distributed())
    loader.sampler.set_epoch(1)
    next(iter(loader))
    copied = copy.deepcopy(loader)
    assert rest(copied) == order_of(1)[1:]
    copied.sampler.set_epoch(1)
    assert rest(copied) == order_of(1)
    assert copied.epoch == 2
    assert loader.epoch == 1


def test_the_users_own_state_holds_nothing_of_ours() -> None:
    sampler = distributed()
    loader = loader_of(sampler)
    sampler.set_epoch(3)
    rest(loader)
    assert type(sampler.epoch) is int
    assert torch.equal(torch.tensor(sampler.epoch), torch.tensor(3))


@pytest.mark.parametrize("reach", ["sampler", "loader", "epochs"])
def test_an_epoch_that_is_set_after_a_peek_counts(reach: str) -> None:
    loader = loader_of(distributed())
    assert ids(loader.peek()) == order_of(0)[0]
    epochs = loader.epochs(4) if reach == "epochs" else range(4)
    for epoch in epochs:
        if reach != "epochs":
            (loader if reach == "loader" else loader.sampler).set_epoch(epoch)
        assert ids(loader.peek()) == order_of(epoch)[0]
        assert rest(loader) == order_of(epoch)
        assert loader.epoch == epoch + 1
        loader.peek()


def test_a_peek_and_the_epoch_that_it_is_of_begin_one_pass() -> None:
    loader = loader_of(distributed())
    loader.peek()
    loader.sampler.set_epoch(0)
    assert rest(loader) == order_of(0)
    assert rest(loader) == order_of(0)
    assert loader.epoch == 2


def test_a_loop_over_epochs_begins_with_what_was_set_on_the_sampler() -> None:
    loader = loader_of(distributed())
    next(iter(loader))
    loader.load_state_dict(loader.state_dict())
    loader.sampler.set_epoch(2)
    assert [rest(loader) for _ in loader.epochs(4)] == [order_of(2), order_of(3)]


def test_the_loaders_set_epoch_keeps_a_position_whose_sampler_had_another_epoch() -> None:
    loader = loader_of(distributed())
    rest(loader), rest(loader)
    next(iter(loader))
    resumed = loader_of(distributed())
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(2)
    assert rest(resumed) == order_of(0)[1:], "nobody had set it"


@pytest.mark.parametrize("looks", [0, 1, 2])
def test_one_that_counts_its_epochs_itself_leads_the_loader(looks: int) -> None:
    loader = loader_of(CountingItsEpoch())
    for _ in range(looks):
        next(iter(loader))
    rest(loader)
    state = loader.state_dict()
    resumed = loader_of(CountingItsEpoch())
    resumed.load_state_dict(state)
    for _ in range(2):
        assert (rest(resumed), resumed.epoch) == (rest(loader), loader.epoch)
