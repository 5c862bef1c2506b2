"""Samplers as people write them: pure ones, ones that keep an epoch, a place or a generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

__all__ = ["LENGTH", "PATTERNS", "Pattern", "part_with_epoch"]

LENGTH = 11


class Odd:
    """A function of nothing."""

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[int]:
        yield from range(1, LENGTH, 2)
        yield 1


class Place:
    """Keeps its place, so that a pass that was left is continued by the next one."""

    def __init__(self) -> None:
        self.i = 0

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        while self.i < LENGTH:
            self.i += 1
            yield self.i - 1
        self.i = 0


class PlaceWithState(Place):
    def state_dict(self) -> dict[str, int]:
        return {"i": self.i}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.i = state["i"]


class Consumed:
    """A batch sampler that counts what was consumed, as Megatron's does."""

    def __init__(self) -> None:
        self.consumed = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[list[int]]:
        epoch, offset = divmod(self.consumed, 8)
        order = np.random.default_rng(epoch).permutation(8).tolist()
        for start in range(offset, 8, 2):
            self.consumed += 2
            yield order[start : start + 2]


class StartsAt:
    """Its next pass starts at a step that a resuming program sets, as fairchem's does."""

    def __init__(self) -> None:
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return 5

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        order = np.random.default_rng(self.epoch).permutation(10)
        yield from order.reshape(5, 2)[start:].tolist()


class OwnNumpy:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        yield from self.rng.permutation(LENGTH).tolist()


class OwnPython(OwnNumpy):
    """Draws as it goes."""

    def __init__(self) -> None:
        self.rng: Any = random.Random(3)

    def __iter__(self) -> Iterator[int]:
        for _ in range(LENGTH):
            yield self.rng.randrange(LENGTH)


class CountsPasses:
    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(np.random.default_rng(self.passes).permutation(LENGTH).tolist())


class StatefulIterator:
    """Each pass has another order, and its iterator keeps the place."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> _Stateful:
        self.passes += 1
        return _Stateful(self, self.passes)


class _Stateful:
    def __init__(self, sampler: StatefulIterator, number: int) -> None:
        self.sampler, self.number, self.step = sampler, number, 0

    def __iter__(self) -> _Stateful:
        return self

    def __next__(self) -> list[int]:
        if self.step == 4:
            raise StopIteration
        self.step += 1
        order = np.random.default_rng(self.number).permutation(8).tolist()
        return order[2 * self.step - 2 : 2 * self.step]

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number, "step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.passes = self.number = state["number"]
        self.step = state["step"]


class Wrapping:
    """Wraps a sampler under a name of its own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[int]:
        yield from reversed(list(self.inner))


class Repeated:
    """Each sample three times over the ranks, anew in each epoch, as timm's RepeatAugSampler."""

    def __init__(self) -> None:
        self.epoch = 0

    def __len__(self) -> int:
        return LENGTH

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(self.epoch))
        return iter(order.repeat_interleave(3)[1::2][:LENGTH].tolist())


class Buckets:
    """Batches of unequal size, anew in each epoch."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        for size in np.random.default_rng(self.epoch).permutation(5).tolist():
            yield list(range(size, 2 * size + 1))


class Endless:
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(LENGTH)


class EndlessPlace:
    def __init__(self) -> None:
        self.i = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.i += 1
            yield 7 * self.i % LENGTH


class Grouped:
    """Keeps a generator as ``generator``, as the samplers of Transformers do."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(8)

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(LENGTH, generator=self.generator).tolist())


def distributed(**arguments: Any) -> Any:
    return DistributedSampler(range(2 * LENGTH - 1), num_replicas=2, rank=1, seed=3, **arguments)


def batches(sampler: Any, *, drop_last: bool = False) -> dict[str, Any]:
    return {"batch_sampler": BatchSampler(sampler, 3, drop_last)}


def singly(sampler: Any) -> dict[str, Any]:
    return {"sampler": sampler, "batch_size": 3}


@dataclass(frozen=True)
class Pattern:
    """How a loader's arguments are built, and what a test has to know of the sampler.

    Attributes:
        epochs: it, or what it wraps, has ``set_epoch``.
        memory: what a pass yields depends on what was drawn before.
        state: it keeps its memory in ``state_dict()``.
        rekeyed: its ``generator`` is seeded for each epoch by our loader.
    """

    arguments: Callable[[], dict[str, Any]]
    epochs: bool = False
    memory: bool = False
    state: bool = False
    rekeyed: bool = False
    endless: bool = False


PATTERNS = {
    "list": Pattern(lambda: singly([3, 1, 4, 1, 5, 9, 2])),
    "sequential": Pattern(lambda: singly(SequentialSampler(range(LENGTH)))),
    "pure": Pattern(lambda: singly(Odd())),
    "without batches": Pattern(lambda: {"sampler": Odd(), "batch_size": None}),
    "list of batches": Pattern(lambda: {"batch_sampler": [[0, 1], [2], [9, 3, 4], [5, 6]]}),
    "distributed": Pattern(lambda: singly(distributed()), epochs=True),
    "distributed batches": Pattern(
        lambda: batches(distributed(drop_last=True), drop_last=True), epochs=True
    ),
    "wrapping": Pattern(lambda: singly(Wrapping(distributed())), epochs=True),
    "repeated": Pattern(lambda: singly(Repeated()), epochs=True),
    "buckets": Pattern(lambda: {"batch_sampler": Buckets()}, epochs=True),
    "starts at": Pattern(lambda: {"batch_sampler": StartsAt()}, epochs=True),
    "place": Pattern(lambda: singly(Place()), memory=True),
    "place batches": Pattern(lambda: batches(Place()), memory=True),
    "place wrapped": Pattern(lambda: singly(Wrapping(Place())), memory=True),
    "place with state": Pattern(lambda: singly(PlaceWithState()), memory=True, state=True),
    "consumed": Pattern(lambda: {"batch_sampler": Consumed()}, memory=True),
    "NumPy generator": Pattern(lambda: singly(OwnNumpy()), memory=True),
    "Python generator": Pattern(lambda: batches(OwnPython()), memory=True),
    "counts passes": Pattern(lambda: singly(CountsPasses()), memory=True),
    "stateful iterator": Pattern(
        lambda: {"batch_sampler": StatefulIterator()}, memory=True, state=True
    ),
    "one-shot generator": Pattern(
        lambda: {"batch_sampler": ([i, i + 1] for i in range(0, 8, 2))}, memory=True
    ),
    "iterator": Pattern(lambda: singly(iter(range(5))), memory=True),
    "endless": Pattern(lambda: singly(Endless()), endless=True),
    "endless place": Pattern(lambda: singly(EndlessPlace()), memory=True, endless=True),
    "random": Pattern(
        lambda: singly(RandomSampler(range(LENGTH), generator=torch.Generator().manual_seed(5))),
        rekeyed=True,
    ),
    "grouped": Pattern(lambda: singly(Grouped()), rekeyed=True),
}


def part_with_epoch(loader: Any) -> Any:
    """What the program that uses a loader calls ``set_epoch`` on; None if nothing has it."""
    parts = [loader.batch_sampler, loader.sampler]
    while parts:
        part = parts.pop()
        if hasattr(part, "set_epoch"):
            return part
        parts += [inner for name in ("sampler", "inner") if (inner := getattr(part, name, None))]
    return None
