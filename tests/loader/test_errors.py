"""Bad input: one clear error that names it; nothing is applied, and the loader is unchanged."""

from __future__ import annotations

import gc
import json
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from subjects import Indices, ids
from torch.utils.data import DistributedSampler, IterableDataset, RandomSampler
from torch.utils.data.datapipes.iter import IterableWrapper

from dataporter import (
    ConfigurationError,
    DataPorterError,
    DatasetChangedError,
    InvalidStateError,
    ResumableDataLoader,
    ResumableSampler,
    SampleError,
    StateMismatchError,
    UnsupportedDatasetError,
)

LENGTH, BATCH_SIZE = 20, 4
BUILT_IN = {
    ConfigurationError: ValueError,
    InvalidStateError: ValueError,
    StateMismatchError: ValueError,
    UnsupportedDatasetError: TypeError,
    DatasetChangedError: RuntimeError,
    SampleError: RuntimeError,
}


def loader_of(length: int = LENGTH, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(
        Indices(length), **{"batch_size": BATCH_SIZE, "shuffle": True, "seed": 1, **arguments}
    )


def refusal(kind: type[Exception], names: tuple[str, ...], act: Callable[[], Any]) -> None:
    """``act`` raises exactly this error, and its message has these words in it."""
    with pytest.raises(kind) as refused:
        act()
    assert type(refused.value) is kind
    assert isinstance(refused.value, DataPorterError)
    assert isinstance(refused.value, BUILT_IN[kind])
    message = str(refused.value)
    assert [name for name in names if name not in message] == [], message
    assert len(message) < 1000, "one clear error, and no dump"


def failure_of(loader: ResumableDataLoader[Any], read: list[int]) -> Exception:
    """What a pass raises. Without its traceback, which would keep this frame and the workers."""
    try:
        for batch in loader:
            read += ids(batch)
    except Exception as error:
        return error.with_traceback(None)
    raise AssertionError("no failure")


def refused_state(
    state: Any,
    kind: type[Exception],
    names: tuple[str, ...],
    build: Callable[[], ResumableDataLoader[Any]] = loader_of,
) -> None:
    """Refused by a fresh loader, and by one in the middle of an epoch; both are unchanged."""
    untouched, fresh = build(), build()
    refusal(kind, names, lambda: fresh.load_state_dict(state))
    assert fresh.state_dict() == untouched.state_dict()
    assert list(map(str, fresh)) == list(map(str, untouched))

    under_way = build()
    batches = iter(under_way)
    first = next(batches)
    before = under_way.state_dict()
    refusal(kind, names, lambda: under_way.load_state_dict(state))
    assert under_way.state_dict() == before
    assert [str(first), *map(str, batches)] == list(map(str, build()))
    resumed = build()
    resumed.load_state_dict(before)
    assert resumed.step == 1, "a sound state is taken after all"


def saved_state(**changes: Any) -> dict[str, Any]:
    """A state from the middle of an epoch."""
    loader = loader_of()
    loader.seek(epoch=2, step=3)
    return {**loader.state_dict(), **changes}


# ---- states that are none


@pytest.mark.parametrize("field", saved_state())
def test_a_missing_field(field: str) -> None:
    state = saved_state()
    del state[field]
    refused_state(state, InvalidStateError, (repr(field),))


# JSON's types and a few others; a field refuses all that are not its own.
VALUES: dict[str, Any] = {
    "none": None,
    "bool": True,
    "int": 7,
    "float": 3.0,
    "string": "12",
    "list": ["a"],
    "dict": {"a": 1},
    "bytes": b"1",
    "tensor": torch.tensor([1, 2]),
    "array": np.array(3),
    "nan": float("nan"),
}
TAKES = {
    "dataset_length": ("none", "int"),
    "dataset_fingerprint": ("none", "string"),
    "batch_size": ("none", "int"),
    "strategy": ("string",),
    "order": ("string",),
    "tail": ("string",),
    "early": (),
    "rank": ("none", "int"),
    "sampler": ("none", "string"),
    "ranks": ("none",),
    "mixture": ("none",),
}


@pytest.mark.parametrize("field", saved_state())
@pytest.mark.parametrize("value", VALUES)
def test_a_mistyped_field(field: str, value: str) -> None:
    if value in TAKES.get(field, ("int",)):
        pytest.skip("is what the field is for")
    refused_state(saved_state(**{field: VALUES[value]}), InvalidStateError, (repr(field),))


@pytest.mark.parametrize(
    "field",
    # Of an order's version it can only be said that it is another one.
    [
        name
        for name, value in saved_state().items()
        if type(value) is int and name != "order_version"
    ],
)
def test_a_number_below_its_range(field: str) -> None:
    refused_state(saved_state(**{field: -1}), InvalidStateError, (repr(field), "-1"))


@pytest.mark.parametrize("field", ["batch_size", "world_size"])
def test_a_number_of_zero_where_one_is_the_least(field: str) -> None:
    refused_state(saved_state(**{field: 0}), InvalidStateError, (repr(field), "0", "1 or more"))


@pytest.mark.parametrize("field", ["seed", "epoch", "step", "position"])
def test_a_number_above_its_range(field: str) -> None:
    """One that JSON readers elsewhere, torch's generators and int64 could not hold."""

    def build() -> ResumableDataLoader[Any]:
        return loader_of(seed=None, generator=torch.Generator().manual_seed(1))

    refused_state(saved_state(**{field: 2**63}), InvalidStateError, (field, str(2**63)), build)


def test_another_schema() -> None:
    refused_state(saved_state(dataporter=99), InvalidStateError, ("99", "up to 3", "upgrade"))
    refused_state(saved_state(dataporter=0), InvalidStateError, ("0", "expected 1 to"))


@pytest.mark.parametrize(
    ("foreign", "names"),
    [
        (None, ("NoneType",)),
        (7, ("int 7",)),
        ("state", ("str", "torch.load(path)")),
        ([saved_state()], ("load_state_dict(checkpoint[0])",)),
        (b"\x80\x04.", ("bytes",)),
        ({}, ("'dataporter'", "missing")),
        ({"epoch": 1, "step": 2}, ("'dataporter'", "'epoch'", "'step'")),
        ({1: 2, None: 3}, ("'dataporter'", "'None'")),
        ({"loader": saved_state()}, ("load_state_dict(checkpoint['loader'])",)),
        (
            {"_snapshot": {}, "_steps_since_snapshot": 0, "_iterator_finished": False},
            ("torchdata's StatefulDataLoader", "damaged"),
        ),
        ({f"layer.{n}.weight": n for n in range(500)}, ("'dataporter'", "'layer.0.weight'")),
        (saved_state(model="x", extra=1), ("'extra'", "'model'")),
    ],
    ids=lambda value: str(value)[:20] if not isinstance(value, tuple) else "",
)
def test_a_foreign_state(foreign: Any, names: tuple[str, ...]) -> None:
    refused_state(foreign, InvalidStateError, names)


def optimizer_and_scheduler() -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1)


