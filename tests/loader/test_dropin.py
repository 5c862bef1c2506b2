"""Drop-in: each case is run with torch's DataLoader and with ours, and gives the same (C13)."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import time
import warnings
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from budgets import slow
from subjects import Indices
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
    random_split,
)

from dataporter import DataPorterError, ResumableDataLoader, SampleError

Point = namedtuple("Point", "x y")
THING = object()
Loader = Callable[..., Any]
Case = Callable[..., Any]


# ---- what is compared


def shown(value: Any) -> Any:
    """A batch as something that compares: containers, their types, dtypes, shapes and values."""
    if isinstance(value, torch.Tensor):
        kind = (type(value).__name__, value.dtype, tuple(value.shape), value.requires_grad)
        return (*kind, value.detach().tolist())
    if isinstance(value, np.ndarray | np.generic):
        return type(value).__name__, value.dtype, value.tolist()
    if isinstance(value, dict | UserDict):
        return type(value).__name__, [(key, shown(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [shown(item) for item in value]
    return type(value).__name__, value


def outcome(act: Callable[[], Any]) -> Any:
    """What a call returned, or the type it raised: the built-in one where the error is ours."""
    try:
        return shown(act())
    except BaseException as error:
        # torch's failures hold themselves by their traceback, and with them the workers, for which
        # the garbage collector then waits 5 s each.
        error.with_traceback(None)
        return next(kind for kind in type(error).__mro__ if "dataporter" not in kind.__module__)


def told(batches: Iterator[Any], attempts: int) -> list[Any]:
    """So many calls of ``next``, whatever each comes to."""
    return [outcome(lambda: next(batches)) for _ in range(attempts)]


def passes(loader: Any, count: int = 2) -> list[Any]:
    return [[shown(batch) for batch in loader] for _ in range(count)]


def shuffling(loader: Loader, seed: int = 3) -> dict[str, Any]:
    """Arguments for the shuffled order of torch, which ours has by the name of "torch"."""
    generator = torch.Generator().manual_seed(seed)
    ours = {"order": "torch"} if loader is ResumableDataLoader else {}
    return {"shuffle": True, "generator": generator, **ours}


def seeded(loader: Loader) -> dict[str, Any]:
    """Ours has a seed for the augmentation, which the ranks of a world have to agree on."""
    return {"seed": 0} if loader is ResumableDataLoader else {}


CASES: list[Any] = []


def case(*workers: int) -> Callable[[Case], Case]:
    """A row of the table, for each of these numbers of workers."""

    def add(function: Case) -> Case:
        for count in workers:
            name = function.__name__.lstrip("_")
            CASES.append(pytest.param(function, count, id=f"{name}-{count}"))
        return function

    return add


# ---- what is read


class Squares(Indices):
    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return index * index


class Plain:
    """No subclass of anything, with __getitems__."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("__getitems__ is there for batches")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.asked.append(indices)
        return [(index, str(index)) for index in indices]


class Odd(Exception):
    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Failing(Indices):
    """Index 3 raises."""

    def __init__(self, length: int, error: BaseException) -> None:
        super().__init__(length)
        self.error = error

    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise self.error
        return index


class Growable(Indices):
    """An attribute that a worker_init_fn or the training loop may set."""

    offset = 0

    def __getitem__(self, index: int) -> int:
        return index + self.offset


class InWorker(Indices):
    """What each sample sees of its worker."""

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        if info is None:
            return index, None
        return index, info.id, info.num_workers, info.dataset is self, type(info.dataset).__name__


class Sleeping(Indices):
    def __getitem__(self, index: int) -> int:
        time.sleep(3)
        return index


class Pids(Indices):
    def __getitem__(self, index: int) -> int:
        return os.getpid()


class Counting(IterableDataset[int]):
    """0..length-1, shared out among the workers."""

    def __init__(self, length: int) -> None:
        self.start, self.stop = 0, length

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        skip, every = (0, 1) if info is None else (info.id, info.num_workers)
        assert info is None or info.dataset is self
        return iter(range(self.start + skip, self.stop, every))


class Counted(Counting):
    def __len__(self) -> int:
        return self.stop - self.start


class Unsized(Counting):
    def __len__(self) -> int:
        raise NotImplementedError("an endless stream")


def plus_100(worker_id: int) -> None:
    get_worker_info().dataset.offset = 100 * (worker_id + 1)


def ten_each(worker_id: int) -> None:
    """The recipe for splitting that torch's documentation of IterableDataset gives."""
    dataset = get_worker_info().dataset
    dataset.start, dataset.stop = 10 * worker_id, 10 * worker_id + 10


def refuse(worker_id: int) -> None:
    raise LookupError("no worker wanted")


def sums(samples: list[int]) -> int:
    return sum(samples)


# ---- the constructor


def test_torchs_parameters_come_first_with_their_names_kinds_and_defaults() -> None:
    theirs = list(inspect.signature(DataLoader).parameters.values())
    ours = list(inspect.signature(ResumableDataLoader).parameters.values())
    shared = [(p.name, p.kind, p.default) for p in theirs]
    assert [(p.name, p.kind, p.default) for p in ours[: len(theirs)]] == shared
    extra = ours[len(theirs) :]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in extra)


def test_it_is_a_dataloader() -> None:
    assert issubclass(ResumableDataLoader, DataLoader)
    assert ResumableDataLoader[int] is not None
    public = {name for name in dir(DataLoader([1])) if not name.startswith("_")}
    assert public <= set(dir(ResumableDataLoader([1])))


