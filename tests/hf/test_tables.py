"""Tables: the wrapper gives the dataset's values, as tensors, batch by batch."""

from __future__ import annotations

import datetime
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    Features,
    Image,
    LargeList,
    List,
    Sequence,
    Translation,
    Value,
)
from example_tables import mixed, plain, saved
from hypothesis import given
from hypothesis import strategies as st
from subjects import digest
from torch.utils.data import IterableDataset, default_collate

from dataporter import (
    UnifiedHFDatasetWrapper,
    UnsupportedDatasetError,
)

hf.disable_progress_bars()


def dtypes_are_as_stored(value: Any, feature: Any) -> bool:
    if isinstance(value, dict):
        inner = feature if isinstance(feature, dict) else dict.fromkeys(value)
        return all(dtypes_are_as_stored(value[name], inner[name]) for name in value)
    if isinstance(value, list):
        return all(dtypes_are_as_stored(row, feature.feature) for row in value)
    if not isinstance(value, torch.Tensor):
        return True
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(value.dtype) == f"torch.{feature.dtype}"


# ---- any schema and table


NUMBERS = {
    "int8": st.integers(-128, 127),
    "uint16": st.integers(0, 65535),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**63 - 1),
    "float16": st.floats(width=16),
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "bool": st.booleans(),
}


OBJECTS = {
    "string": st.text(max_size=4),
    "large_string": st.text(max_size=4),
    "binary": st.binary(max_size=4),
    "date32": st.dates(),
    "timestamp[us]": st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)),
    "decimal128(6, 2)": st.integers(-9999, 9999).map(lambda n: Decimal(n).scaleb(-2)),
}


def numbers() -> st.SearchStrategy[tuple[Any, Any]]:
    return st.sampled_from(sorted(NUMBERS)).map(lambda name: (Value(name), NUMBERS[name]))


def leaves() -> st.SearchStrategy[tuple[Any, Any]]:
    objects = st.sampled_from(sorted(OBJECTS)).map(lambda name: (Value(name), OBJECTS[name]))
    label = st.just((ClassLabel(names=["no", "yes"]), st.integers(0, 1)))
    values = st.one_of(numbers(), objects, label)
    nulls = values.map(lambda leaf: (leaf[0], st.none() | leaf[1]))
    return st.one_of(values, nulls, arrays())


@st.composite
def arrays(draw: st.DrawFn) -> tuple[Any, Any]:
    dtype = draw(st.sampled_from(["int16", "float32", "bool"]))
    height = draw(st.sampled_from([None, 1, 2]))
    rows = st.lists(
        st.lists(NUMBERS.get(dtype, st.integers(-9, 9)), min_size=3, max_size=3),
        min_size=height or 1,
        max_size=height or 3,
    )
    return Array2D((height, 3), dtype), rows


def containers(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    def lists(content: tuple[Any, Any], kind: str, length: int) -> tuple[Any, Any]:
        feature, values = content
        if kind == "fixed":
            return List(feature, length=length), st.lists(values, min_size=length, max_size=length)
        if kind == "even":
            return List(feature), st.lists(values, min_size=length, max_size=length)
        return (LargeList if kind == "large" else List)(feature), st.lists(values, max_size=3)

    def struct(fields: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        names = [f"f{number}" for number in range(len(fields))]
        return (
            {name: feature for name, (feature, _) in zip(names, fields)},
            st.fixed_dictionaries({name: values for name, (_, values) in zip(names, fields)}),
        )

    kinds = st.sampled_from(["fixed", "even", "ragged", "large"])
    return st.builds(lists, inner, kinds, st.integers(1, 3)) | st.lists(
        inner, min_size=1, max_size=2
    ).map(struct)


def is_array(feature: Any) -> bool:
    return hasattr(feature, "shape")


@st.composite
def tables(draw: st.DrawFn) -> Dataset:
    """A dataset in several chunks, sliced, and maybe with a mapping of its indices."""
    columns = draw(
        st.lists(st.recursive(leaves(), containers, max_leaves=3), min_size=1, max_size=3)
    )
    features = Features({f"c{number}": feature for number, (feature, _) in enumerate(columns)})
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 5))
        values = {}
        for name, (feature, value) in zip(features, columns):
            # For null arrays, datasets returns other values than it received.
            nullable = draw(st.booleans()) and not is_array(feature)
            cell = st.none() | value if nullable else value
            values[name] = draw(st.lists(cell, min_size=count, max_size=count))
        parts.append(Dataset.from_dict(values, features=features))
    dataset = hf.concatenate_datasets(parts)
    if draw(st.booleans()) and len(dataset) > 2:
        dataset = dataset.select(range(1, len(dataset)))
    if draw(st.booleans()):
        chosen = st.lists(st.integers(0, len(dataset) - 1), min_size=1, max_size=6)
        dataset = dataset.select(draw(chosen))
    return dataset


