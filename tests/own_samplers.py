"""Samplers as people and frameworks write them, each small: for a dataset of `LENGTH` samples."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__all__ = [
    "LENGTH",
    "PATTERNS",
    "Buckets",
    "CountingItsEpoch",
    "HiddenEpoch",
    "InPlace",
    "InPlaceStateful",
    "OwnNumpy",
    "Pattern",
    "TokenBudget",
    "Uncopyable",
]

LENGTH = 12


class InPlace:
    """Keeps its place on itself: an abandoned pass continues at the next one."""

    place = 0

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        while self.place < LENGTH:
            self.place += 1
            yield self.place - 1
        self.place = 0


class InPlaceStateful(InPlace):
    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class OwnNumpy:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        yield from self.rng.permutation(LENGTH).tolist()


class OwnNumpyStateful(OwnNumpy):
    """Its state is that of its generator alone, and no position."""

    def state_dict(self) -> dict[str, Any]:
        return {"rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state["rng"]


class OwnRandom:
    def __init__(self) -> None:
        self.rng = random.Random(3)

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        for _ in range(LENGTH):
            yield self.rng.randrange(LENGTH)


class OtherGenerator:
    """A torch.Generator under a name of its own."""

    def __init__(self) -> None:
        self.shuffling = torch.Generator().manual_seed(3)

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(LENGTH, generator=self.shuffling).tolist()


class Wrapper:
    """An inner sampler under a name of its own."""

    def __init__(self, inner: Any) -> None:
        self.indices_from = inner

    def __len__(self) -> int:
        return len(self.indices_from)

    def __iter__(self) -> Iterator[int]:
        yield from self.indices_from


class CountingAtTheStart:
    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        yield from np.random.default_rng(self.passes).permutation(LENGTH).tolist()


class Alternating(CountingAtTheStart):
    """Forwards and backwards in turn."""

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        yield from range(LENGTH) if self.passes % 2 else reversed(range(LENGTH))


class CountingAtTheEnd(CountingAtTheStart):
    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng(self.passes).permutation(LENGTH).tolist()
        self.passes += 1


class CountingItsEpoch(CountingAtTheEnd):
    """As yolo-like trainers: it counts in the attribute that set_epoch sets."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng(self.epoch).permutation(LENGTH).tolist()
        self.epoch += 1


class SetEpoch(CountingItsEpoch):
    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng(self.epoch).permutation(LENGTH).tolist()


class HiddenEpoch:
    """What set_epoch was given does not show."""

    def __init__(self) -> None:
        self.base = 100

    def set_epoch(self, epoch: int) -> None:
        self.base = 100 + epoch

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng(self.base).permutation(LENGTH).tolist()


class Megatron:
    """A batch sampler that starts behind the samples that it is told were consumed."""

    def __init__(self, consumed_samples: int = 0) -> None:
        self.consumed_samples = consumed_samples
        self.batch_size = 4

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[list[int]]:
        batch = []
        for index in range(self.consumed_samples, LENGTH):
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []


class MegatronRandom(Megatron):
    """Counts what it has given in the number that it was built with."""

    def __iter__(self) -> Iterator[list[int]]:
        epoch, offset = divmod(self.consumed_samples, LENGTH)
        order = np.random.default_rng(epoch).permutation(LENGTH).tolist()
        for start in range(offset, LENGTH, self.batch_size):
            self.consumed_samples += self.batch_size
            yield order[start : start + self.batch_size]


class Fairchem(DistributedSampler[Any]):
    """Starts each pass at ``start_iter``, which is set together with the epoch."""

    def __init__(self) -> None:
        super().__init__(range(LENGTH), 1, 0, seed=5)  # type: ignore[arg-type]
        self.start_iter = 0

    def set_epoch_and_start_iteration(self, epoch: int, start_iter: int) -> None:
        self.set_epoch(epoch)
        self.start_iter = start_iter

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.islice(super().__iter__(), self.start_iter, None)


class Buckets:
    """Batches of like lengths, from buckets that are filled lazily; its state is all of it."""

    def __init__(self) -> None:
        self.epoch = 0
        self._reset()

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._reset()

    def _reset(self) -> None:
        self.rng = random.Random(self.epoch)
        self.at = 0
        self.buckets: list[list[int]] = [[], []]
        self.restored = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "rng": self.rng.getstate(),
            "at": self.at,
            "buckets": [list(bucket) for bucket in self.buckets],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.at = state["epoch"], state["at"]
        self.rng.setstate(state["rng"])
        self.buckets = [list(bucket) for bucket in state["buckets"]]
        self.restored = True

    def __iter__(self) -> Buckets:
        if not self.restored:
            self._reset()
        self.restored = False
        return self

    def __next__(self) -> list[int]:
        while self.at < LENGTH:
            bucket = self.buckets[self.at % 2]
            bucket.append(self.at)
            self.at += 1
            if len(bucket) == 3:
                batch = self.rng.sample(bucket, 3)
                bucket.clear()
                return batch
        for bucket in self.buckets:
            if bucket:
                batch = list(bucket)
                bucket.clear()
                return batch
        raise StopIteration


class RepeatAug:
    """Each sample three times over the ranks, as timm's."""

    def __init__(self) -> None:
        self.num_replicas, self.rank, self.epoch, self.shuffle = 1, 0, 0, True

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        g = torch.Generator()
        g.manual_seed(self.epoch)
        indices = torch.randperm(LENGTH, generator=g).repeat_interleave(3).tolist()
        yield from indices[self.rank :: self.num_replicas][:LENGTH]