NOT_THE_STATE = (
    "this is {}, not the state of a ResumableDataLoader: save loader.state_dict() in the "
    "checkpoint as well, as under 'loader', and pass load_state_dict(checkpoint['loader'])"
)
HOLDS_ONE = (
    "this is a checkpoint that holds the state of a ResumableDataLoader: pass that state alone, "
    "load_state_dict(checkpoint{})"
)
LIGHTNINGS = {"pytorch-lightning_version": "2.6", "state_dict": {}, "loops": {}, "epoch": 1}
OTHERS: dict[str, tuple[Any, str]] = {
    "a model": (
        torch.nn.Linear(2, 2).state_dict(),
        NOT_THE_STATE.format("a model's state dict (with 'weight')"),
    ),
    "an optimizer": (
        optimizer_and_scheduler()[0].state_dict(),
        NOT_THE_STATE.format("the state of an optimizer"),
    ),
    "a scheduler": (
        optimizer_and_scheduler()[1].state_dict(),
        NOT_THE_STATE.format("the state of a learning rate scheduler"),
    ),
    "a scaler": (
        torch.amp.GradScaler("cpu").state_dict(),
        NOT_THE_STATE.format("the state of a GradScaler"),
    ),
    "a random generator": (
        torch.get_rng_state(),
        NOT_THE_STATE.format("a tensor, such as the state of a random generator"),
    ),
    "lightning": (LIGHTNINGS, NOT_THE_STATE.format("a checkpoint of Lightning")),
    "a whole checkpoint": (
        {"model": torch.nn.Linear(2, 2).state_dict(), "step": 3, "loader": saved_state()},
        HOLDS_ONE.format("['loader']"),
    ),
    "nested": (
        {"training": {"data": [None, {"train": saved_state()}]}},
        HOLDS_ONE.format("['training']['data'][1]['train']"),
    ),
    "several": (
        {"train": saved_state(), "eval": saved_state()},
        "this is a checkpoint that holds the states of 2 ResumableDataLoaders: pass the one of "
        "this loader, load_state_dict(checkpoint['train']) or load_state_dict(checkpoint['eval'])",
    ),
    "lightning with ours": (
        {**LIGHTNINGS, "dataporter": {"epoch": 0, "loaders": [saved_state()], "ended": []}},
        HOLDS_ONE.format("['dataporter']['loaders'][0]")
        + "; trainer.fit(ckpt_path=...) does so by itself",
    ),
    "the trainer's": (
        {
            "log_history": [],
            "global_step": 3,
            "stateful_callbacks": {"ResumableDataLoader": saved_state()},
        },
        HOLDS_ONE.format("['stateful_callbacks']['ResumableDataLoader']"),
    ),
    "a path": (
        "checkpoints/last.pt",
        "load_state_dict expected the dict that state_dict() returned, got a str: read the file or "
        "the text first, as by torch.load(path) or json.loads(text), and pass the loader's state "
        "in it",
    ),
    "nothing": (
        {},
        "this is not the state of a ResumableDataLoader: the field 'dataporter' (the schema "
        "version) is missing; its fields are []: pass the dict that the loader's state_dict() "
        "returned",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_recognised_in_place_of_a_state(what: str) -> None:
    given, text = OTHERS[what]
    for loader in (loader_of(), ResumableDataLoader(Stream()), ResumableSampler(Indices(3))):
        with pytest.raises(InvalidStateError) as refused:
            loader.load_state_dict(given)
        assert str(refused.value) == text


@pytest.mark.parametrize(
    "early",
    [
        [[16, 20]],
        [[16, 20, 0, 0]],
        [[20, 16, 0]],
        [[8, 12, 0]],
        [[12, 16, 0]],
        [[16, 18, 0], [17, 19, 0]],
        [[16, 20, "x"]],
        [[True, 20, 0]],
        ["16"],
        [16, 20, 0],
        [None],
        [[16, 99, 0]],
        [[14, 15, -1]],
    ],
    ids=str,
)
def test_stretches_that_cannot_be(early: Any) -> None:
    refused_state(saved_state(early=early), InvalidStateError, ("early",))


@pytest.mark.parametrize(
    "changes",
    [{"position": 21}, {"position": 10**15}, {"step": 13}, {"step": 1, "position": 0}],
    ids=str,
)
def test_a_place_that_the_epoch_does_not_have(changes: dict[str, int]) -> None:
    refused_state(saved_state(**changes), InvalidStateError, ("step", "position"))


@pytest.mark.parametrize("changes", [{"step": 2}, {"position": 11}, {"position": 8}], ids=str)
def test_a_step_and_a_position_that_contradict_each_other(changes: dict[str, int]) -> None:
    """Only where batches are counted: elsewhere the batch size may have changed before."""

    def build() -> ResumableDataLoader[Any]:
        return loader_of(strategy="simple")

    state = saved_state(strategy="simple", **changes)
    refused_state(state, InvalidStateError, ("step", "position"), build)


@pytest.mark.parametrize("changes", [{"step": 99}, {"step": 0}, {"position": 99}], ids=str)
def test_a_place_that_a_sampler_does_not_have(changes: dict[str, int]) -> None:
    def build() -> ResumableDataLoader[Any]:
        return loader_of(shuffle=None, sampler=range(LENGTH))

    loader = build()
    loader.seek(step=3)
    state = {**loader.state_dict(), **changes}
    with pytest.raises((InvalidStateError, StateMismatchError)) as refused:
        build().load_state_dict(state)
    assert re.search("step|order_digest", str(refused.value))


# ---- sound states of other loaders


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"dataset_length": 50}, ("dataset_length", "50", "20")),
        ({"dataset_length": None}, ("dataset_length", "None", "20")),
        ({"dataset_fingerprint": "abc"}, ("dataset_fingerprint", "'abc'", "None")),
        ({"order": "sequential"}, ("order", "'sequential'", "'shuffled'", "shuffle=")),
        ({"order": "my own"}, ("order", "'my own'", "'shuffled'")),
        ({"order_version": 2}, ("order_version", "2", "1", "release")),
        ({"strategy": "simple"}, ("strategy", "'simple'", "'advanced'")),
        ({"strategy": "other"}, ("strategy", "'other'", "'advanced'")),
        ({"seed": 99}, ("seed", "99", "1", "leave seed= out")),
        ({"world_size": 8}, ("world_size", "8", "1", "'distributed'")),
        ({"tail": "drop"}, ("tail", "'drop'", "'pad'")),
        ({"order_digest": 5}, ("order_digest", "5", "0")),
        (
            {"tail": "drop", "dataset_length": 50, "order": "torch"},
            ("tail", "dataset_length", "order"),
        ),
    ],
    ids=str,
)
def test_a_state_of_another_loader(changes: dict[str, Any], names: tuple[str, ...]) -> None:
    """Old value, new value and what to do; all differences at once."""
    refused_state(saved_state(**changes), StateMismatchError, (*names, 'on_mismatch="warn"'))