@given(tables())
def test_rows_are_those_of_the_dataset_and_batches_those_of_the_rows(dataset: Dataset) -> None:
    wrapper = UnifiedHFDatasetWrapper(dataset)
    length = len(dataset)
    assert len(wrapper) == length
    samples = [wrapper[index] for index in range(length)]
    for index, sample in enumerate(samples):
        assert plain(sample) == plain(dataset[index])
        assert all(dtypes_are_as_stored(sample[name], dataset.features[name]) for name in sample)
    assert digest(wrapper[-1]) == digest(samples[-1])
    order = [*range(length - 1, -1, -1), 0]
    together = wrapper.__getitems__(order)
    assert [digest(sample) for sample in together] == [digest(samples[index]) for index in order]
    batch = wrapper.__getbatch__(np.array(order))
    assert digest(batch) == digest(wrapper.collate(together))
    for wrong in (length, -length - 1):
        with pytest.raises(IndexError):
            wrapper[wrong]
        with pytest.raises(IndexError):
            wrapper.__getitems__([0, wrong])


@given(tables())
def test_a_stream_of_the_rows_gives_the_same_samples(dataset: Dataset) -> None:
    samples = UnifiedHFDatasetWrapper(dataset.flatten_indices())
    stream = UnifiedHFDatasetWrapper(dataset.to_iterable_dataset())
    assert isinstance(stream, IterableDataset)
    assert [digest(sample) for sample in stream] == [
        digest(samples[index]) for index in range(len(samples))
    ]


def test_values_that_torch_can_collate_are_collated_as_in_torch() -> None:
    wrapper = UnifiedHFDatasetWrapper(mixed())
    batch = wrapper.__getbatch__(np.array([3, 1, 20]))
    assert digest(batch) == digest(default_collate(wrapper.__getitems__([3, 1, 20])))
    assert batch["ids"].dtype is torch.int32
    assert batch["mask"].shape == (3, 4)
    assert batch["inner"]["name"]["y"] == ["y3", "y1", "y20"]


def test_the_values_are_those_of_the_numpy_and_torch_formats() -> None:
    dataset = mixed().remove_columns(["text", "inner"])
    wrapper = UnifiedHFDatasetWrapper(dataset)
    for format_name in ("numpy", "torch"):
        formatted = dataset.with_format(format_name)
        for index in range(len(dataset)):
            assert plain(wrapper[index]) == plain(formatted[index])


@pytest.mark.parametrize("in_memory", [False, True])
def test_tables_of_any_origin(tmp_path: Path, in_memory: bool) -> None:
    files = saved(mixed(2500), tmp_path / "files")
    if in_memory:
        files = hf.load_from_disk(tmp_path / "files", keep_in_memory=True)
    beside = Dataset.from_dict({"extra": [str(n) for n in range(2500)]})
    many = {
        "files": files,
        "shuffled": files.shuffle(seed=1),
        "filtered": files.filter(lambda row: row["label"] == 1),
        "twice": files.shuffle(seed=1).select(range(5, 900)).shuffle(seed=2),
        "one after the other": hf.concatenate_datasets([files, mixed(5).shuffle(seed=3), files]),
        "beside": hf.concatenate_datasets([files, beside], axis=1),
        "sorted": files.sort("text"),
        "flat": files.flatten(),
        "sharded": files.shard(7, 3),
        "renamed": files.rename_column("ids", "tokens").cast_column("mask", List(Value("int64"))),
    }
    rng = random.Random(0)
    for name, dataset in many.items():
        wrapper = UnifiedHFDatasetWrapper(dataset)
        rows = [0, len(dataset) - 1, *(rng.randrange(len(dataset)) for _ in range(60))]
        for row, sample in zip(rows, wrapper.__getitems__(rows)):
            assert plain(sample) == plain(dataset[row]), name