class LengthGrouped(Sampler[int]):
    """Shuffled by a generator, or torch's own, and sorted in groups, as transformers'."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.lengths = [7 * i % 5 for i in range(LENGTH)]

    def __len__(self) -> int:
        return LENGTH

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(LENGTH, generator=self.generator).tolist()
        groups = [order[i : i + 6] for i in range(0, LENGTH, 6)]
        yield from (i for group in groups for i in sorted(group, key=self.lengths.__getitem__))


class WithGeneratorState(OtherGenerator):
    """Keeps the generator's state in its own, with how far it has come."""

    def __init__(self) -> None:
        super().__init__()
        self.at, self.order, self.continues = 0, [0], False

    def state_dict(self) -> dict[str, Any]:
        rng = self.shuffling.get_state()
        return {"at": self.at, "order": list(self.order), "rng": rng}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at, self.order = state["at"], list(state["order"])
        self.shuffling.set_state(state["rng"])
        self.continues = True

    def __iter__(self) -> Iterator[int]:
        if not self.continues:
            self.order, self.at = torch.randperm(LENGTH, generator=self.shuffling).tolist(), 0
        self.continues = False
        while self.at < len(self.order):
            self.at += 1
            yield self.order[self.at - 1]


class Uncopyable(OwnNumpy):
    def __init__(self) -> None:
        super().__init__()
        self.stream = (i for i in range(5))


class TokenBudget:
    """Batches of at most so many tokens."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.share = list(range(LENGTH))[rank::ranks]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(self.epoch).permutation(self.share).tolist()
        batch: list[int] = []
        for index in order:
            if sum(batch) + index > 20 and batch:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


class Pattern(NamedTuple):
    """How a loader's sampler is made, and when a new one can continue.

    Attributes:
        build: the loader's arguments.
        resumes: ``"always"``, or only in the ``"first"`` pass.
        sets_epoch: the training calls set_epoch before each pass.
    """

    build: Callable[[], dict[str, Any]]
    resumes: str = "always"
    sets_epoch: bool = False


def _weights() -> list[float]:
    return [1.0 + i % 3 for i in range(LENGTH)]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(8)


PATTERNS: dict[str, Pattern] = {
    "place on itself": Pattern(lambda: {"sampler": InPlace()}, "first"),
    "place on itself, with a state": Pattern(lambda: {"sampler": InPlaceStateful()}),
    "own NumPy generator": Pattern(lambda: {"sampler": OwnNumpy()}, "first"),
    "own NumPy generator, with a state": Pattern(lambda: {"sampler": OwnNumpyStateful()}),
    "own random.Random": Pattern(lambda: {"sampler": OwnRandom()}, "first"),
    "generator of another name": Pattern(lambda: {"sampler": OtherGenerator()}),
    "inner sampler of another name": Pattern(
        lambda: {"sampler": Wrapper(RandomSampler(range(LENGTH), generator=_generator()))}
    ),
    "inner sampler with an epoch": Pattern(
        lambda: {"sampler": Wrapper(DistributedSampler(range(LENGTH), 1, 0))},  # type: ignore[arg-type]
        sets_epoch=True,
    ),
    "inner sampler with a memory": Pattern(lambda: {"sampler": Wrapper(OwnNumpy())}, "first"),
    "inner sampler with a state": Pattern(lambda: {"sampler": Wrapper(InPlaceStateful())}),
    "counting at the start": Pattern(lambda: {"sampler": CountingAtTheStart()}, "first"),
    "alternating": Pattern(lambda: {"sampler": Alternating()}, "first"),
    "counting at the end": Pattern(lambda: {"sampler": CountingAtTheEnd()}, "first"),
    "counting its epoch": Pattern(lambda: {"sampler": CountingItsEpoch()}),
    "with set_epoch": Pattern(lambda: {"sampler": SetEpoch()}, sets_epoch=True),
    "with set_epoch that nobody calls": Pattern(lambda: {"sampler": SetEpoch()}),
    "with a hidden epoch": Pattern(lambda: {"sampler": HiddenEpoch()}, sets_epoch=True),
    "one-shot generator": Pattern(
        lambda: {"batch_sampler": ([i, i + 1] for i in range(0, LENGTH, 2))}, "first"
    ),
    "one-shot iterator": Pattern(lambda: {"sampler": iter(range(LENGTH))}, "first"),
    "Megatron's": Pattern(lambda: {"batch_sampler": Megatron()}),
    "Megatron's random": Pattern(lambda: {"batch_sampler": MegatronRandom()}, "first"),
    "fairchem's": Pattern(lambda: {"sampler": Fairchem()}, sets_epoch=True),
    "lhotse's": Pattern(lambda: {"batch_sampler": Buckets()}, sets_epoch=True),
    "lhotse's, epoch never set": Pattern(lambda: {"batch_sampler": Buckets()}),
    "timm's": Pattern(lambda: {"sampler": RepeatAug()}, sets_epoch=True),
    "transformers'": Pattern(lambda: {"sampler": LengthGrouped(None)}),
    "transformers', with a generator": Pattern(lambda: {"sampler": LengthGrouped(_generator())}),
    "generator in its state": Pattern(lambda: {"sampler": WithGeneratorState()}),
    "not to be copied": Pattern(lambda: {"sampler": Uncopyable()}, "first"),
    "token budget": Pattern(lambda: {"batch_sampler": TokenBudget()}, sets_epoch=True),
    "torch's weighted": Pattern(lambda: {"sampler": WeightedRandomSampler(_weights(), LENGTH)}),
    "torch's subset": Pattern(
        lambda: {"sampler": SubsetRandomSampler(range(LENGTH), generator=_generator())}
    ),
    "torch's batches": Pattern(
        lambda: {
            "batch_sampler": BatchSampler(
                DistributedSampler(range(LENGTH), 1, 0),  # type: ignore[arg-type]
                5,
                False,
            )
        },
        sets_epoch=True,
    ),
}