def test_a_batch_size_that_the_strategy_cannot_change() -> None:
    def build() -> ResumableDataLoader[Any]:
        return loader_of(strategy="simple")

    state = saved_state(strategy="simple", batch_size=5)
    refused_state(state, StateMismatchError, ("batch_size", "5", "4", "'advanced'"), build)


def test_a_state_of_another_sampler() -> None:
    def build() -> ResumableDataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        sampler = RandomSampler(range(LENGTH), generator=generator)
        return loader_of(shuffle=None, sampler=sampler)

    def loaded_from(sampler: Any) -> dict[str, Any]:
        loader = loader_of(shuffle=None, sampler=sampler)
        loader.seek(step=3)
        return loader.state_dict()

    other = RandomSampler(range(LENGTH), generator=torch.Generator().manual_seed(2))
    digest = ("order_digest", "sampler yields other indices")
    refused_state(loaded_from(other), StateMismatchError, digest, build)
    kinds = ("'sampler range'", "'sampler RandomSampler(replacement=False)'")
    refused_state(loaded_from(range(LENGTH)), StateMismatchError, kinds, build)


def test_on_mismatch_is_one_of_two() -> None:
    loader = loader_of()
    names = ("on_mismatch='ignore'", "'error'", "'warn'")
    act = lambda: loader.load_state_dict(saved_state(), on_mismatch="ignore")  # type: ignore[arg-type]  # noqa: E731
    refusal(ConfigurationError, names, act)
    assert len(list(loader)) == 5


