"""Loaders with one common fault each, and the diagnosis of each fault."""

from __future__ import annotations

import functools
import itertools
import os
import random
import time
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from dataporter import ResumableDataLoader

LENGTH = 24
MADE_AT_IMPORT = random.Random()
SEEN_SO_FAR = {"longest": 0}


class Rows(Dataset[Any]):
    """Rows that a function computes from their index."""

    def __init__(self, row: Callable[[int], Any]) -> None:
        self.row = row

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return {"index": index, "value": self.row(index)}


def loader(dataset: Any, **arguments: Any) -> Any:
    shuffled = {} if isinstance(dataset, IterableDataset) else {"shuffle": True}
    return ResumableDataLoader(dataset, 4, seed=3, **shuffled, **arguments)


def generator_made_at_import() -> Any:
    return loader(Rows(lambda index: index + MADE_AT_IMPORT.random()))


class WithGenerator(Dataset[Any]):
    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return index + self.rng.random()


def numpy_generator_in_the_dataset() -> Any:
    return loader(WithGenerator())


def torch_generator_in_a_transform() -> Any:
    generator = torch.Generator().manual_seed(1)
    return loader(Rows(lambda index: torch.rand(2, generator=generator)))


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, index: int) -> float:
        self.calls += 1
        return index * 0.9**self.calls


def transform_that_counts() -> Any:
    return loader(Rows(Counting()))


def closure_that_counts() -> Any:
    calls = 0

    def row(index: int) -> int:
        nonlocal calls
        calls += 1
        return calls

    return loader(Rows(row))


class Classes(Dataset[Any]):
    def __init__(self) -> None:
        names = {f"class {number % 7}" for number in range(LENGTH)}
        self.number = {name: number for number, name in enumerate(names)}

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> int:
        return self.number[f"class {index % 7}"]


def order_of_a_set() -> Any:
    return loader(Classes())


def keys_from_a_set() -> Any:
    names = {"image", "label", "mask", "weight"}
    return loader(Rows(lambda index: dict.fromkeys(names, index)))


def time_in_a_sample() -> Any:
    return loader(Rows(lambda index: time.time()))


def process_in_a_sample() -> Any:
    return loader(Rows(lambda index: os.getpid()))


def environment_in_a_sample() -> Any:
    return loader(Rows(lambda index: os.environ.get("SLURM_JOB_ID", "none")))


def fresh_generator_for_each_sample() -> Any:
    return loader(Rows(lambda index: np.random.default_rng().random()))


def uuid_in_a_sample() -> Any:
    return loader(Rows(lambda index: str(uuid.uuid4())))


class Caching(Dataset[Any]):
    """Caches augmented samples."""

    def __init__(self) -> None:
        self.cache: dict[int, float] = {}

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        if index % 4 not in self.cache:
            self.cache[index % 4] = index + random.random()
        return self.cache[index % 4]


def cache_of_augmented_samples() -> Any:
    return loader(Caching())


def _by_worker(index: int) -> int:
    info = get_worker_info()
    return index if info is None else index + 1000 * (info.id + 1)


def worker_in_a_sample() -> Any:
    return loader(Rows(_by_worker))


def _seed_by_the_clock(worker: int) -> None:
    info = get_worker_info()
    assert info is not None
    info.dataset.seed = time.time_ns()


class Seeded(Dataset[Any]):
    seed = 1

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> float:
        return random.Random(self.seed + index).random()


def worker_init_fn_with_the_clock() -> Any:
    return loader(Seeded(), worker_init_fn=_seed_by_the_clock)


class Listed(Dataset[Any]):
    def __init__(self, shuffle: Callable[[list[int]], None]) -> None:
        self.files = list(range(LENGTH))
        shuffle(self.files)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> int:
        return self.files[index]


def list_shuffled_by_python() -> Any:
    return loader(Listed(random.shuffle))


def list_shuffled_by_numpy() -> Any:
    return loader(Listed(np.random.shuffle))


def rows_drawn_by_torch() -> Any:
    return loader({"x": torch.rand(LENGTH)})


