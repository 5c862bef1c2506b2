"""Hugging Face's streams in a loader, unchanged, with any pipeline (C8, C10)."""

from __future__ import annotations

import itertools
import json
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from budgets import slow_except

from dataporter import ResumableDataLoader, ShuffledStream, UnifiedHFDatasetWrapper

datasets = pytest.importorskip("datasets")
split_dataset_by_node = pytest.importorskip("datasets.distributed").split_dataset_by_node

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
LENGTH = 23


def rows(shards: int = 3, first: int = 0) -> Any:
    numbers = range(first, first + LENGTH)
    dataset = datasets.Dataset.from_dict(
        {"x": list(numbers), "text": [f"row {n}" for n in numbers]}
    )
    return dataset.to_iterable_dataset(num_shards=shards)


def drawing(example: dict[str, Any]) -> dict[str, Any]:
    return {"drawn": random.random()}


def drawing_for_all(batch: dict[str, Any]) -> dict[str, Any]:
    return {"drawn": [random.random() for _ in batch["x"]]}


def keeping_some(batch: dict[str, Any]) -> list[bool]:
    return [random.random() < 0.6 for _ in batch["x"]]


def twice(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: [*values, *values] for name, values in batch.items()}


async def drawing_soon(example: dict[str, Any]) -> dict[str, Any]:
    return {"drawn": random.random()}


def generated(parts: list[int]) -> Iterator[dict[str, Any]]:
    for part in parts:
        for number in range(7):
            yield {"x": 10 * part + number, "drawn": random.random()}


def mixed(**arguments: Any) -> Any:
    return datasets.interleave_datasets([rows(2), rows(3, 100)], **arguments)


PIPELINES: dict[str, Callable[[], Any]] = {
    "plain": rows,
    "map that draws": lambda: rows().map(drawing),
    "filter behind it": lambda: rows().map(drawing).filter(lambda example: example["x"] % 3),
    "batched map": lambda: rows().map(twice, batched=True, batch_size=4),
    "batched map that draws": lambda: rows().map(drawing_for_all, batched=True, batch_size=4),
    "batched map behind one that draws": lambda: (
        rows().map(drawing).map(twice, batched=True, batch_size=4)
    ),
    "batched filter that draws": lambda: rows().filter(keeping_some, batched=True, batch_size=4),
    "asynchronous map that draws": lambda: rows().map(drawing_soon),
    "generator that draws": lambda: datasets.IterableDataset.from_generator(
        generated, gen_kwargs={"parts": [0, 1, 2]}
    ),
    "batches of what draws": lambda: rows().map(drawing).batch(4),
    "shuffled": lambda: rows().shuffle(seed=3, buffer_size=5),
    "shuffled, repeated": lambda: rows().shuffle(seed=3, buffer_size=4).repeat(2),
    "interleaved": mixed,
    "interleaved by probabilities": lambda: mixed(
        probabilities=[0.3, 0.7], seed=4, stopping_strategy="all_exhausted"
    ),
    "concatenated": lambda: datasets.concatenate_datasets([rows(2).map(drawing), rows(3, 100)]),
    "skip and take": lambda: rows().skip(5).take(11),
    "tensors": lambda: rows().with_format("torch").map(drawing),
    "tables": lambda: rows().with_format("arrow").map(lambda t: t, batched=True, batch_size=4),
    "shuffled windows": lambda: ShuffledStream(rows().map(drawing), window=5),
    "shuffled windows of a batched map": lambda: ShuffledStream(
        rows().map(twice, batched=True, batch_size=4), window=5
    ),
    "shuffled windows of a batched map that draws": lambda: ShuffledStream(
        rows().map(drawing_for_all, batched=True, batch_size=4), window=3
    ),
    "a node's": lambda: split_dataset_by_node(rows().map(drawing), 1, 2),
}


def shown(batches: Any) -> list[str]:
    return [repr(batch) for batch in batches]


def loader_of(stream: Any, workers: int = 0) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(stream, 3, num_workers=workers, seed=5, collate_fn=list)


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize(
    "pipeline",
    slow_except(("plain", "map that draws", "batched map", "shuffled", "interleaved"), PIPELINES),
)
def test_a_pipeline_resumes_at_the_exact_next_sample(pipeline: str) -> None:
    build = PIPELINES[pipeline]
    whole = loader_of(build())
    expected, after = shown(whole), shown(whole)
    for stop in range(len(expected)):
        stopped = loader_of(build())
        batches = iter(stopped)
        seen = shown(itertools.islice(batches, stop))
        state = json.loads(json.dumps(stopped.state_dict()))
        del batches
        resumed = loader_of(build())
        resumed.load_state_dict(state)
        assert seen + shown(resumed) == expected, stop
        assert shown(resumed) == after, stop


@pytest.mark.parametrize("pipeline", ["batched map that draws", "shuffled", "interleaved"])
def test_other_workers_resume_it(pipeline: str) -> None:
    build = PIPELINES[pipeline]
    expected = shown(loader_of(build()))
    stopped = loader_of(build(), 2)
    seen = shown(itertools.islice(stopped, 4))
    resumed = loader_of(build(), 3)
    resumed.load_state_dict(stopped.state_dict())
    assert seen + shown(resumed) == expected


@pytest.mark.parametrize(
    ("pipeline", "replayed"),
    [
        ("batched map", False),
        ("map that draws", False),
        ("filter behind it", False),
        ("batched map that draws", True),
        ("shuffled", True),
    ],
)
def test_only_pipelines_without_an_exact_state_are_reread(pipeline: str, replayed: bool) -> None:
    loader = ResumableDataLoader(PIPELINES[pipeline](), 2, seed=5, collate_fn=list)
    for _ in itertools.islice(loader, 5):
        pass
    shards = [entry for entry in loader.state_dict()["shards"] if entry[1] > 1]
    assert shards
    assert all((entry[5] is None) == replayed for entry in shards)


def augmented(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "drawn": random.random()}


def rows_of_numbers() -> Any:
    return datasets.Dataset.from_dict({"n": range(40)}).to_iterable_dataset(num_shards=4)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_warning_says_that_threads_draw(workers: int, wrapped: bool) -> None:
    """``datasets`` reads what lies before a shuffle or an interleaving in threads."""

    def read(stream: Any) -> None:
        stream = UnifiedHFDatasetWrapper(stream) if wrapped else stream
        list(ResumableDataLoader(stream, 4, num_workers=workers, seed=1))

    rows = rows_of_numbers()
    with pytest.warns(RuntimeWarning, match="draws random numbers in a step before shuffle"):
        read(rows.map(augmented).shuffle(seed=1, buffer_size=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(rows.shuffle(seed=1, buffer_size=4).map(augmented))
        read(rows.map(dict).shuffle(seed=1, buffer_size=4))
        read(rows.map(augmented).shuffle(seed=1, buffer_size=4, max_buffer_input_shards=1))
