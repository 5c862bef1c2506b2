"""Streams of other libraries resume exactly, or are refused with the cause (C10, C12)."""

from __future__ import annotations

import io
import itertools
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from budgets import slow
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from dataporter import ResumableDataLoader, StateMismatchError

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTH = 40
workers = pytest.mark.parametrize("workers", [0, *slow(1), 2])


def loader_of(dataset: Any, workers: int) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(dataset, 4, seed=1, num_workers=workers, collate_fn=list)


def numbers(batches: Any) -> list[list[int]]:
    return [
        [found["number"] if isinstance(found, dict) else int(found) for found in batch]
        for batch in batches
    ]


def check(make: Callable[[], Any], workers: int, *, exact: bool) -> None:
    """That a pass is torch's, and a resume exact, or refused."""
    expected = numbers(loader_of(make(), workers))
    torchs = numbers(DataLoader(make(), 4, num_workers=workers, collate_fn=list))
    assert sorted(itertools.chain(*expected)) == sorted(itertools.chain(*torchs))
    for stop in (5, 8):
        stopped = loader_of(make(), workers)
        seen = numbers(itertools.islice(stopped, stop))
        resumed = loader_of(make(), workers)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        if exact:
            assert seen + numbers(resumed) == expected
        else:
            with pytest.raises(StateMismatchError, match="does not repeat its samples"):
                next(iter(resumed))


class Nodes(IterableDataset[Any]):
    """torchdata's nodes, as an iterable dataset."""

    def __init__(self, sampler: Any) -> None:
        nodes = pytest.importorskip("torchdata.nodes")
        self.loader = nodes.Loader(nodes.Mapper(nodes.SamplerWrapper(sampler), int))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


@workers
def test_nodes_of_torchdata(workers: int) -> None:
    check(lambda: Nodes(SequentialSampler(range(LENGTH))), workers, exact=True)


@workers
def test_nodes_over_a_sampler_whose_order_is_in_no_state(workers: int) -> None:
    check(lambda: Nodes(RandomSampler(range(LENGTH))), workers, exact=False)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    names = [str(tmp_path / f"{shard}.tar") for shard in range(4)]
    for shard, name in enumerate(names):
        with tarfile.open(name, "w") as file:
            for number in range(shard * 10, shard * 10 + 10):
                content = str(number).encode()
                info = tarfile.TarInfo(f"{number:04d}.cls")
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return names


PIPELINES: dict[str, tuple[bool, Callable[[Any, list[str]], Any]]] = {
    "in order": (True, lambda wds, names: wds.WebDataset(names, shardshuffle=False)),
    "shuffle with a seed": (
        True,
        lambda wds, names: wds.WebDataset(names, shardshuffle=False).compose(
            wds.shuffle(20, rng=random.Random(3))
        ),
    ),
    "detshuffle": (
        True,
        lambda wds, names: wds.WebDataset(names, shardshuffle=False).compose(wds.detshuffle(20)),
    ),
    "shuffle": (
        False,
        lambda wds, names: wds.WebDataset(names, shardshuffle=False).shuffle(20),
    ),
    "pipeline": (
        False,
        lambda wds, names: wds.DataPipeline(
            wds.SimpleShardList(names),
            wds.split_by_worker,
            wds.tarfile_to_samples(),
            wds.shuffle(20),
        ),
    ),
}


@pytest.mark.parametrize("pipeline", PIPELINES)
@workers
def test_pipelines_of_webdataset(pipeline: str, workers: int, shards: list[str]) -> None:
    wds = pytest.importorskip("webdataset")
    exact, make = PIPELINES[pipeline]
    numbered = wds.map(lambda found: int(found["cls"]))
    check(lambda: make(wds, shards).compose(numbered), workers, exact=exact)


def _sample(number: int) -> dict[str, int]:
    return {"number": number}


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_of_litdata(workers: int, shuffle: bool, tmp_path: Path) -> None:
    litdata = pytest.importorskip("litdata")
    folder = str(tmp_path / "data")
    litdata.optimize(
        fn=_sample, inputs=list(range(LENGTH)), output_dir=folder, chunk_size=5, num_workers=1
    )
    check(lambda: litdata.StreamingDataset(folder, shuffle=shuffle), workers, exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_streams_of_mosaicml(workers: int, shuffle: bool, tmp_path: Path) -> None:
    streaming = pytest.importorskip("streaming", exc_type=ImportError)
    folder = str(tmp_path / "data")
    with streaming.MDSWriter(out=folder, columns={"number": "int"}, size_limit=200) as writer:
        for number in range(LENGTH):
            writer.write({"number": number})

    def stream() -> Any:
        streaming.base.util.clean_stale_shared_memory()
        return streaming.StreamingDataset(local=folder, shuffle=shuffle, batch_size=4)

    check(stream, workers, exact=True)