def test_nulls_and_values_that_torch_cannot_collate_are_lists() -> None:
    rows = {
        "n": [1, None, 3],
        "ragged": [[1], [2, 3], []],
        "words": [["a", "b"], ["c", "d"], ["e", "f"]],
        "struct": [{"x": 1}, None, {"x": 3}],
        "holes": [[1, None], [2, 3], [4, 5]],
        "nothing": [None, None, None],
        "boxes": [[{"x": 1, "t": "a"}], [], [{"x": 2, "t": "b"}]],
        "when": [datetime.date(2020, 1, 1)] * 3,
    }
    dataset = Dataset.from_dict(rows)
    batch = UnifiedHFDatasetWrapper(dataset).__getbatch__(np.arange(3))
    assert batch["n"] == [torch.tensor(1), None, torch.tensor(3)]
    assert [row.tolist() for row in batch["ragged"]] == [[1], [2, 3], []]
    assert batch["words"] == [["a", "b"], ["c", "d"], ["e", "f"]]  # not transposed
    assert batch["struct"][1] is None
    assert batch["holes"][0] == [torch.tensor(1), None]
    assert torch.equal(batch["holes"][1], torch.tensor([2, 3]))
    assert batch["nothing"] == [None] * 3
    assert plain(batch["boxes"]) == plain(dataset["boxes"][:])
    # Rows that happen to have one length are a tensor, as in torch.
    even = UnifiedHFDatasetWrapper(dataset).__getbatch__(np.array([0, 0]))
    assert torch.equal(even["ragged"], torch.tensor([[1], [1]]))
    assert torch.equal(even["n"], torch.tensor([1, 1]))


def test_an_empty_list_is_the_same_whatever_its_neighbours_are() -> None:
    rows = [[[1, 2]], [], [[3, 4], [5, 6]]]
    several = [*rows, [[7], [8, 9]]]
    for boxes, order in ((rows, [0, 1, 2]), (several, [0, 1, 3]), (several, [1, 1])):
        wrapper = UnifiedHFDatasetWrapper(Dataset.from_dict({"boxes": boxes}))
        assert wrapper[1]["boxes"].shape == (0, 0)
        together = wrapper.__getitems__(order)
        assert [digest(row) for row in together] == [digest(wrapper[index]) for index in order]


def test_features_with_special_readers() -> None:
    features = Features(
        {
            "translation": Translation(["de", "en"]),
            "old": Sequence({"x": Value("int16"), "t": Value("string")}),
            "image": Image(decode=False),
            "json": hf.Json(),
        }
    )
    dataset = Dataset.from_dict(
        {
            "translation": [{"de": "eins", "en": "one"}, {"de": "zwei", "en": "two"}],
            "old": [{"x": [1, 2], "t": ["a", "b"]}, {"x": [], "t": []}],
            "image": [{"bytes": b"i", "path": None}] * 2,
            "json": [{"a": [1, "b"]}, {"c": None}],
        },
        features=features,
    )
    wrapper = UnifiedHFDatasetWrapper(dataset)
    for index in range(2):
        assert plain(wrapper[index]) == plain(dataset[index])
    assert wrapper[0]["old"]["x"].dtype is torch.int16
    batch = wrapper.__getbatch__(np.arange(2))
    assert batch["translation"] == {"de": ["eins", "zwei"], "en": ["one", "two"]}
    sounds = Dataset.from_dict({"audio": [{"bytes": b"a", "path": "p"}]})
    if not hf.config.TORCHCODEC_AVAILABLE:  # the message of datasets reaches the user
        with pytest.raises(ImportError, match="torchcodec"):
            UnifiedHFDatasetWrapper(sounds.cast_column("audio", hf.Audio()))[0]
    stored = UnifiedHFDatasetWrapper(sounds.cast_column("audio", hf.Audio(decode=False)))
    assert stored[0] == {"audio": {"bytes": b"a", "path": "p"}}


def test_an_array_that_contradicts_its_feature_is_an_error() -> None:
    import pyarrow as pa

    kind = Array2D((2, 2), "int32")()
    storage = pa.array([[[1, 2], [3, 4]], [[1, 2], [3]]], kind.storage_type)
    table = pa.table({"a": pa.ExtensionArray.from_storage(kind, storage)})
    wrapper = UnifiedHFDatasetWrapper(Dataset(table))
    assert wrapper[0]["a"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(UnsupportedDatasetError, match="shape"):
        wrapper[1]