def test_on_mismatch_of_the_loader_counts_where_the_call_has_none() -> None:
    state = saved_state(seed=99)
    loader = loader_of(on_mismatch="warn")
    with pytest.warns(RuntimeWarning, match="seed"):
        loader.load_state_dict(state)
    with pytest.raises(StateMismatchError):
        loader.load_state_dict(state, on_mismatch="error")
    loader.on_mismatch = "error"
    with pytest.raises(StateMismatchError):
        loader.load_state_dict(state)
    with pytest.raises(ConfigurationError, match="on_mismatch='ignore': expected"):
        loader_of(on_mismatch="ignore")
    stream = ResumableDataLoader(Stream(), seed=1, on_mismatch="warn")
    with pytest.warns(RuntimeWarning, match="seed"):
        stream.load_state_dict({**stream.state_dict(), "seed": 2})


def test_a_damaged_state_is_refused_also_under_warn() -> None:
    loader = loader_of()
    before = loader.state_dict()
    for state in (saved_state(step="3"), saved_state(seed=-1), {}):
        with pytest.raises(InvalidStateError):
            loader.load_state_dict(state, on_mismatch="warn")
    assert loader.state_dict() == before


def test_a_refused_state_leaves_an_undecided_seed_undecided() -> None:
    """Else the next loader of the training would draw another seed."""
    torch.manual_seed(3)
    expected = loader_of(seed=None).seed
    torch.manual_seed(3)
    loader = loader_of(seed=None)
    with pytest.raises(InvalidStateError):
        loader.load_state_dict(saved_state(step=-1))
    with pytest.raises(StateMismatchError):
        loader.load_state_dict(saved_state(order="torch"))
    assert loader.seed == expected


