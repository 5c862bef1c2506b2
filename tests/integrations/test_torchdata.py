"""A state of torchdata's loader: the rest of its epoch comes exactly, or the state is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchdata.stateful_dataloader as stateful
from subjects import Indices
from torch.utils.data import (
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)

from dataporter import (
    InvalidStateError,
    ResumableDataLoader,
    ResumableSampler,
    StateMismatchError,
)
from dataporter.loader.rebuild import rebuilt

LENGTH = 23


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    # torchdata 0.11 calls functions that torch 2.13 has deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def theirs(**arguments: Any) -> Any:
    return stateful.StatefulDataLoader(Indices(LENGTH), **{"batch_size": 4, **arguments})


def ours(**arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(LENGTH), **{"batch_size": 4, **arguments})


def samples(batch: Any) -> list[int]:
    return [int(each) for each in torch.as_tensor(batch).reshape(-1)]


def states_and_rests(loader: Any) -> list[tuple[Any, list[list[int]]]]:
    """Before each batch of a pass, and after the last: the state, and the batches that follow."""
    states, batches = [copy.deepcopy(loader.state_dict())], []
    for batch in loader:
        batches.append(samples(batch))
        states.append(copy.deepcopy(loader.state_dict()))
    return [(state, batches[step:]) for step, state in enumerate(states)]


def generator_of(state: Any) -> torch.Generator:
    """As the message of a refusal says."""
    main = state["_snapshot"]["_main_snapshot"] if "_snapshot" in state else state
    found = main["_sampler_iter_state"]
    found = found.get("sampler_iter_state", found)
    generator = torch.Generator()
    generator.set_state(found["generator"])
    return generator


def rest(loader: ResumableDataLoader[Any], state: Any) -> list[list[int]]:
    loader.load_state_dict(state)
    again = loader.state_dict()
    found = [samples(batch) for batch in loader]
    if type(loader.sampler) is not RandomSampler:  # its generator has moved
        resumed = rebuilt(loader)
        resumed.load_state_dict(again)
        assert [samples(batch) for batch in resumed] == found, "our own state continues it"
    return found


WAYS: list[dict[str, Any]] = [
    {},
    {"num_workers": 2},
    {"num_workers": 2, "snapshot_every_n_steps": 3},
    {"drop_last": True},
    {"batch_size": None},
    {"batch_size": 1},
]


def kept(way: dict[str, Any]) -> dict[str, Any]:
    return {name: way[name] for name in ("drop_last", "batch_size") if name in way}


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("workers", [0, 2])
def test_in_sequence(way: dict[str, Any], workers: int) -> None:
    if workers and way:
        pytest.skip("workers are no part of it")
    for state, following in states_and_rests(theirs(**way)):
        assert rest(ours(num_workers=workers, **kept(way)), state) == following


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("seeded", [False, True])
def test_shuffled_with_the_sampler_that_the_message_names(
    way: dict[str, Any], seeded: bool
) -> None:
    generator = torch.Generator().manual_seed(5) if seeded else None
    loader = theirs(shuffle=True, generator=generator, **way)
    list(loader)  # any epoch
    for state, following in states_and_rests(loader)[1:]:  # the first is from the end of the pass
        sampler = RandomSampler(range(LENGTH), generator=generator_of(state))
        assert rest(ours(sampler=sampler, **kept(way)), state) == following


@pytest.mark.parametrize("stateful_sampler", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_distributed_sampler(stateful_sampler: bool, workers: int) -> None:
    """Each rank has its own state of torchdata, of the epoch that was set on the sampler."""
    kind = stateful.sampler.StatefulDistributedSampler if stateful_sampler else DistributedSampler
    for rank in range(2):
        sampler = kind(range(LENGTH), 2, rank, seed=3)
        sampler.set_epoch(4)
        for state, following in states_and_rests(theirs(sampler=sampler, num_workers=workers)):
            if state["_iterator_finished"]:
                continue
            mine = DistributedSampler(range(LENGTH), 2, rank, seed=3)
            mine.set_epoch(4)
            loader = ours(sampler=mine)
            loader.load_state_dict(state)
            assert loader.epoch == 4
            assert [samples(batch) for batch in loader] == following


@pytest.mark.parametrize("workers", [0, 2])
def test_after_an_epochs_end_the_next_epoch_comes(workers: int) -> None:
    loader = theirs(num_workers=workers)
    list(loader)
    resumed = ours()
    resumed.load_state_dict(loader.state_dict())
    assert (resumed.epoch, resumed.step) == (1, 0)
    assert len(list(resumed)) == 6


def in_the_middle(loader: Any) -> Any:
    batches = iter(loader)
    next(batches)
    next(batches)
    return copy.deepcopy(loader.state_dict())


AS_IT_WAS = (
    "build the loader with sampler=RandomSampler(dataset, generator=generator), where generator = "
    "torch.Generator(); generator.set_state(state['_sampler_iter_state']['sampler_iter_state']"
    "['generator'])"
)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(LENGTH))


class WithState(Indices):
    def state_dict(self) -> dict[str, Any]:
        return {"read": 1}

    def load_state_dict(self, state: Any) -> None:
        pass


def shuffled_state() -> Any:
    return in_the_middle(theirs(shuffle=True, generator=torch.Generator().manual_seed(5)))


REFUSED: list[tuple[str, Callable[[], Any], Callable[[], Any], str]] = [
    (
        "shuffled into our order",
        shuffled_state,
        lambda: ours(shuffle=True),
        "this loader's order is 'shuffled', and torchdata's was shuffled by a generator of torch: "
        + AS_IT_WAS,
    ),
    (
        "shuffled into the sequence",
        shuffled_state,
        ours,
        "this loader's order is 'sequential', and torchdata's was shuffled by a generator of "
        "torch: " + AS_IT_WAS,
    ),
    (
        "in sequence into an order",
        lambda: in_the_middle(theirs()),
        lambda: ours(shuffle=True),
        "this loader's order is 'shuffled', and torchdata's was that of a sampler without a state: "
        "leave shuffle= and order= out, or pass it",
    ),
    (
        "shuffled into torch's order",
        shuffled_state,
        lambda: ours(order="torch", seed=5),
        "this loader's order is 'torch', and torchdata's was shuffled by a generator of torch: "
        + AS_IT_WAS,
    ),
    (
        "another generator",
        shuffled_state,
        lambda: ours(
            sampler=RandomSampler(range(LENGTH), generator=torch.Generator().manual_seed(6))
        ),
        "the generator of sampler= (a RandomSampler) gives another order: " + AS_IT_WAS,
    ),
    (
        "another sampler",
        shuffled_state,
        lambda: ours(sampler=SequentialSampler(range(LENGTH))),
        "sampler= is a SequentialSampler: " + AS_IT_WAS,
    ),
    (
        "a sampler without a state",
        lambda: in_the_middle(theirs(sampler=WeightedRandomSampler([1.0] * LENGTH, LENGTH))),
        lambda: ours(sampler=WeightedRandomSampler([1.0] * LENGTH, LENGTH)),
        "torchdata's state does not hold the order of a WeightedRandomSampler, so the rest of its "
        "epoch cannot be known: start the next epoch without loading a state",
    ),
    (
        "another batch size",
        lambda: in_the_middle(theirs()),
        lambda: ours(batch_size=5),
        "batch_size: torchdata's loader had read 8 samples in 2 batches, this loader has "
        "batch_size=5: pass batch_size= as it was",
    ),
    (
        "no batches",
        lambda: in_the_middle(theirs()),
        lambda: ours(batch_size=None),
        "batch_size: torchdata's loader had a number, this loader has None: pass it as it was",
    ),
    (
        "several ranks",
        lambda: in_the_middle(theirs()),
        lambda: ours(rank=0, world_size=2, seed=1),
        "torchdata's state is that of one rank, and this loader shards the data for 2 ranks in an "
        "order of its own: finish the epoch with sampler=DistributedSampler(...) as it was, or "
        "start the next one",
    ),
    (
        "a shorter dataset",
        lambda: in_the_middle(theirs()),
        lambda: ResumableDataLoader(Indices(3), 4),
        "torchdata's state is at batch 2, and an epoch of this loader has 1 batches: resume on the "
        "dataset that it was saved with",
    ),
    (
        "a state of the dataset",
        lambda: in_the_middle(stateful.StatefulDataLoader(WithState(LENGTH), 4)),
        ours,
        "this state of torchdata's StatefulDataLoader holds a state of the dataset, which a "
        "ResumableDataLoader of a map-style dataset has no place for: load it into the dataset "
        "yourself, and set every 'dataset_state' of the state to None",
    ),
    (
        "a stream",
        lambda: in_the_middle(stateful.StatefulDataLoader(Stream(), 4)),
        ours,
        "this is a state of torchdata's StatefulDataLoader of an iterable dataset, or this "
        "loader's is one: where its workers stood in their streams cannot be carried over; finish "
        "the epoch with torchdata, and start the next one here",
    ),
    (
        "a damaged one",
        lambda: {"_snapshot": {}, "_steps_since_snapshot": 0, "_iterator_finished": False},
        ours,
        "this is a state of torchdata's StatefulDataLoader, but it is damaged "
        "(KeyError('_main_snapshot')): load another one",
    ),
    (
        "a sampler of ours",
        lambda: in_the_middle(theirs()),
        lambda: ResumableSampler(Indices(LENGTH), 4),
        "this is a state of torchdata's StatefulDataLoader, which only a ResumableDataLoader of a "
        "map-style dataset can load: pass it to one with the same sampler",
    ),
]


@pytest.mark.parametrize(
    ("state", "build", "text"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_is_refused_and_why(
    state: Callable[[], Any], build: Callable[[], Any], text: str
) -> None:
    saved, loader = state(), build()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises((StateMismatchError, InvalidStateError)) as refused:
        loader.load_state_dict(saved)
    assert str(refused.value) == text
    assert torch.equal(torch.get_rng_state(), before), "no seed was drawn"


def test_after_a_shuffled_epochs_end_it_is_refused() -> None:
    loader = theirs(shuffle=True, generator=torch.Generator().manual_seed(5))
    list(loader)
    sampler = RandomSampler(range(LENGTH), generator=generator_of(loader.state_dict()))
    with pytest.raises(StateMismatchError, match="start the next epoch without loading a state"):
        ours(sampler=sampler).load_state_dict(loader.state_dict())


def test_a_generator_that_is_damaged() -> None:
    state = shuffled_state()
    state["_sampler_iter_state"]["sampler_iter_state"]["generator"] = torch.zeros(3)
    with pytest.raises(InvalidStateError, match="'generator' is not the state of a torch"):
        ours(sampler=RandomSampler(range(LENGTH))).load_state_dict(state)
