"""Shares of a wrapped stream of plain tables are read by blocks: the same samples, exact states."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from typing import Any

import datasets
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Value
from hypothesis import given
from hypothesis import strategies as st
from subjects import digest

from dataporter import UnifiedHFDatasetWrapper
from dataporter.hf.blocks import BLOCK, has_blocks

whole_numbers = st.integers(-100, 100)


def maybe(values: Any) -> Any:
    return st.none() | values


# By feature, the values that a column of it may hold.
COLUMNS: dict[str, tuple[Any, Any]] = {
    "int8": (Value("int8"), whole_numbers),
    "int64 or null": (Value("int64"), maybe(whole_numbers)),
    "float32": (Value("float32"), st.floats(-9, 9, width=32)),
    "float64 or null": (Value("float64"), maybe(st.floats(-9, 9))),
    "bool": (Value("bool"), st.booleans()),
    "string": (Value("string"), maybe(st.text(max_size=3))),
    "label": (ClassLabel(names=["a", "b"]), st.integers(0, 1)),
    "list": (List(Value("int16")), st.lists(whole_numbers, max_size=3)),
    "list or null": (List(Value("int32")), maybe(st.lists(maybe(whole_numbers), max_size=3))),
    "fixed list": (List(Value("int32"), length=2), st.tuples(whole_numbers, whole_numbers)),
    "lists": (List(List(Value("float32"))), st.lists(st.lists(st.just(0.5)), max_size=3)),
    "texts": (List(Value("string")), st.lists(st.text(max_size=2), max_size=3)),
    "array": (
        Array2D((2, 1), "int32"),
        st.tuples(*[st.tuples(whole_numbers)] * 2).map(lambda rows: [list(row) for row in rows]),
    ),
    "struct": (
        {"x": Value("int32"), "y": List(Value("float32"))},
        st.fixed_dictionaries({"x": whole_numbers, "y": st.lists(st.just(1.5), max_size=2)}),
    ),
}
PIPELINES: dict[str, Callable[[Any], Any]] = {
    "plain": lambda stream: stream,
    "twice": lambda stream: stream.repeat(2),
    "after another": lambda stream: datasets.concatenate_datasets([stream, stream]),
    "a part": lambda stream: stream.skip(3).take(150),
    "one column": lambda stream: stream.select_columns(stream.column_names[:1]),
}


def one_by_one(stream: Any) -> list[str]:
    wrapper = UnifiedHFDatasetWrapper(stream)
    assert not wrapper._is_share
    return [digest(sample) for sample in wrapper]


@given(data=st.data(), shards=st.integers(1, 3), pipeline=st.sampled_from(sorted(PIPELINES)))
def test_a_share_has_the_samples_of_the_stream(data: Any, shards: int, pipeline: str) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3))
    features = Features({name: COLUMNS[name][0] for name in names})
    rows = {
        name: data.draw(st.lists(COLUMNS[name][1], min_size=4, max_size=4)) for name in features
    }
    # More rows than a block has.
    table = Dataset.from_dict({name: values * 25 for name, values in rows.items()}, features)

    def stream() -> Any:
        return PIPELINES[pipeline](table.to_iterable_dataset(num_shards=shards))

    assert has_blocks(stream(), stream().column_names)
    expected = one_by_one(stream())
    assert [digest(sample) for sample in UnifiedHFDatasetWrapper(stream()).__whole__()] == expected
    parts = [
        [digest(sample) for sample in UnifiedHFDatasetWrapper(stream()).shard(shards, index)]
        for index in range(shards)
    ]
    if pipeline == "plain":
        assert list(itertools.chain.from_iterable(parts)) == expected


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_share_resumes_after_any_sample(pipeline: str) -> None:
    table = Dataset.from_dict({"n": list(range(170)), "l": [[n] * (n % 3) for n in range(170)]})

    def share() -> Any:
        stream = table.to_iterable_dataset(num_shards=2)
        return UnifiedHFDatasetWrapper(PIPELINES[pipeline](stream)).__whole__()

    whole = [digest(sample) for sample in share()]
    read = share()
    samples = iter(read)
    for done in range(len(whole) + 1):
        if done % 21 in (0, 1, 20) or done > len(whole) - 3:
            state = json.loads(json.dumps(read.state_dict()))
            resumed = share()
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
            assert [digest(sample) for sample in resumed] == whole[done:]
        next(samples, None)
    assert BLOCK in read.state_dict()


def test_a_state_of_the_stream_itself_loads_too() -> None:
    table = Dataset.from_dict({"n": list(range(100))})
    stream = table.to_iterable_dataset()
    for _ in itertools.islice(stream, 30):
        pass
    share = UnifiedHFDatasetWrapper(table.to_iterable_dataset()).shard(1, 0)
    share.load_state_dict(stream.state_dict())
    assert [int(sample["n"]) for sample in share] == list(range(30, 100))


def test_the_next_epoch_of_a_share_begins_at_its_start() -> None:
    table = Dataset.from_dict({"n": list(range(100))})
    share = UnifiedHFDatasetWrapper(table.to_iterable_dataset(num_shards=4)).shard(2, 1)
    first = [int(sample["n"]) for sample in share]
    state = None
    for sample in share:
        if int(sample["n"]) == first[9]:
            state = share.state_dict()
            break
    assert state is not None
    share.load_state_dict(state)
    assert [int(sample["n"]) for sample in share] == first[10:]
    assert [int(sample["n"]) for sample in share] == first
    share.set_epoch(1)
    assert sorted(int(sample["n"]) for sample in share) == first
    assert len(pickle.loads(pickle.dumps(share))._stream.features) == 1


def test_a_sample_has_memory_of_its_own() -> None:
    table = Dataset.from_dict({"n": list(range(70)), "l": [{"x": [n, n]} for n in range(70)]})
    (sample, *_) = UnifiedHFDatasetWrapper(table.to_iterable_dataset()).shard(1, 0)
    for tensor in (sample["n"], sample["l"]["x"]):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize(
    "stream",
    [
        lambda rows: rows.map(dict),
        lambda rows: rows.filter(bool),
        lambda rows: rows.shuffle(seed=1, buffer_size=2),
        lambda rows: rows.cast_column("n", Image()),
        lambda rows: rows.cast_column("n", Value("timestamp[s]")),
        lambda rows: datasets.interleave_datasets([rows, rows]),
    ],
)
def test_functions_and_decoders_are_left_to_the_library(stream: Any) -> None:
    rows = stream(Dataset.from_dict({"n": [1, 2]}).to_iterable_dataset())
    assert not has_blocks(rows, rows.column_names)
    assert torch.equal(next(iter(UnifiedHFDatasetWrapper(rows_of_one()).shard(1, 0)))["n"], ONE)


ONE = torch.tensor(1)


def rows_of_one() -> Any:
    return Dataset.from_dict({"n": [1]}).to_iterable_dataset()