def test_a_refused_state_leaves_the_sampler_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    sampler = RandomSampler(range(LENGTH), generator=generator)
    loader = loader_of(shuffle=None, sampler=sampler)
    loader.seek(step=2)
    other = loader_of(shuffle=None, sampler=DistributedSampler(range(LENGTH), 1, 0))
    other.seek(step=2)
    other.sampler.set_epoch(3)
    generators = generator.get_state(), torch.get_rng_state()
    for changes in ({"order_digest": 1}, {"epoch": 4}):
        with pytest.raises(StateMismatchError):
            loader.load_state_dict({**loader.state_dict(), **changes})
    with pytest.raises(StateMismatchError):
        other.load_state_dict({**other.state_dict(), "epoch": 7, "order_digest": 1})
    assert other.sampler.epoch == 3
    assert torch.equal(generator.get_state(), generators[0])
    assert torch.equal(torch.get_rng_state(), generators[1])


# ---- nothing in a state is executed


class Bomb:
    """Goes off when it is unpickled, called, compared as equal or looked into."""

    went_off: list[str] = []  # noqa: RUF012

    def __reduce__(self) -> Any:
        return self.went_off.append, ("unpickled",)

    def __call__(self, *arguments: Any) -> Any:
        self.went_off.append("called")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self.went_off.append(f"asked for {name}")
        raise AttributeError(name)


@pytest.mark.parametrize("field", saved_state())
def test_nothing_in_a_state_is_executed(field: str) -> None:
    Bomb.went_off.clear()
    loader = loader_of()
    for bomb in (Bomb(), pickle.dumps(Bomb()), "__import__('os').abort()", [[Bomb()] * 3]):
        before = loader.state_dict()
        with pytest.raises(ValueError, match=re.escape(field)):
            loader.load_state_dict(saved_state(**{field: bomb}))
        assert loader.state_dict() == before
    assert Bomb.went_off == []


def test_the_state_has_nothing_to_execute() -> None:
    assert json.loads(json.dumps(saved_state())) == saved_state()


# ---- arguments


class NoLength:
    def __getitem__(self, index: int) -> int:
        return index


class OnlyIterable:
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Broken:
    """An order that loses the shape."""

    name, version = "broken", 1

    def epoch_length(self, dataset_length: int) -> int:
        return dataset_length

    def indices(self, positions: Any, **named: Any) -> Any:
        return positions.ravel()[:1]


def drawn_from() -> torch.Generator:
    generator = torch.Generator().manual_seed(1)
    torch.rand(1, generator=generator)
    return generator


ARGUMENTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"batch_size": 0}, ("batch_size=0", "1 or more")),
    ({"batch_size": -3}, ("batch_size=-3", "1 or more")),
    ({"batch_size": 2.5}, ("batch_size=2.5", "whole number")),
    ({"batch_size": "4"}, ("batch_size='4'", "whole number")),
    ({"batch_size": True}, ("batch_size=True", "whole number")),
    ({"rank": 2, "world_size": 2}, ("rank=2", "world of 2", "0..1")),
    ({"rank": -1, "world_size": 2}, ("rank=-1", "0..1")),
    ({"rank": 0, "world_size": 0}, ("world_size=0", "1 or more")),
    ({"rank": 0}, ("rank=0", "world_size=None", "both")),
    ({"world_size": 2}, ("rank=None", "world_size=2", "both")),
    ({"rank": "0", "world_size": 2}, ("rank='0'", "whole number")),
    ({"rank": 0, "world_size": 2, "seed": None}, ("seed=", "2 ranks", "same on every rank")),
    ({"rank": 0, "world_size": 2, "in_order": False}, ("in_order", "2 ranks")),
    ({"sampler": range(3)}, ("shuffle=True", "sampler", "leave it out")),
    ({"batch_sampler": [[1]], "batch_size": 1}, ("shuffle=True", "sampler")),
    ({"sampler": range(3), "shuffle": None, "order": "shuffled"}, ("order='shuffled'", "sampler")),
    (
        {"sampler": range(3), "shuffle": None, "strategy": "advanced"},
        ("'advanced'", "range", "'simple'", "shuffle= instead of sampler="),
    ),
    ({"strategy": "clever"}, ("'clever'", "'simple'", "'advanced'", "'distributed'")),
    ({"order": "random"}, ("'random'", "'shuffled'", "'sequential'", "'torch'")),
    ({"order": "sequential"}, ("'sequential'", "shuffle=True", "leave shuffle= out")),
    ({"order": Stream}, ("order=", "Stream", "epoch_length")),
    ({"order": 5}, ("order=5", "epoch_length")),
    (
        {"order": "torch", "seed": None, "generator": drawn_from()},
        ("'torch'", "seed 1", "already been used", "manual_seed"),
    ),
    ({"seed": -1}, ("seed=-1", "0 to")),
    ({"seed": 2**63}, ("seed=", str(2**63), "0 to")),
    ({"seed": 1.5}, ("seed=1.5", "whole number")),
    ({"seed": "1"}, ("seed='1'", "whole number")),
    ({"seed": True}, ("seed=True", "whole number")),
    ({"on_error": "ignore"}, ("on_error='ignore'", "'raise'", "'skip'")),
]


@pytest.mark.parametrize(
    ("arguments", "names"),
    ARGUMENTS,
    ids=[f"{n}:{list(arguments)}" for n, (arguments, _) in enumerate(ARGUMENTS)],
)
def test_an_argument(arguments: dict[str, Any], names: tuple[str, ...]) -> None:
    refusal(ConfigurationError, names, lambda: loader_of(**arguments))


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (NoLength(), ("NoLength", "no length", "__len__")),
        (OnlyIterable(), ("OnlyIterable", "iterated over", "IterableDataset")),
        (iter([1]), ("list_iterator", "IterableDataset")),
        (7, ("int", "no length")),
        (None, ("NoneType", "no length")),
        (np.array(3), ("ndarray", "no length")),
    ],
    ids=["no length", "only iterable", "iterator", "number", "none", "scalar array"],
)
def test_a_dataset_without_a_length(dataset: Any, names: tuple[str, ...]) -> None:
    refusal(UnsupportedDatasetError, names, lambda: ResumableDataLoader(dataset))
    refusal(UnsupportedDatasetError, names, lambda: ResumableDataLoader(dataset, shuffle=True))


def test_a_dataset_without_a_length_and_a_sampler_is_none_of_these() -> None:
    assert ids(next(iter(ResumableDataLoader(NoLength(), 2, sampler=[5, 9])))) == [5, 9]


def test_a_dict_of_lists() -> None:
    columns = {"x": [1, 2], "y": torch.zeros(2)}
    names = ("string keys", "'x': 'list'", "convert them to arrays")
    refusal(UnsupportedDatasetError, names, lambda: ResumableDataLoader(columns, 2))
    by_number = {0: [1, 2], 1: [3, 4]}
    assert [batch[0].item() for batch in next(iter(ResumableDataLoader(by_number)))] == [1, 2]


def test_a_dict_of_arrays_of_several_lengths() -> None:
    columns = {"x": np.zeros(3), "y": torch.zeros(4)}
    names = ("one length", "'x': 3", "'y': 4")
    refusal(ConfigurationError, names, lambda: ResumableDataLoader(columns))


