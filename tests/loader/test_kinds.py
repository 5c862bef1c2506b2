"""Each argument with each wrong kind of value: an error that names it, or torch's own meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from subjects import Indices, ids
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from dataporter import (
    ConfigurationError,
    DataPorterError,
    ResumableDataLoader,
    ResumableDistributedSampler,
    ResumableSampler,
)

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "one": 1,
    "three": 3,
    "negative": -1,
    "fraction": 2.5,
    "nan": float("nan"),
    "infinite": float("inf"),
    "number in a text": "8",
    "text": "yes",
    "no text": "",
    "bytes": b"1",
    "list": [1, 2],
    "empty list": [],
    "dict": {"a": 1},
    "object": object(),
    "class": RandomSampler,
    "function": len,
    "tensor": torch.tensor([1, 2]),
    "array": np.array([1, 2]),
    "generator": torch.Generator(),
    "dataset": Indices(4),
}
TORCHS = set(inspect.signature(DataLoader).parameters)
ARGUMENTS = [
    name for name in inspect.signature(ResumableDataLoader).parameters if name != "dataset"
]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(8))


def outcome(build: Callable[[], Any]) -> Any:
    try:
        return build()
    except Exception as error:
        return error


def built(loader: Any, dataset: Any, name: str, value: Any) -> Any:
    workers = {"num_workers": 1} if name in ("prefetch_factor", "persistent_workers") else {}
    return loader(dataset, **{**workers, name: value})


@pytest.mark.parametrize("dataset", [Indices(8), Stream()], ids=["map-style", "stream"])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_with_every_kind_of_value(name: str, dataset: Any) -> None:
    for kind, value in VALUES.items():
        ours = outcome(lambda value=value: built(ResumableDataLoader, dataset, name, value))
        if isinstance(ours, DataPorterError):
            # rank and world_size are one argument.
            other = {"rank": "world_size", "world_size": "rank"}.get(name, name)
            named = {name, other, "rule" if name == "converter" else name}
            assert any(each in str(ours) for each in named), (kind, ours)
            assert len(str(ours)) < 600, kind
            continue
        if isinstance(ours, Exception):
            assert name in TORCHS, (kind, repr(ours))
            torchs = outcome(lambda value=value: built(DataLoader, dataset, name, value))
            assert type(ours) is type(torchs), kind
            assert name in str(ours), (kind, repr(ours))
            continue
        if name in TORCHS:
            torchs = outcome(lambda value=value: built(DataLoader, dataset, name, value))
            assert not isinstance(torchs, Exception), f"{kind}: torch refuses it: {torchs!r}"
            # Without workers torch's loader asserts that there is no timeout.
            elsewhere = name in ("timeout", "sampler", "batch_sampler")
            if not (callable(value) or ours.num_workers or elsewhere):
                assert len(list(ours)) == len(list(torchs)), kind


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"num_workers": None},
            "num_workers=None: expected a whole number from 0 to 9223372036854775807",
        ),
        (
            {"batch_size": "8"},
            "batch_size='8': expected a whole number of 1 or more, or None to get single samples",
        ),
        ({"shuffle": "yes"}, "shuffle='yes': expected True or False"),
        ({"drop_last": None}, "drop_last=None: expected True or False"),
        ({"in_order": "no"}, "in_order='no': expected True or False"),
        (
            {"timeout": None},
            "timeout=None: expected a number of seconds, 0 (no limit) or more",
        ),
        (
            {"prefetch_factor": 0, "num_workers": 2},
            "prefetch_factor=0: expected a whole number from 1 to 9223372036854775807",
        ),
        (
            {"prefetch_factor": 2},
            "prefetch_factor=2 without workers: pass num_workers=1 or more, or leave "
            "prefetch_factor= out",
        ),
        (
            {"persistent_workers": True},
            "persistent_workers=True without workers: pass num_workers=1 or more, or leave "
            "persistent_workers= out",
        ),
        (
            {"multiprocessing_context": "spawn"},
            "multiprocessing_context='spawn' without workers: pass num_workers=1 or more, or leave "
            "multiprocessing_context= out",
        ),
        ({"collate_fn": "stack"}, "collate_fn='stack': expected a function, or None"),
        (
            {"generator": 3},
            "generator=3: expected a torch.Generator, or None; pass a number as seed=",
        ),
        (
            {"sampler": SequentialSampler},
            "sampler=<class 'torch.utils.data.sampler.SequentialSampler'> is a class: pass an "
            "object of it, such as sampler=SequentialSampler(...)",
        ),
        ({"sampler": 5}, "sampler=5: expected an iterable of indices, or None"),
        (
            {"batch_sampler": "ab"},
            "batch_sampler='ab': expected an iterable of lists of indices, or None",
        ),
        (
            {"sampler": [0, 1], "shuffle": True},
            "shuffle=True: sampler= (a list) decides the order and which samples are repeated or "
            "left out; leave it out",
        ),
        (
            {"sampler": [0, 1], "strategy": "advanced"},
            "strategy='advanced': it needs an order to jump in, and sampler= (a list) can only be "
            "walked through; use strategy='simple', or order= and shuffle= instead of sampler=",
        ),
    ],
)
def test_the_whole_text(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        ResumableDataLoader(Indices(4), **arguments)
    assert str(refused.value) == text


@pytest.mark.parametrize("sampler", [ResumableSampler, ResumableDistributedSampler])
def test_the_samplers_take_the_same(sampler: Any) -> None:
    for name, value in {"shuffle": "yes", "drop_last": None, "batch_size": "8", "tail": 3}.items():
        with pytest.raises(ConfigurationError, match=f"{name}="):
            sampler(Indices(4), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_workers", None),
        ("prefetch_factor", 0),
        ("timeout", "3"),
        ("worker_init_fn", 3),
        ("collate_fn", "stack"),
        ("in_order", None),
        ("pin_memory", "no"),
        ("on_error", "ignore"),
        ("worker_kind", "fiber"),
        ("worker_restarts", -1),
    ],
)
def test_a_value_that_is_set_between_two_passes(name: str, value: Any) -> None:
    loader = ResumableDataLoader(Indices(4), batch_size=2)
    batches = list(map(ids, loader))
    before, state = getattr(loader, name), loader.state_dict()
    setattr(loader, name, value)
    with pytest.raises(ConfigurationError, match=f"{name}="):
        next(iter(loader))
    assert loader.state_dict() == state
    setattr(loader, name, before)
    assert list(map(ids, loader)) == batches