ATTRIBUTES = (
    "batch_size",
    "num_workers",
    "collate_fn",
    "pin_memory",
    "drop_last",
    "timeout",
    "worker_init_fn",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
    "_auto_collation",
    "_dataset_kind",
)

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((Squares(7),), {}),
    ((Squares(7), 3), {}),
    ((Squares(7), 2, False, None, None, 0, sums, False, True, 0, refuse, None, None), {}),
    ((Squares(7), 2, None, range(3), None, 2, None, False, False, 5, None, "fork"), {}),
    ((Squares(7), 1, None, None, [[1, 2], [3]]), {}),
    ((Squares(7), None), {}),
    ((Squares(7), None, None, [3, 1]), {}),
    ((Squares(7), 2, True), {"drop_last": True}),
    ((Squares(7),), {"num_workers": 2, "prefetch_factor": 5, "persistent_workers": True}),
    ((Squares(7),), {"num_workers": 2, "in_order": False, "timeout": 1.5}),
    ((Squares(7),), {"pin_memory": True, "pin_memory_device": "cpu"}),
    ((Squares(7),), {"generator": torch.Generator().manual_seed(1)}),
    ((Counting(7), 2), {"drop_last": True}),
    ((Counted(7), 2), {}),
    ((Counting(7), 2, False), {}),
    # what torch refuses
    ((Squares(7),), {"num_workers": -1}),
    ((Squares(7),), {"timeout": -1}),
    ((Squares(7),), {"prefetch_factor": 2}),
    ((Squares(7),), {"prefetch_factor": -1, "num_workers": 1}),
    ((Squares(7),), {"persistent_workers": True}),
    ((Squares(7),), {"multiprocessing_context": "fork"}),
    ((Squares(7),), {"multiprocessing_context": "thread", "num_workers": 1}),
    ((Squares(7),), {"multiprocessing_context": 3, "num_workers": 1}),
    ((Squares(7), 0), {}),
    ((Squares(7), -2), {}),
    ((Squares(7), 2.0), {}),
    ((Squares(7), "2"), {}),
    ((Squares(7), True), {}),
    ((Squares(7), None), {"drop_last": True}),
    ((Squares(7), 2), {"drop_last": 1}),
    ((Squares(7), 2, True, range(3)), {}),
    ((Squares(7), 2), {"batch_sampler": [[1]]}),
    ((Squares(7),), {"batch_sampler": [[1]], "shuffle": True}),
    ((Squares(7),), {"batch_sampler": [[1]], "sampler": [1]}),
    ((Squares(7),), {"batch_sampler": [[1]], "drop_last": True}),
    ((Squares(7), 0, None, range(3)), {}),
    ((Counting(7),), {"shuffle": True}),
    ((Counting(7),), {"sampler": [1]}),
    ((Counting(7),), {"batch_sampler": [[1]]}),
    ((Counting(7), 0), {}),
    ((Squares(7),), {"strange": 1}),
    ((), {}),
]


def described(call: tuple[tuple[Any, ...], dict[str, Any]]) -> str:
    positional, named = call
    shown_positional = [getattr(a, "__name__", None) or str(a).split(".")[-1] for a in positional]
    return "-".join(
        [*(s[:12] for s in shown_positional), *(f"{k}={v}"[:24] for k, v in named.items())]
    )