def test_an_order_that_loses_the_shape() -> None:
    loader = ResumableDataLoader(Indices(6), 2, order=Broken())
    refusal(ConfigurationError, ("'broken'", "(1,)", "(1, 2)"), lambda: list(loader))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"order": "shuffled"}, ("order='shuffled'", "IterableDataset")),
        ({"tail": "pad"}, ("tail='pad'", "'uneven'")),
        ({"num_shards": 2}, ("num_shards=2", "Stream", "ShardedStream")),
    ],
    ids=str,
)
def test_an_argument_without_meaning_for_an_iterable_dataset(
    arguments: dict[str, Any], names: tuple[str, ...]
) -> None:
    refusal(ConfigurationError, names, lambda: ResumableDataLoader(Stream(), **arguments))


@pytest.mark.parametrize(
    "act",
    [
        lambda loader: loader.seek(step=1),
        lambda loader: loader.samples_at(0, 0),
        lambda loader: loader.padding(0),
        lambda loader: loader.remaining,
    ],
    ids=["seek", "samples_at", "padding", "remaining"],
)
def test_an_iterable_dataset_has_no_positions(act: Callable[[Any], Any]) -> None:
    loader = ResumableDataLoader(Stream())
    refusal(UnsupportedDatasetError, ("Stream", "IterableDataset"), lambda: act(loader))
    assert len(list(loader)) == 3


@pytest.mark.parametrize(
    ("act", "names"),
    [
        (lambda loader: loader.set_epoch(-1), ("epoch=-1", "from 0")),
        (lambda loader: loader.set_epoch(1.5), ("epoch=1.5", "whole number")),
        (lambda loader: loader.set_epoch("1"), ("epoch='1'", "whole number")),
        (lambda loader: loader.set_epoch(None), ("epoch=None", "whole number")),
        (lambda loader: loader.sampler.set_epoch(-1), ("epoch=-1", "from 0")),
        (lambda loader: loader.sampler.set_epoch("1"), ("epoch='1'", "whole number")),
        (lambda loader: loader.seek(epoch=-1), ("epoch=-1", "from 0")),
        (lambda loader: loader.seek(step=-1), ("step=-1", "from 0")),
        (lambda loader: loader.seek(step=6), ("step=6", "5 steps")),
        (lambda loader: loader.seek(step=1.0), ("step=1.0", "whole number")),
        (lambda loader: loader.samples_at(0, 5), ("step=5", "5 steps", "0..4")),
        (lambda loader: loader.samples_at(-1, 0), ("epoch=-1", "from 0")),
        (lambda loader: loader.samples_at(0, -1), ("step=-1", "from 0")),
    ],
    ids=range(13),
)
def test_a_place_to_go_to(act: Callable[[Any], Any], names: tuple[str, ...]) -> None:
    loader = loader_of()
    before = loader.state_dict()
    refusal(ConfigurationError, names, lambda: act(loader))
    assert loader.state_dict() == before
    assert list(map(ids, loader)) == list(map(ids, loader_of()))


@pytest.mark.parametrize("step", [5, 6])
def test_a_step_that_a_sampler_does_not_have(step: int) -> None:
    loader = loader_of(shuffle=None, sampler=range(LENGTH))
    if step > 5:
        refusal(ConfigurationError, (f"step {step - 1}", "range"), lambda: loader.seek(step=step))
    refusal(ConfigurationError, (f"step {step}", "ends before"), lambda: loader.samples_at(0, step))
    assert len(list(loader)) == 5