def list_shuffled_by_a_new_generator() -> Any:
    return loader(Listed(random.Random().shuffle))


def list_shuffled_by_the_time() -> Any:
    return loader(Listed(random.Random(time.time()).shuffle))


def _pad_to_the_longest_so_far(samples: list[Any]) -> torch.Tensor:
    longest = max(SEEN_SO_FAR["longest"], *(len(sample["value"]) for sample in samples))
    SEEN_SO_FAR["longest"] = longest
    return torch.stack(
        [torch.nn.functional.pad(s["value"], (0, longest - len(s["value"]))) for s in samples]
    )


def collate_that_remembers() -> Any:
    return loader(
        Rows(lambda index: torch.ones(1 + index * 7 % 11)), collate_fn=_pad_to_the_longest_so_far
    )


class Dtypes(Dataset[Any]):
    """The dtype depends on the index that was read before."""

    last = 0

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        dtype = torch.float32 if self.last % 2 else torch.float64
        self.last = index
        return torch.tensor(index, dtype=dtype)


def dtype_of_the_one_before() -> Any:
    return loader(Dtypes(), collate_fn=list)


def global_generators_in_threads() -> Any:
    return loader(Rows(lambda index: random.random()), worker_kind="thread")


class Buffered(Dataset[Any]):
    """Has one buffer for all readers."""

    def __init__(self) -> None:
        self.buffer = 0

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> int:
        self.buffer = index
        time.sleep(0.002 * (1 + index % 2))
        return self.buffer


def threads_that_share_a_buffer() -> Any:
    return loader(Buffered(), worker_kind="thread")


class Noisy(IterableDataset[Any]):
    def __init__(self) -> None:
        self.rng = random.Random()

    def __iter__(self) -> Any:
        for number in range(LENGTH):
            yield number + self.rng.random()


def generator_in_a_stream() -> Any:
    return loader(Noisy())


class Drawing:
    """A custom sampler with an unseeded generator."""

    def __iter__(self) -> Any:
        return iter(random.Random().sample(range(LENGTH), LENGTH))

    def __len__(self) -> int:
        return LENGTH


def sampler_with_fresh_randomness() -> Any:
    return ResumableDataLoader(Rows(lambda index: index), 4, sampler=Drawing(), seed=3)


class CountedByAll(Dataset[Any]):
    """Numbers its samples in the order in which they are read."""

    numbers = itertools.count()

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> int:
        return next(self.numbers)


def counter_of_the_class() -> Any:
    return loader(CountedByAll())


def batches_out_of_order() -> Any:
    return loader(
        Rows(lambda index: time.sleep(0.01 * (index % 3))), in_order=False, collate_fn=list
    )


def plain_loader_with_augmentation() -> Any:
    random.seed(1)
    generator = torch.Generator().manual_seed(1)
    rows = Rows(lambda index: random.random())
    return DataLoader(rows, 4, shuffle=True, generator=generator)


class ChangedInPlace(Dataset[Any]):
    """Augments its rows in place."""

    def __init__(self) -> None:
        self.rows = torch.ones(LENGTH, 2)

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        row = self.rows[index]
        row *= 1.1
        return row.clone()


def rows_changed_in_place() -> Any:
    return loader(ChangedInPlace())


@functools.cache
def _augmented(index: int) -> float:
    return index + random.random()


def cache_of_a_function() -> Any:
    return loader(Rows(lambda index: _augmented(index % 6)))


def address_in_a_sample() -> Any:
    thing = object()
    return loader(Rows(lambda index: id(thing)))


class InOneFile(Dataset[Any]):
    """Has its file open when the workers start."""

    def __init__(self) -> None:
        self.file = open(__file__, "rb")  # noqa: SIM115  # an open file is the fault

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> bytes:
        self.file.seek(7 * index)
        time.sleep(0.002)
        return self.file.read(4)


def file_that_workers_share() -> Any:
    return loader(InOneFile())


class CountingStream(IterableDataset[Any]):
    """Continues to count in its next pass."""

    count = 0

    def __iter__(self) -> Any:
        for _ in range(LENGTH):
            self.count += 1
            yield self.count