@pytest.mark.parametrize("call", CALLS, ids=[f"{n}:{described(c)}" for n, c in enumerate(CALLS)])
def test_constructor(call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Every argument, by place and by name, ends up in the attributes, or is refused alike."""
    positional, named = call

    def built(loader: Loader) -> Any:
        one = loader(*positional, **named)
        assert one.dataset is positional[0]
        context = type(one.multiprocessing_context).__name__
        length = outcome(lambda: len(one))
        batches = type(one.batch_sampler).__name__
        return [*(getattr(one, name) for name in ATTRIBUTES), context, length, batches]

    assert outcome(lambda: built(DataLoader)) == outcome(lambda: built(ResumableDataLoader))


@pytest.mark.parametrize(
    "attribute",
    ["batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers"],
)
def test_what_torch_forbids_to_set_after_the_construction(attribute: str) -> None:
    for loader in (DataLoader(Squares(4)), ResumableDataLoader(Squares(4))):
        with pytest.raises(ValueError, match=f"{attribute} attribute should not be set"):
            setattr(loader, attribute, None)
        assert len(list(loader)) == 4


# ---- datasets: what a batch is made of

NUMBERS = [
    np.float16,
    np.float32,
    np.float64,
    np.int8,
    np.uint8,
    np.int16,
    np.int32,
    np.int64,
    np.uint16,
    np.uint32,
    np.bool_,
    np.complex64,
]
TENSORS = [
    torch.bfloat16,
    torch.float32,
    torch.float8_e4m3fn,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.int64,
    torch.bool,
    torch.complex64,
]

DATASETS: dict[str, Callable[[], Any]] = {
    "ints": lambda: list(range(7)),
    "floats": lambda: [0.5 * k for k in range(7)],
    "bools": lambda: [k % 2 == 0 for k in range(7)],
    "strings": lambda: list("abcdefg"),
    "bytes": lambda: [bytes([k]) for k in range(7)],
    "a string": lambda: "abcdefg",
    "a range": lambda: range(7),
    "tuples": lambda: [(k, float(k)) for k in range(7)],
    "lists": lambda: [[k, [k, str(k)]] for k in range(7)],
    "dicts": lambda: [{"a": k, "b": {"c": str(k)}} for k in range(7)],
    "dicts keyed by numbers": lambda: [{1: k, (2, 3): k} for k in range(7)],
    "user dicts": lambda: [UserDict(a=k) for k in range(7)],
    "named tuples": lambda: [Point(k, torch.tensor([k])) for k in range(7)],
    "nested": lambda: [
        {"p": Point((k, [k]), np.ones(k % 1 + 2)), "s": [(str(k),)]} for k in range(7)
    ],
    "ints and floats": lambda: [1, 2.5, 3, 4.5, 5, 6, 7],
    "arrays": lambda: [np.full((2, 3), k, dtype=np.float32) for k in range(7)],
    "zero-dimensional arrays": lambda: [np.array(k, dtype=np.int16) for k in range(7)],
    "tensors": lambda: [torch.full((2,), k) for k in range(7)],
    "a mapping of ints": lambda: {k: k * 1.5 for k in range(7)},
    "a mapping of tensors": lambda: {k: torch.tensor(k) for k in range(7)},
    "batched": Plain,
    "empty": list,
    "no subclass of Dataset": lambda: Squares(7),
    "TensorDataset": lambda: TensorDataset(torch.arange(14.0).reshape(7, 2), torch.arange(7)),
    "TensorDataset of one": lambda: TensorDataset(torch.arange(7)),
    "empty TensorDataset": lambda: TensorDataset(torch.zeros(0, 3)),
    "Subset": lambda: Subset(Squares(20), [5, 3, 3, 19, 0, 1, 2]),
    "Subset of a TensorDataset": lambda: Subset(
        TensorDataset(torch.arange(9)), [8, 1, 1, 0, 4, 5, 2]
    ),
    "Subset by negative indices": lambda: Subset(TensorDataset(torch.arange(9)), [-1, 0, -9]),
    "Subset of arrays": lambda: Subset(np.arange(9), np.array([8, 1, 0])),
    "ConcatDataset": lambda: ConcatDataset([Squares(3), [7, 8], Subset(Squares(9), [8, 7])]),
    "sum": lambda: Squares(3) + Squares(4),
    "StackDataset": lambda: StackDataset(Squares(7), torch.arange(7.0)),
    "StackDataset by name": lambda: StackDataset(a=Squares(7), b=list("abcdefg")),
    "random_split": lambda: random_split(
        TensorDataset(torch.arange(12)), [7, 5], generator=torch.Generator().manual_seed(1)
    )[0],
    "array of strings": lambda: np.array(list("abcdefg")),
    "array of objects": lambda: np.array([1, 2.5, 3, 4, 5, 6, 7], dtype=object),
    "array in another byte order": lambda: np.arange(7, dtype=">i4"),
    "array of dates": lambda: np.arange(7).astype("datetime64[D]"),
    "array of three dimensions": lambda: np.arange(42.0).reshape(7, 3, 2),
    "backward array": lambda: np.arange(14)[::-2],
    "tensor of three dimensions": lambda: torch.arange(42.0).reshape(7, 3, 2),
    "transposed tensor": lambda: torch.arange(14.0).reshape(2, 7).T,
    # what torch cannot collate
    "lists of unequal length": lambda: [[0] * k for k in range(7)],
    "tensors of unequal shape": lambda: [torch.zeros(k) for k in range(7)],
    "objects": lambda: [THING] * 7,
    "nothing": lambda: [None] * 7,
    "too short": lambda: Subset([1, 2, 3], [0, 1, 2, 3]),
    **{f"array of {np.dtype(d)}": lambda d=d: (np.arange(7) % 2).astype(d) for d in NUMBERS},
    **{
        f"scalars of {np.dtype(d)}": lambda d=d: list((np.arange(7) % 2).astype(d)) for d in NUMBERS
    },
    **{f"tensor of {d}": lambda d=d: torch.arange(7).to(d) for d in TENSORS},
}


@pytest.mark.filterwarnings("ignore:.*will create", "ignore:.*requires_grad")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS.keys())
def test_dataset(dataset: Callable[[], Any], workers: int) -> None:
    def read(loader: Loader) -> list[Any]:
        found = []
        # Half of this is enough for the processes.
        for batch_size in (3,) if workers else (1, 3, None):
            batches = loader(dataset(), batch_size, num_workers=workers)
            found.append(outcome(lambda b=batches: len(b)))
            found.append(outcome(lambda b=batches: told(iter(b), 8)))
        found.append(outcome(lambda: len(list(loader(dataset(), 3, drop_last=True)))))
        found.append(outcome(lambda: list(loader(dataset(), 2, collate_fn=list))))
        return found

    assert read(DataLoader) == read(ResumableDataLoader)


# ---- samplers


class Interleaved:
    """A generator function for a sampler; nobody's subclass."""

    def __iter__(self) -> Iterator[int]:
        for k in range(3):
            yield k
            yield 6 - k

    def __len__(self) -> int:
        return 6


class Lengthless:
    def __iter__(self) -> Iterator[int]:
        yield from (4, 2, 0)


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SAMPLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "list": lambda: {"sampler": [3, 1, 2]},
    "empty list": lambda: {"sampler": []},
    "range": lambda: {"sampler": range(6, 0, -2)},
    "array": lambda: {"sampler": np.array([3, 1, 2])},
    "tensor": lambda: {"sampler": torch.tensor([3, 1, 2])},
    "negative indices": lambda: {"sampler": [-1, -7]},
    "indices out of range": lambda: {"sampler": [1, 99, 2]},
    "generator function": lambda: {"sampler": Interleaved()},
    "generator": lambda: {"sampler": (k for k in (3, 1, 2))},
    "without a length": lambda: {"sampler": Lengthless()},
    "random": lambda: {"sampler": RandomSampler(range(7), generator=generator())},
    "random, repeating": lambda: {
        "sampler": RandomSampler(range(7), True, 20, generator=generator())
    },
    "random, more than all": lambda: {
        "sampler": RandomSampler(range(7), False, 17, generator=generator())
    },
    "weighted": lambda: {"sampler": WeightedRandomSampler([1, 2, 3], 9, generator=generator())},
    "random subset": lambda: {"sampler": SubsetRandomSampler([5, 3, 1], generator=generator())},
    "distributed": lambda: {"sampler": DistributedSampler(range(7), 2, 1, seed=4)},
    "distributed, in order": lambda: {"sampler": DistributedSampler(range(7), 3, 2, shuffle=False)},
    "batches": lambda: {"batch_sampler": [[3, 1], [2], [0, 5, 6]]},
    "batches as tuples": lambda: {"batch_sampler": ((3, 1), (2,))},
    "batches as tensors": lambda: {"batch_sampler": torch.tensor([[3, 1], [2, 0]])},
    "empty batch": lambda: {"batch_sampler": [[3, 1], [], [2]], "collate_fn": list},
    "empty batch first": lambda: {"batch_sampler": [[], [3, 1], [2]], "collate_fn": list},
    "empty batch last": lambda: {"batch_sampler": [[3, 1], [2], []], "collate_fn": list},
    "empty batch collated": lambda: {"batch_sampler": [[3, 1], [], [2]]},
    "BatchSampler": lambda: {"batch_sampler": BatchSampler(Interleaved(), 4, False)},
    "BatchSampler of random": lambda: {
        "batch_sampler": BatchSampler(RandomSampler(range(7), generator=generator()), 2, True)
    },
    "lists of keys, not batched": lambda: {"sampler": [1, 2], "batch_size": None},
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("samplers", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_sampler(samplers: Callable[[], dict[str, Any]], workers: int) -> None:
    """The first epoch: later ones are deliberately another matter, see below."""

    def read(loader: Loader) -> list[Any]:
        found = []
        for dataset in (list("abcdefg"), torch.arange(7)):
            arguments = {**samplers(), **seeded(loader)}
            if "sampler" in arguments:
                arguments = {"batch_size": 2, **arguments}
            found.append(
                outcome(
                    lambda a=arguments, d=dataset: told(
                        iter(loader(d, num_workers=workers, **a)), 12
                    )
                )
            )
            found.append(outcome(lambda a=arguments, d=dataset: len(loader(d, **a))))
        return found

    assert read(DataLoader) == read(ResumableDataLoader)


@case(0, 2)
def _a_sampler_may_yield_any_key(loader: Loader, workers: int) -> Any:
    by_name = {"one": 1, "two": 2, "three": 3}
    by_pair = {(x, y): x * y for x in range(3) for y in range(3)}
    rows = torch.arange(20).reshape(10, 2)
    return [
        passes(loader(by_name, 2, sampler=["two", "three", "one"], num_workers=workers)),
        passes(loader(by_pair, 2, sampler=[(1, 2), (2, 2), (0, 1)], num_workers=workers)),
        passes(loader(by_pair, batch_sampler=[[(1, 2)], [(2, 2), (0, 1)]], num_workers=workers)),
        # torch's recipe for reading in bulk: a sampler of lists, or slices, and no batching
        passes(
            loader(
                rows,
                sampler=BatchSampler(range(10), 4, False),
                batch_size=None,
                num_workers=workers,
            )
        ),
        passes(
            loader(rows, sampler=[slice(0, 3), slice(3, 9)], batch_size=None, num_workers=workers)
        ),
    ]


@case(0)
def _getitems_is_asked_with_the_batch_of_the_batch_sampler(loader: Loader, workers: int) -> Any:
    dataset = Plain()
    batches = [passes(loader(dataset, 3)), passes(loader(dataset, batch_sampler=[[3, 1], [2]]))]
    return batches, shown(dataset.asked)


@case(0, 2)
def _an_epoch_set_on_the_sampler_before_the_loader_is_built(loader: Loader, workers: int) -> Any:
    found = []
    for epoch in range(3):
        sampler = DistributedSampler(range(9), 2, 0, seed=4)
        sampler.set_epoch(epoch)
        batches = loader(range(9), 2, sampler=sampler, num_workers=workers, **seeded(loader))
        found.append(passes(batches, 1))
    return found


@case(0)
def _a_distributed_sampler_is_all_that_a_rank_needs(loader: Loader, workers: int) -> Any:
    return [
        passes(loader(range(9), 2, sampler=DistributedSampler(range(9), 2, rank)), 1)
        for rank in range(2)
    ]


@case(0)
def _a_sampler_that_a_dataset_keeps_for_itself_is_left_alone(loader: Loader, workers: int) -> Any:
    class Drawn(Dataset[Any]):
        def __init__(self) -> None:
            self._sampler = RandomSampler(range(9), generator=generator())

        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> Any:
            return next(iter(self._sampler))

    drawn = Drawn()
    return passes(loader(drawn, 2, sampler=DistributedSampler(drawn, 2, 0)), 2)


@case(0, 2)
def _an_epoch_set_on_the_sampler_before_each_pass(loader: Loader, workers: int) -> Any:
    sampler = DistributedSampler(range(9), 2, 0, seed=4)
    batches = loader(range(9), 2, sampler=sampler, num_workers=workers, **seeded(loader))
    found = []
    for epoch in (0, 1, 2, 5, 3):
        sampler.set_epoch(epoch)
        found.append(passes(batches, 1))
    return found


# ---- iterating


@case(0, 2)
def _shuffled_epochs(loader: Loader, workers: int) -> Any:
    return passes(loader(Squares(17), 5, num_workers=workers, **shuffling(loader)), 4)


@case(0, 2)
def _shuffled_epochs_without_the_last_batch(loader: Loader, workers: int) -> Any:
    arguments = {"num_workers": workers, "drop_last": True, **shuffling(loader)}
    return passes(loader(Squares(17), 5, **arguments), 3)


@case(0, 2)
def _shuffled_single_samples(loader: Loader, workers: int) -> Any:
    return passes(loader(Squares(7), None, num_workers=workers, **shuffling(loader)), 2)


@case(0)
def _shuffled_columns(loader: Loader, workers: int) -> Any:
    dataset = TensorDataset(torch.arange(34.0).reshape(17, 2), torch.arange(17))
    return passes(loader(dataset, 4, **shuffling(loader)), 3)


@case(0, 2)
def _two_iterators_in_turns(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(7), 2, num_workers=workers)
    return [(shown(one), shown(other)) for one, other in zip(batches, batches)]


@case(0, 2)
def _a_second_iterator_inside_the_loop(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(5), 2, num_workers=workers)
    return [[shown(outer), [shown(inner) for inner in batches]] for outer in batches]


@case(0, 2)
def _break_and_iterate_again(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(9), 2, num_workers=workers)
    found = []
    for stop in (1, 3, 2):
        for count, batch in enumerate(batches, start=1):
            found.append(shown(batch))
            if count == stop:
                break
    return found, passes(batches)


@case(0, 2)
def _the_first_batch_over_and_over(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(9), 2, num_workers=workers)
    return [shown(next(iter(batches))) for _ in range(3)]


@case(0, 2)
def _an_exhausted_iterator_stays_exhausted(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(3), 2, num_workers=workers)
    one = iter(batches)
    found = told(one, 5)
    next(iter(batches))
    return found, told(one, 2), told(iter(batches), 4)


@case(0, 2)
def _iterators_are_iterators_with_a_length(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(9), 2, num_workers=workers)
    one = iter(batches)
    found = [iter(one) is one, iter(batches) is one, len(one), len(batches)]
    next(one)
    return found, len(one), len(batches), [shown(batch) for batch in one]


def _unchanged(worker: int) -> None:
    pass


@case(2)
def _persistent_workers_serve_all_epochs(loader: Loader, workers: int) -> Any:
    # With a worker_init_fn, our workers take torch's turns; otherwise the least busy one reads.
    batches = loader(
        Pids(8), 1, num_workers=workers, persistent_workers=True, worker_init_fn=_unchanged
    )
    epochs = [[int(pid) for pid in batches] for _ in range(3)]
    numbers = [[epoch.index(pid) for pid in epoch] for epoch in epochs]
    return numbers, len({pid for epoch in epochs for pid in epoch})


@case(2)
def _persistent_workers_after_a_break(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(9), 2, num_workers=workers, persistent_workers=True)
    first = [shown(batch) for _, batch in zip(range(2), batches)]
    return first, passes(batches)


@case(2)
def _fresh_workers_each_epoch(loader: Loader, workers: int) -> Any:
    batches = loader(Pids(4), 1, num_workers=workers)
    return len({int(pid) for _ in range(2) for pid in batches})


@case(2)
def _workers_are_gone_with_their_iterator(loader: Loader, workers: int) -> Any:
    others = set(psutil.Process().children())
    batches = loader(Squares(40), 1, num_workers=workers)
    one = iter(batches)
    next(one)
    started = set(psutil.Process().children()) - others
    del one
    _, alive = psutil.wait_procs(started, timeout=10)
    return len(started), len(alive)


@case(2)
def _batches_out_of_order_are_all_there(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(31), 2, num_workers=workers, in_order=False)
    return [sorted(map(str, epoch)) for epoch in passes(batches)]


@case(0, 2)
def _a_batch_may_be_changed_in_place(loader: Loader, workers: int) -> Any:
    dataset = TensorDataset(torch.arange(6.0))
    for (batch,) in loader(dataset, 6, num_workers=workers):
        batch.zero_()
    return shown(dataset.tensors[0]), passes(loader(dataset, 4), 1)


# ---- what may be set later


@case(0, 2)
def _a_collate_function_set_between_epochs(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(5), 2, num_workers=workers)
    found = passes(batches, 1)
    batches.collate_fn = sums
    return found, passes(batches, 1)


@case(0)
def _workers_set_between_epochs(loader: Loader, workers: int) -> Any:
    batches = loader(InWorker(3), 1, collate_fn=tuple)
    found = passes(batches, 1)
    batches.num_workers = 2
    batches.prefetch_factor = 2
    return found, passes(batches, 1)


@case(2)
def _workers_taken_away_between_epochs(loader: Loader, workers: int) -> Any:
    batches = loader(InWorker(3), 1, num_workers=workers, collate_fn=tuple)
    found = passes(batches, 1)
    batches.num_workers = 0
    return found, passes(batches, 1)


@case(2)
def _a_worker_init_fn_set_between_epochs(loader: Loader, workers: int) -> Any:
    batches = loader(Growable(6), 1, num_workers=workers)
    found = passes(batches, 1)
    batches.worker_init_fn = plus_100
    return found, passes(batches, 1)


@case(0, 2)
def _a_dataset_changed_between_epochs(loader: Loader, workers: int) -> Any:
    dataset = Growable(5)
    batches = loader(dataset, 2, num_workers=workers)
    found = passes(batches, 1)
    dataset.offset = 7
    return found, passes(batches, 1)


@case(0, 2)
def _tensors_changed_in_place_between_epochs(loader: Loader, workers: int) -> Any:
    dataset = TensorDataset(torch.arange(5))
    batches = loader(dataset, 2, num_workers=workers)
    found = passes(batches, 1)
    dataset.tensors[0].add_(100)
    return found, passes(batches, 1)


@case(0, 2)
def _tensors_replaced_between_epochs(loader: Loader, workers: int) -> Any:
    dataset = TensorDataset(torch.arange(5))
    batches = loader(dataset, 2, num_workers=workers)
    found = passes(batches, 1)
    dataset.tensors = (torch.arange(5) + 100,)
    return found, passes(batches, 1)


@case(0, 2)
def _the_indices_of_a_subset_replaced_between_epochs(loader: Loader, workers: int) -> Any:
    subset = Subset(TensorDataset(torch.arange(9)), [0, 1, 2])
    batches = loader(subset, 2, num_workers=workers)
    found = passes(batches, 1)
    subset.indices = [8, 7, 6]
    found += passes(batches, 1)
    subset.indices[0] = 3
    return found, passes(batches, 1)


# ---- workers


@case(0, 2)
def _worker_info_is_of_the_users_dataset(loader: Loader, workers: int) -> Any:
    return passes(loader(InWorker(5), 1, num_workers=workers, collate_fn=tuple))


@case(0, 2)
def _worker_info_is_there_while_collating(loader: Loader, workers: int) -> Any:
    def collate(samples: list[int]) -> Any:
        info = get_worker_info()
        return samples, info and (info.id, info.num_workers, type(info.dataset).__name__)

    return passes(loader(Squares(5), 2, num_workers=workers, collate_fn=collate))


@case(0, 2)
def _a_worker_init_fn_changes_its_copy_of_the_dataset(loader: Loader, workers: int) -> Any:
    dataset = Growable(6)
    batches = loader(dataset, 2, num_workers=workers, worker_init_fn=plus_100)
    return passes(batches), dataset.offset


@case(2)
def _a_worker_init_fn_replaces_tensors_in_its_copy(loader: Loader, workers: int) -> Any:
    def replace(worker_id: int) -> None:
        get_worker_info().dataset.tensors = (torch.arange(6) + 100 * (worker_id + 1),)

    dataset = TensorDataset(torch.arange(6))
    return passes(loader(dataset, 2, num_workers=workers, worker_init_fn=replace))


@case(2)
def _a_worker_init_fn_that_raises(loader: Loader, workers: int) -> Any:
    batches = loader(Squares(6), 2, num_workers=workers, worker_init_fn=refuse)
    found = outcome(lambda: list(batches))
    return found, outcome(lambda: list(batches))


@case(1)
def _a_worker_that_hangs_is_timed_out(loader: Loader, workers: int) -> Any:
    batches = loader(Sleeping(2), num_workers=workers, timeout=0.5)
    return outcome(lambda: next(iter(batches)))


@pytest.mark.parametrize("context", ["fork", *slow("spawn"), "forkserver"])
def test_every_way_of_starting_workers(context: str) -> None:
    def read(loader: Loader) -> Any:
        chosen: Any = context
        if context == "forkserver":
            chosen = torch.multiprocessing.get_context(context)
        batches = loader(InWorker(4), 2, num_workers=1, multiprocessing_context=chosen)
        return passes(batches, 1), type(batches.multiprocessing_context).__name__

    assert read(DataLoader) == read(ResumableDataLoader)


@case(0, 2)
def _pinning_without_an_accelerator_warns(loader: Loader, workers: int) -> Any:
    if torch.accelerator.is_available():
        pytest.skip("an accelerator is there")
    batches = loader(Squares(3), 2, num_workers=workers, pin_memory=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = passes(batches, 1)
    reported = {(w.category, "pin_memory" in str(w.message)) for w in caught}
    if loader is DataLoader and not reported:  # torch 2.6 says nothing
        reported = {(UserWarning, True)}
    return found, reported


# ---- exceptions

ERRORS: dict[str, BaseException] = {
    "ValueError": ValueError("rotten"),
    "KeyError": KeyError("rotten"),
    "IndexError": IndexError(3),
    "OSError": FileNotFoundError(2, "no such file", "sample_3.jpg"),
    "odd constructor": Odd(1, two=2),
    "NotImplementedError": NotImplementedError(),
    "AssertionError": AssertionError(),
    "GeneratorExit": GeneratorExit(),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [2, None])
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS.keys())
def test_exception(error: BaseException, batch_size: int | None, workers: int) -> None:
    """Its type; that ``next`` gives the batch after it; that the loader stays usable."""
    if workers and not isinstance(error, Exception):
        pytest.skip("ends the worker; see test_a_dead_worker")

    def read(loader: Loader, workers: int = workers) -> Any:
        batches = loader(Failing(7, error), batch_size, num_workers=workers)
        return told(iter(batches), 9), told(iter(batches), 9)

    # torch calls the constructor with a text, and raises a RuntimeError where that fails.
    keeps_type = workers and isinstance(error, Odd)
    expected = read(DataLoader, 0) if keeps_type else read(DataLoader)
    assert expected == read(ResumableDataLoader)


@case(0)
def _a_keyboard_interrupt_while_reading(loader: Loader, workers: int) -> Any:
    batches = loader(Failing(8, KeyboardInterrupt()), 2)
    return told(iter(batches), 5), told(iter(batches), 5)


@case(0, 2)
def _an_exception_while_collating(loader: Loader, workers: int) -> Any:
    def collate(samples: list[int]) -> Any:
        if 3 in samples:
            raise KeyError("label")
        return samples

    batches = loader(Indices(7), 2, num_workers=workers, collate_fn=collate)
    return told(iter(batches), 6), told(iter(batches), 6)


@case(0, 2)
def _an_exception_in_a_sampler(loader: Loader, workers: int) -> Any:
    class Tired(Lengthless):
        def __iter__(self) -> Iterator[int]:
            yield 1
            raise ZeroDivisionError

    batches = loader(Indices(7), 1, num_workers=workers, sampler=Tired())
    return outcome(lambda: list(batches)), outcome(lambda: list(batches))


@case(2)
def _a_dead_worker_ends_the_epoch_and_not_the_loader(loader: Loader, workers: int) -> Any:
    class Dying(Indices):
        healthy = False

        def __getitem__(self, index: int) -> int:
            if index == 3 and not self.healthy:
                os._exit(1)
            return index

    dataset = Dying(7)
    batches = loader(dataset, 2, num_workers=workers)
    found = outcome(lambda: list(batches))
    dataset.healthy = True
    return found, passes(batches, 1)


# ---- iterable datasets, which are not resumed


@case(0, 2)
def _an_iterable_dataset(loader: Loader, workers: int) -> Any:
    found = []
    for arguments in (
        {"batch_size": 3},
        {"batch_size": None},
        {"batch_size": 3, "drop_last": True},
        {"batch_size": 2, "collate_fn": sums},
    ):
        for dataset in (Counting(11), Counted(11), Unsized(11)):
            batches = loader(dataset, num_workers=workers, **arguments)
            found.append((outcome(lambda b=batches: len(b)), passes(batches)))
    return found


@case(0, 2)
def _an_iterable_dataset_shared_out_by_a_worker_init_fn(loader: Loader, workers: int) -> Any:
    return passes(loader(Counting(20), 3, num_workers=workers, worker_init_fn=ten_each))


@case(2)
def _an_iterable_dataset_with_persistent_workers(loader: Loader, workers: int) -> Any:
    batches = loader(Counting(9), 2, num_workers=workers, persistent_workers=True)
    return [shown(next(iter(batches))), passes(batches, 3)]


@case(0)
def _an_iterable_dataset_longer_than_it_says(loader: Loader, workers: int) -> Any:
    class Lying(Counting):
        def __len__(self) -> int:
            return 2

    batches = loader(Lying(5))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return len(batches), passes(batches, 1), [w.category for w in caught]


@case(0)
def _an_iterable_dataset_that_raises(loader: Loader, workers: int) -> Any:
    class Raising(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            yield 1
            raise ZeroDivisionError

    return told(iter(loader(Raising())), 3)


@case(0)
def _a_dataset_whose_length_cannot_be_had_with_a_sampler(loader: Loader, workers: int) -> Any:
    class Endless(Dataset[int]):
        def __len__(self) -> int:
            raise NotImplementedError("endless")

        def __getitem__(self, index: int) -> int:
            return index

    class NoLength:
        def __getitem__(self, index: int) -> int:
            return index

    return [passes(loader(kind(), 2, sampler=[3, 5, 8])) for kind in (NoLength, Endless)]


# ---- copies


@case(0, 2)
def _copies_and_pickles_are_loaders(loader: Loader, workers: int) -> Any:
    original = loader(Squares(9), 2, num_workers=workers, drop_last=True)
    found = []
    for _ in range(2):
        for copied in (
            copy.deepcopy(original),
            copy.copy(original),
            pickle.loads(pickle.dumps(original)),
        ):
            found.append([len(copied), copied.num_workers, copied.drop_last, passes(copied)])
        found.append(passes(original))
    return found


@case(0)
def _a_subclass_may_take_part(loader: Loader, workers: int) -> Any:
    class Logged(loader):  # type: ignore[misc, valid-type]  # either class
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.seen: list[Any] = []
            super().__init__(*arguments, **named)

        def __iter__(self) -> Iterator[Any]:
            for batch in super().__iter__():
                self.seen.append(shown(batch))
                yield batch

    batches = Logged(Squares(5), 2)
    return passes(batches), batches.seen


@pytest.mark.parametrize(("function", "workers"), CASES)
def test_behaviour(function: Case, workers: int) -> None:
    assert function(DataLoader, workers) == function(ResumableDataLoader, workers)


# ---- what differs on purpose


def test_a_stop_iteration_of_the_dataset_is_an_error_and_not_the_end_of_the_epoch() -> None:
    """torch ends the epoch there without a word, and the rest of the data is never seen (C12)."""
    dataset = Failing(9, StopIteration())
    assert len(list(DataLoader(dataset, 3))) == 1
    with pytest.raises(SampleError, match="sample index 3"):
        list(ResumableDataLoader(dataset, 3))


def test_tensors_that_need_gradients_come_from_workers_as_leaves() -> None:
    """torch's workers cannot send what has a history, and the default collation makes one."""
    dataset = [torch.ones(2, requires_grad=True) for _ in range(4)]
    with pytest.raises(RuntimeError, match=r"requires.grad|out="):
        list(DataLoader(dataset, 2, num_workers=1))  # type: ignore[arg-type]
    for batch in ResumableDataLoader(dataset, 2, num_workers=1):
        assert batch.requires_grad
        assert batch.is_leaf


def test_batches_of_workers_are_not_what_torch_calls_shared() -> None:
    """They lie in memory that two processes map, in a way that torch does not know of."""
    assert next(iter(DataLoader(Squares(4), 2, num_workers=1))).is_shared()
    assert not next(iter(ResumableDataLoader(Squares(4), 2, num_workers=1))).is_shared()


def test_an_exception_from_a_worker_comes_as_itself() -> None:
    """torch builds a new one from a text, and its arguments and attributes are lost (C13)."""

    def missing(loader: Loader) -> Any:
        try:
            list(loader(Failing(9, ERRORS["OSError"]), 3, num_workers=1))
        except FileNotFoundError as error:
            return error.with_traceback(None)

    assert missing(DataLoader).filename is None
    assert missing(ResumableDataLoader).filename == "sample_3.jpg"


def test_a_later_iterator_takes_the_persistent_workers_over_and_says_so() -> None:
    """torch has one iterator, which starts over under the feet of whoever still reads it."""
    theirs = DataLoader(Indices(8), 1, num_workers=1, persistent_workers=True)
    first = iter(theirs)
    next(first), next(first), next(iter(theirs))
    assert next(first).item() == 1, "the second batch once more"
    ours = ResumableDataLoader(Indices(8), 1, num_workers=1, persistent_workers=True)
    first = iter(ours)
    next(first), next(first), next(iter(ours))
    with pytest.raises(DataPorterError, match="one iterator at a time"):
        next(first)
    assert len(list(ours)) == 8


def test_an_exhausted_iterator_stays_so_also_when_its_workers_serve_another() -> None:
    loader = ResumableDataLoader(Indices(4), 1, num_workers=1, persistent_workers=True)
    first = iter(loader)
    assert len(list(first)) == 4
    second = iter(loader)
    next(second)
    assert list(first) == []
    assert len(list(second)) == 3


def test_a_distributed_sampler_whose_epoch_nobody_sets_repeats_its_order() -> None:
    def epochs(loader: Loader) -> list[Any]:
        return passes(loader(range(9), 9, sampler=DistributedSampler(range(9), 1, 0)))

    theirs, ours = epochs(DataLoader), epochs(ResumableDataLoader)
    assert theirs == ours
    assert ours[0] == ours[1]


def test_a_random_sampler_is_keyed_by_the_epoch_after_the_first() -> None:
    """torch lets its generator run on, so that only who has read all epochs before can resume."""

    def epochs(loader: Loader) -> list[Any]:
        sampler = RandomSampler(range(99), generator=generator())
        return passes(loader(range(99), 99, sampler=sampler))

    theirs, ours = epochs(DataLoader), epochs(ResumableDataLoader)
    assert theirs[0] == ours[0]
    assert theirs[1] != ours[1]


def test_the_first_thing_happens_at_the_first_next() -> None:
    """torch starts its workers at iter(); ours wait for a set_epoch in between (C3)."""
    before = psutil.Process().children()
    batches = iter(ResumableDataLoader(Indices(4), num_workers=2))
    assert psutil.Process().children() == before
    next(batches)


def test_a_dataset_without_a_length_is_refused_when_the_loader_is_built() -> None:
    """torch fails at the first batch, and shuffling at once."""
    endless = iter([1, 2, 3])
    assert outcome(lambda: DataLoader(endless)) is not TypeError
    assert outcome(lambda: list(DataLoader(endless))) is TypeError
    assert outcome(lambda: ResumableDataLoader(endless)) is TypeError


def test_a_dict_of_arrays_is_read_by_row() -> None:
    """torch has no meaning for one, and asks it for the key 0."""
    columns = {"x": torch.arange(3), "y": np.ones(3)}
    assert outcome(lambda: list(DataLoader(columns))) is KeyError
    assert len(list(ResumableDataLoader(columns))) == 3


@pytest.mark.parametrize("loader", [DataLoader, ResumableDataLoader])
def test_a_profiler_finds_a_span_for_each_batch(loader: Any) -> None:
    with torch.autograd.profiler.profile() as profile:
        list(loader(Indices(4), 2))
    spans = [event.name for event in profile.function_events if "__next__" in event.name]
    assert len(spans) == 3, "two batches and the end"
    assert all(name.startswith("enumerate(DataLoader)#") for name in spans)


def test_an_empty_dataset_may_be_shuffled() -> None:
    """torch refuses; here the last shard of a split may well be empty."""
    assert outcome(lambda: DataLoader([], shuffle=True)) is ValueError
    assert list(ResumableDataLoader([], shuffle=True)) == []


def test_a_timeout_without_workers_has_no_meaning_and_does_no_harm() -> None:
    """torch's iterator trips over an assertion of its own."""
    assert outcome(lambda: list(DataLoader([1], timeout=1))) is AssertionError
    assert len(list(ResumableDataLoader([1], timeout=1))) == 1


def test_default_collate_is_torchs() -> None:
    assert ResumableDataLoader(Indices(4)).collate_fn is default_collate
