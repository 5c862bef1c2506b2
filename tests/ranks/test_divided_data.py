"""Divided data: ranks that each hold a part of the data by hand are found out (C7, C12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset as Table
from datasets.distributed import split_dataset_by_node
from torch.utils.data import Dataset, IterableDataset, RandomSampler, Subset, TensorDataset
from worlds import outcome, ranks_of

from dataporter import ResumableDataLoader, ShuffledStream, UnifiedHFDatasetWrapper

LENGTH = 24
FILES = [f"/data/part-{number:03}.txt" for number in range(LENGTH)]


class Files(Dataset[str]):
    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> str:
        return self.files[index].rpartition("/")[2]


class FileStream(IterableDataset[str]):
    def __init__(self, files: list[str]) -> None:
        self.files = files

    @property
    def num_shards(self) -> int:
        return len(self.files)

    def shard(self, num_shards: int, index: int) -> FileStream:
        return FileStream(self.files[index::num_shards])

    def __iter__(self) -> Iterator[str]:
        for file in self.files:
            yield file.rpartition("/")[2]


class Unsplit(IterableDataset[str]):
    """Each worker iterates over it."""

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)


def _table() -> Any:
    return Table.from_dict({"n": list(range(LENGTH))})


def _rows() -> Any:
    return _table().to_iterable_dataset(num_shards=12)


# What each rank holds, of (rank, number of ranks).
DIVIDED: dict[str, Callable[[int, int], Any]] = {
    "a subset of a list": lambda r, w: Subset(Files(FILES), list(range(r, LENGTH, w))),
    "a subset of a range": lambda r, w: Subset(Files(FILES), range(r, LENGTH, w)),
    "unequal subsets": lambda r, w: Subset(Files(FILES), range(r, LENGTH - 1, w)),
    "a list of files": lambda r, w: Files(FILES[r::w]),
    "a slice of a tensor": lambda r, w: TensorDataset(torch.arange(LENGTH)[r::w]),
    "a shard of a table": lambda r, w: _table().shard(w, r),
    "a wrapped shard of a table": lambda r, w: UnifiedHFDatasetWrapper(_table().shard(w, r)),
    "a stream of files": lambda r, w: FileStream(FILES[r::w]),
    "a shard of rows": lambda r, w: _rows().shard(w, r),
    "a wrapped shard of rows": lambda r, w: UnifiedHFDatasetWrapper(_rows().shard(w, r)),
    "a shuffled shard of rows": lambda r, w: ShuffledStream(_rows().shard(w, r), window=4),
    "rows in another order on each rank": lambda r, w: _rows().shuffle(),
    "a shuffled stream of files": lambda r, w: ShuffledStream(FileStream(FILES[r::w]), window=4),
}


# Equal data, which must raise no false alarm.
ALIKE: dict[str, Callable[[int, int], Any]] = {
    "files in another folder": lambda r, w: Files([f"/node{r}{file}" for file in FILES]),
    "a stream in another folder": lambda r, w: FileStream([f"/node{r}{file}" for file in FILES]),
    "the same table": lambda r, w: _table(),
    "the same rows": lambda r, w: _rows().map(dict).shuffle(seed=3),
    "rows that were split by node": lambda r, w: split_dataset_by_node(_rows(), r, w),
    "a stream that is not divided": lambda r, w: Unsplit(FILES[r::w]),
}


def building_rank() -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()

    def read(dataset: Any, **arguments: Any) -> list[Any]:
        return list(ResumableDataLoader(dataset, 1, seed=1, **arguments))

    found = {
        name: outcome(lambda make=make: read(make(rank, size)))
        for name, make in {**DIVIDED, **ALIKE}.items()
    }
    part = Files(FILES[rank::size])
    found["a sampler"] = outcome(lambda: read(part, sampler=RandomSampler(part)))
    found["alone"] = read(part, rank=0, world_size=1)
    found["named"] = outcome(lambda: len(read(part, fingerprint="by hand")))
    stream = FileStream(FILES[rank::size])
    found["a named stream"] = outcome(lambda: len(read(stream, fingerprint="by hand")))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_that_hold_parts_of_the_data_all_raise_and_are_told_what_to_write(
    world: int,
) -> None:
    ranks = ranks_of(world, building_rank)
    for name in (*DIVIDED, "a sampler"):
        for rank in ranks:
            assert rank[name][0] == "RankMismatchError", name
            message = rank[name][1]
            assert "pass the whole dataset on every rank" in message
            assert "rank=0, world_size=1" in message
            assert "fingerprint='my-data'" in message
    for name in ALIKE:
        assert all(isinstance(rank[name], list) for rank in ranks), name
    alone = [batch[0] for rank in ranks for batch in rank["alone"]]
    assert sorted(alone) == sorted(file.rpartition("/")[2] for file in FILES)
    # The user's word that the data are the same: each rank has its share of its own.
    assert {rank["named"] for rank in ranks} == {LENGTH // world**2 + (LENGTH % world**2 > 0)}
    assert sum(rank["a named stream"] for rank in ranks) == LENGTH // world