# ---- data


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("length", [10, 30])
def test_a_dataset_that_changes_its_length_in_mid_epoch(length: int, workers: int) -> None:
    dataset = Indices(LENGTH)
    loader = ResumableDataLoader(dataset, BATCH_SIZE, seed=1, num_workers=workers)
    loader.seek(step=2)
    state = loader.state_dict()
    dataset.length = length
    names = (f"{LENGTH} samples", f"{length} now", "dataporter.remainder(", "set_epoch(")
    refusal(DatasetChangedError, names, lambda: next(iter(loader)))
    assert loader.state_dict() == state
    dataset.length = LENGTH
    assert len(list(loader)) == 3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_dataset_that_shrinks_within_an_epoch(shuffle: bool, workers: int) -> None:
    """It says so itself, as it knows what is wrong; the index and the place are added."""

    class Shrinking(Indices):
        def __getitem__(self, index: int) -> int:
            if index >= 10:
                raise IndexError("only 10 are left")
            return index

    loader = ResumableDataLoader(
        Shrinking(LENGTH), BATCH_SIZE, shuffle=shuffle, seed=1, num_workers=workers
    )
    for epoch in range(2):
        loader.set_epoch(epoch)
        failure = failure_of(loader, [])
        assert (type(failure), failure.args) == (IndexError, ("only 10 are left",))
        place = rf"while reading sample index 1\d \(epoch {epoch}, step \d, position \d+\)"
        assert re.fullmatch(f"dataporter: {place}", failure.__notes__[0])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("strategy", ["simple", "advanced"])
def test_a_sample_that_raises_is_named_and_come_back_to(strategy: str, workers: int) -> None:
    class Mended(Indices):
        whole = False

        def __getitem__(self, index: int) -> int:
            if index == 9 and not self.whole:
                raise ArithmeticError("rotten")
            return index

    dataset = Mended(LENGTH)
    loader = ResumableDataLoader(dataset, BATCH_SIZE, strategy=strategy, num_workers=workers)
    read: list[int] = []
    failure = failure_of(loader, read)
    assert (type(failure), failure.args) == (ArithmeticError, ("rotten",))
    (note,) = failure.__notes__
    assert note == "dataporter: while reading sample index 9 (epoch 0, step 2, position 9)"
    if workers:
        assert "in __getitem__" in str(failure.__cause__), "the worker's traceback"
    state = loader.state_dict()
    assert (state["epoch"], state["step"]) == (0, 2)
    dataset.whole = True
    loader.load_state_dict(state)
    for batch in loader:
        read += ids(batch)
    assert read == list(range(LENGTH))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_cannot_be_collated(workers: int) -> None:
    class Ragged(Indices):
        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.zeros(1 + (index == 5))

    loader = ResumableDataLoader(Ragged(LENGTH), BATCH_SIZE, num_workers=workers)
    failure = failure_of(loader, [])
    assert isinstance(failure, RuntimeError)
    (note,) = failure.__notes__
    assert "while collating the batch of 4 samples with indices [4, 5, 6, 7]" in note
    assert "epoch 0, step 1" in note
    assert loader.step == 1


def test_a_failure_does_not_keep_the_workers() -> None:
    """torch's failures do, by a cycle through their traceback: the garbage collector then stands
    still for 5 s a worker.
    """

    class Rotten(Indices):
        def __getitem__(self, index: int) -> int:
            raise ValueError("rotten")

    def fail() -> None:
        with pytest.raises(ValueError, match="rotten"):
            list(ResumableDataLoader(Rotten(LENGTH), BATCH_SIZE, num_workers=2))

    others = set(psutil.Process().children())
    gc.disable()
    try:
        fail()
        _, alive = psutil.wait_procs(set(psutil.Process().children()) - others, timeout=2)
    finally:
        gc.enable()
    assert alive == []


def test_a_replacement_that_fails_raises_what_it_raises() -> None:
    class Rotten(Indices):
        def __getitem__(self, index: int) -> int:
            raise ValueError("rotten")

    def replace(error: Exception, index: int) -> Any:
        raise LookupError("no replacement")

    loader = ResumableDataLoader(Rotten(LENGTH), BATCH_SIZE, on_error=replace)
    with pytest.raises(LookupError, match="no replacement"):
        next(iter(loader))


def test_every_error_is_of_the_family_and_of_a_built_in_type() -> None:
    for kind, built_in in BUILT_IN.items():
        assert issubclass(kind, DataPorterError)
        assert issubclass(kind, built_in)


def test_torchs_pipes_are_refused_at_construction() -> None:
    with pytest.raises(UnsupportedDatasetError, match="IterDataPipe is a DataPipe"):
        ResumableDataLoader(IterableWrapper(range(6)), 2)