def stream_that_counts() -> Any:
    return loader(CountingStream())


class ForgetfulStream(IterableDataset[Any]):
    """Its state has its position, but not the samples that it has read ahead."""

    position = 0

    def __iter__(self) -> Any:
        ahead: list[int] = []
        while self.position < LENGTH:
            ahead.append(self.position)
            self.position += 1
            if len(ahead) > 3:
                yield ahead.pop(0)
        yield from ahead
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def stream_whose_state_forgets() -> Any:
    return loader(ForgetfulStream())


def plain_loader_without_a_seed() -> Any:
    return DataLoader(Rows(lambda index: index), 4, shuffle=True)


def plain_loader_that_depends_on_its_workers(num_workers: int = 0) -> Any:
    generator = torch.Generator().manual_seed(num_workers)
    rows = Rows(lambda index: index)
    return DataLoader(rows, 4, shuffle=True, generator=generator, num_workers=num_workers)


# Fault → the cause in its diagnosis, and what the evidence must name.
FAULTS: dict[Callable[[], Any], tuple[str, str]] = {
    generator_made_at_import: ("a generator in the dataset", "MADE_AT_IMPORT"),
    numpy_generator_in_the_dataset: ("a generator in the dataset", "dataset.rng"),
    torch_generator_in_a_transform: ("a generator in the dataset", "variable generator"),
    transform_that_counts: ("state kept in the dataset", "dataset.row.calls"),
    closure_that_counts: ("state kept in the dataset", "variable calls"),
    order_of_a_set: ("hash randomisation", "PYTHONHASHSEED"),
    keys_from_a_set: ("hash randomisation", "PYTHONHASHSEED"),
    time_in_a_sample: ("the time is part of a sample", "clock"),
    process_in_a_sample: ("the process id is part of a sample", "getpid"),
    environment_in_a_sample: ("the environment", "SLURM_JOB_ID"),
    fresh_generator_for_each_sample: ("fresh randomness in a sample", "unseeded"),
    uuid_in_a_sample: ("fresh randomness in a sample", "uuid4"),
    cache_of_augmented_samples: ("a cache in the dataset", "dataset.cache"),
    worker_in_a_sample: ("the worker is part of a sample", "get_worker_info"),
    worker_init_fn_with_the_clock: ("worker_init_fn", "worker_init_fn"),
    list_shuffled_by_python: ("unseeded Python random when the loader is made", "random"),
    list_shuffled_by_numpy: ("unseeded NumPy random when the loader is made", "numpy.random"),
    rows_drawn_by_torch: ("unseeded torch random when the loader is made", "torch"),
    list_shuffled_by_a_new_generator: ("fresh randomness when the loader is made", "unseeded"),
    list_shuffled_by_the_time: ("the time when the loader is made", "clock"),
    collate_that_remembers: ("collate_fn keeps state", "SEEN_SO_FAR"),
    dtype_of_the_one_before: ("state kept in the dataset", "dataset.last"),
    global_generators_in_threads: ("global generators in threads", "Python's random"),
    threads_that_share_a_buffer: ("threads that share the dataset", "threads"),
    generator_in_a_stream: ("a generator in the dataset", "dataset.rng"),
    sampler_with_fresh_randomness: ("fresh randomness when the loader is made", "order"),
    counter_of_the_class: ("state kept in the dataset", ""),
    rows_changed_in_place: ("samples are changed in place", "dataset.rows"),
    cache_of_a_function: ("a cache in the dataset", "faulty._augmented"),
    address_in_a_sample: ("the address of an object", "id()"),
    file_that_workers_share: ("an open file that the workers share", "dataset.file"),
    stream_that_counts: ("state kept in the dataset", "dataset.count"),
    stream_whose_state_forgets: ("the stream's state is incomplete", "load_state_dict"),
    plain_loader_without_a_seed: ("unseeded torch random when the loader is made", "order"),
    batches_out_of_order: ("in_order=False", "which varies"),
    plain_loader_with_augmentation: (
        "global generators missing from the state",
        "Python's random",
    ),
}
