"""Hugging Face datasets: the wrapper gives the dataset's values, as tensors, batch by batch."""

from __future__ import annotations

import datetime
import math
import pickle
import random
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from budgets import slow
from datasets import (
    Array2D,
    Array3D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    LargeList,
    List,
    Sequence,
    Translation,
    Value,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from subjects import digest
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from dataporter import (
    ConfigurationError,
    LossyConversionError,
    ResumableDataLoader,
    StateMismatchError,
    UnifiedHFDatasetWrapper,
    UnsupportedDatasetError,
    create_resumable_dataloader,
    memory_report,
)
from dataporter.hf import snapshots_are_exact

hf.disable_progress_bars()


def plain(value: Any) -> Any:
    """Tensors, arrays and images as Python objects; nan as a value that equals itself."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Pillow.Image):
        pixels = np.asarray(value.convert("L") if value.mode == "1" else value)
        return (pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)).tolist()
    return "nan" if isinstance(value, float) and math.isnan(value) else value


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


def mixed(length: int = 23, first: int = 0) -> Dataset:
    features = Features(
        {
            "ids": List(Value("int32")),
            "mask": List(Value("int8"), length=4),
            "flag": Value("bool"),
            "text": Value("string"),
            "inner": {"x": Value("float32"), "name": {"y": Value("string")}},
            "grid": Array3D((1, 2, 2), "uint8"),
            "label": ClassLabel(names=["a", "b"]),
        }
    )
    numbers = range(first, first + length)
    return Dataset.from_dict(
        {
            "ids": [list(range(n, n + 5)) for n in numbers],
            "mask": [[n % 2, 1, 0, 1] for n in numbers],
            "flag": [n % 3 == 0 for n in numbers],
            "text": [f"text {n}" for n in numbers],
            "inner": [{"x": n / 2, "name": {"y": f"y{n}"}} for n in numbers],
            "grid": [[[[n % 256, 1], [2, 3]]] for n in numbers],
            "label": [n % 2 for n in numbers],
        },
        features=features,
    )


def saved(dataset: Dataset, path: Path, shards: int = 3) -> Dataset:
    dataset.save_to_disk(path, num_shards=shards)
    return hf.load_from_disk(path)


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


# ---- images


def picture(mode: str, size: tuple[int, int] = (5, 4)) -> Pillow.Image:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        return Pillow.fromarray(rng.integers(0, 65536, size[::-1], dtype=np.uint16))
    pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Pillow.fromarray(pixels).convert(mode)


def pictures(*images: Any) -> Dataset:
    return Dataset.from_dict({"image": list(images)}, features=Features({"image": Image()}))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_images_are_channels_height_and_width(mode: str, tmp_path: Path) -> None:
    picture(mode).save(tmp_path / "image.tiff")
    dataset = pictures(picture(mode), str(tmp_path / "image.tiff"))
    wrapper = UnifiedHFDatasetWrapper(dataset)
    batch = wrapper.__getbatch__(np.arange(2))["image"]
    channels = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode, 1)
    assert batch.shape == (2, channels, 4, 5)
    assert batch.dtype is (torch.uint16 if mode == "I;16" else torch.uint8)
    for index in range(2):
        assert plain(wrapper[index]) == plain(dataset[index])


def test_a_float_image_is_scaled_and_a_mode_brings_all_to_the_same_channels() -> None:
    dataset = pictures(picture("L"), None, picture("RGB"))
    rules = {"image": "float16"}
    wrapper = UnifiedHFDatasetWrapper(dataset, dtype_conversions=rules, image_mode="RGB")
    batch = wrapper.__getbatch__(np.array([0, 2]))["image"]
    raw = UnifiedHFDatasetWrapper(dataset, image_mode="RGB").__getbatch__(np.array([0, 2]))
    assert torch.equal(batch, (raw["image"].float() / 255).half())
    assert wrapper[1] == {"image": None}
    deep = UnifiedHFDatasetWrapper(
        pictures(picture("I;16")), dtype_conversions={"image": "float32"}
    )
    assert 0.9 < deep[0]["image"].max() <= 1
    whole = UnifiedHFDatasetWrapper(pictures(picture("L")), dtype_conversions={"image": "int32"})
    assert whole[0]["image"].max() > 1


def test_images_of_several_sizes_and_lists_of_images() -> None:
    features = Features({"image": Image(), "frames": List(Image())})
    small, large = picture("L"), picture("L", (7, 7))
    dataset = Dataset.from_dict(
        {"image": [small, large], "frames": [[small, small], [large]]}, features=features
    )
    wrapper = UnifiedHFDatasetWrapper(dataset, dtype_conversions={"frames.*": "float32"})
    batch = wrapper.__getbatch__(np.arange(2))
    assert [tuple(image.shape) for image in batch["image"]] == [(1, 4, 5), (1, 7, 7)]
    assert [tuple(frames.shape) for frames in batch["frames"]] == [(2, 1, 4, 5), (1, 1, 7, 7)]
    assert batch["frames"][0].max() <= 1
    assert digest(batch) == digest(wrapper.collate([wrapper[0], wrapper[1]]))


def test_the_example_that_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the README, with scikit-learn's digits instead of Fashion-MNIST."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = {"image": list((digits.images * 15).astype(np.uint8)), "label": digits.target.tolist()}
    local = Dataset.from_dict(
        rows, features=Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    )
    monkeypatch.setattr(hf, "load_dataset", lambda name, split: local)

    hf_dataset = hf.load_dataset("fashion_mnist", split="train")
    dataset = UnifiedHFDatasetWrapper(
        hf_dataset, dtype_conversions={"image": "float16", "label": "int32"}
    )
    dataloader = create_resumable_dataloader(dataset, batch_size=64)
    batch = next(iter(dataloader))
    assert (batch["image"].dtype, batch["image"].shape) == (torch.float16, (64, 1, 8, 8))
    assert batch["label"].dtype is torch.int32
    assert torch.equal(batch["label"].long(), torch.from_numpy(digits.target[:64]))


# ---- conversions, columns, padding


def test_conversions_name_what_does_not_fit() -> None:
    dataset = Dataset.from_dict({"n": [1, 2, 300], "ragged": [[1], [2, 3], [4, -500]]})
    narrow = UnifiedHFDatasetWrapper(dataset, {"n": "int8", "ragged": "int16"})
    batch = narrow.__getbatch__(np.array([1, 0]))
    assert batch["n"].dtype is torch.int8
    assert {row.dtype for row in batch["ragged"]} == {torch.int16}
    for read in (
        lambda: narrow[2],
        lambda: narrow.__getitems__([0, 2]),
        lambda: narrow.__getbatch__(np.array([0, 2])),
    ):
        with pytest.raises(LossyConversionError) as raised:
            read()
        assert (raised.value.path, raised.value.value) == ("n", 300)
        assert "has index 2" in "".join(getattr(raised.value, "__notes__", []))
    ragged = UnifiedHFDatasetWrapper(dataset, {"ragged": "int8"})
    with pytest.raises(LossyConversionError) as raised:
        ragged.__getbatch__(np.array([1, 2]))
    assert raised.value.value == -500
    assert "sample 1 of the batch has index 2" in "".join(getattr(raised.value, "__notes__", []))


def test_bits_are_packed_along_each_row_or_not_at_all() -> None:
    dataset = Dataset.from_dict({"mask": [[1] * 8, [0] * 16], "flag": [True, False]})
    wrapper = UnifiedHFDatasetWrapper(dataset, {"mask": "bits"})
    assert [row.tolist() for row in wrapper.__getbatch__(np.arange(2))["mask"]] == [[255], [0, 0]]
    with pytest.raises(ConfigurationError, match="bits"):
        UnifiedHFDatasetWrapper(dataset, {"flag": "bits"}).__getbatch__(np.arange(2))


def test_columns_are_chosen_and_ordered() -> None:
    wrapper = UnifiedHFDatasetWrapper(mixed(), columns=["text", "ids"])
    assert list(wrapper[0]) == ["text", "ids"]
    assert list(wrapper.__getbatch__(np.arange(2))) == ["text", "ids"]
    formatted = mixed().with_format("torch", columns=["label", "flag"])
    assert set(UnifiedHFDatasetWrapper(formatted)[0]) == {"label", "flag"}
    everything = mixed().with_format("numpy", columns=["label"], output_all_columns=True)
    assert set(UnifiedHFDatasetWrapper(everything)[0]) == set(mixed().column_names)


TEXTS = {"input_ids": [[5, 6, 7], [8], [9, 10]], "labels": [[1, 2, 3], [4], [5, 6]]}


def test_padding_goes_to_the_longest_row_and_yields_a_mask() -> None:
    wrapper = UnifiedHFDatasetWrapper(
        Dataset.from_dict(TEXTS),
        {"attention_mask": "bool", "labels": "int16"},
        pad={"input_ids": 0, "labels": -100},
    )
    batch = wrapper.__getbatch__(np.array([0, 1]))
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["labels"].dtype is torch.int16
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert wrapper[1]["input_ids"].tolist() == [8]
    assert digest(batch) == digest(wrapper.collate([wrapper[0], wrapper[1]]))
    plain_torch = DataLoader(wrapper, 2, collate_fn=wrapper.collate)
    ours = ResumableDataLoader(wrapper, 2)
    assert [digest(batch) for batch in plain_torch] == [digest(batch) for batch in ours]
    single = wrapper.__getbatch__(np.array([1]))
    assert single["attention_mask"].tolist() == [[True]]


def test_an_existing_mask_is_padded_and_other_columns_get_their_own() -> None:
    own = Dataset.from_dict({**TEXTS, "attention_mask": [[1, 1, 0], [1], [1, 1]]})
    batch = UnifiedHFDatasetWrapper(own, pad={"input_ids": 0}).__getbatch__(np.arange(2))
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0]]
    labels = UnifiedHFDatasetWrapper(Dataset.from_dict(TEXTS), pad={"labels": 0})
    batch = labels.__getbatch__(np.arange(3))
    assert batch["labels_mask"].dtype is torch.int8
    assert batch["labels_mask"].sum(1).tolist() == [3, 1, 2]
    dynamic = Dataset.from_dict(
        {"a": [[[1, 2]], [[3, 4], [5, 6]]]}, features=Features({"a": Array2D((None, 2), "int32")})
    )
    padded = UnifiedHFDatasetWrapper(dynamic, pad={"a": 0}).__getbatch__(np.arange(2))["a"]
    assert padded.tolist() == [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"columns": ["ids", "tokens"]}, "tokens"),
        ({"columns": ["ids", "ids"]}, "twice"),
        ({"columns": "ids"}, "list of names"),
        ({"dtype_conversions": {"tokens": "int8"}}, "tokens"),
        ({"dtype_conversions": {"ids": "int7"}}, "int7"),
        ({"image_mode": "rainbow"}, "rainbow"),
        ({"pad": {"tokens": 0}}, "tokens"),
        ({"pad": {"text": 0}}, "can be padded"),
        ({"pad": {"ids": "0"}}, "expected a number"),
        ({"batched": True}, "transform"),
    ],
)
def test_arguments_that_are_wrong_are_named(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        UnifiedHFDatasetWrapper(mixed(), **arguments)


def test_values_that_cannot_be_padded_are_errors() -> None:
    ids = Dataset.from_dict(
        {"ids": [[1, 2], [3], None]}, features=Features({"ids": List(Value("uint8"))})
    )
    with pytest.raises(ConfigurationError, match="uint8"):
        UnifiedHFDatasetWrapper(ids, pad={"ids": -1}).__getbatch__(np.arange(2))
    with pytest.raises(ConfigurationError, match="null"):
        UnifiedHFDatasetWrapper(ids, pad={"ids": 0}).__getbatch__(np.arange(3))


def test_objects_that_are_not_datasets_are_errors_that_say_what_to_do() -> None:
    splits = DatasetDict({"train": mixed(), "test": mixed()})
    with pytest.raises(UnsupportedDatasetError, match=r"\['train', 'test'\]: choose one"):
        UnifiedHFDatasetWrapper(splits)
    assert len(UnifiedHFDatasetWrapper(splits["test"])) == 23
    with pytest.raises(UnsupportedDatasetError, match="list"):
        UnifiedHFDatasetWrapper([1, 2])
    with pytest.raises(ConfigurationError, match="format has arguments"):
        UnifiedHFDatasetWrapper(mixed().with_format("torch", dtype=torch.float32))


def test_a_dataset_without_rows_has_none() -> None:
    wrapper = UnifiedHFDatasetWrapper(mixed().select([]), {"label": "int8"}, pad={"ids": 0})
    assert len(wrapper) == 0
    assert list(ResumableDataLoader(wrapper, 4)) == []


# ---- in loaders


def drawing(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "draw": torch.rand(2), "python": random.random(), "numpy": np.random.rand()}


def drawing_once(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "draw": torch.rand(len(batch["label"]))}


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


@pytest.mark.parametrize("context", ["fork", *slow("spawn")])
def test_workers_give_the_same_batches(tmp_path: Path, context: str) -> None:
    dataset = saved(mixed(150), tmp_path / "data").shuffle(seed=1)
    wrapper = UnifiedHFDatasetWrapper(dataset, {"inner.x": "float16"})
    size = len(pickle.dumps(wrapper))
    assert size < 20_000, "a mapped file travels by its path"
    inline = [digest(batch) for batch in ResumableDataLoader(wrapper, 8, shuffle=True, seed=3)]
    loader = ResumableDataLoader(
        wrapper, 8, shuffle=True, seed=3, num_workers=2, multiprocessing_context=context
    )
    assert [digest(batch) for batch in loader] == inline
    threads = ResumableDataLoader(
        wrapper, 8, shuffle=True, seed=3, num_workers=2, worker_kind="thread"
    )
    assert [digest(batch) for batch in threads] == inline


def test_the_batch_is_the_same_however_the_loader_reads() -> None:
    wrapper = UnifiedHFDatasetWrapper(mixed(40), columns=["ids", "inner", "text", "label"])
    batches = [digest(batch) for batch in ResumableDataLoader(wrapper, 8)]
    ways = {
        "torch": DataLoader(wrapper, 8),
        "torch, workers": DataLoader(wrapper, 8, num_workers=2),
        "skip": ResumableDataLoader(wrapper, 8, on_error="skip"),
        "sampler": ResumableDataLoader(wrapper, 8, sampler=range(40)),
        "subset": ResumableDataLoader(Subset(wrapper, list(range(40))), 8),
        "subset of a subset": ResumableDataLoader(
            Subset(Subset(wrapper, range(40)), torch.arange(40)), 8
        ),
        "transform": ResumableDataLoader(
            UnifiedHFDatasetWrapper(wrapper.hf_dataset, columns=wrapper.columns, transform=dict), 8
        ),
        "batched": ResumableDataLoader(
            UnifiedHFDatasetWrapper(
                wrapper.hf_dataset, columns=wrapper.columns, transform=dict, batched=True
            ),
            8,
        ),
    }
    for name, loader in ways.items():
        assert [digest(batch) for batch in loader] == batches, name
    own = ResumableDataLoader(wrapper, 8, collate_fn=as_it_is)
    assert [digest(wrapper.collate(samples)) for samples in own] == batches
    single = ResumableDataLoader(wrapper, batch_size=None)
    assert [digest(sample) for sample in single] == [digest(wrapper[n]) for n in range(40)]


def test_a_memory_report_counts_the_data_once() -> None:
    dataset = mixed(1000)
    report = memory_report(ResumableDataLoader(UnifiedHFDatasetWrapper(dataset), 8))
    (arrays,) = (held for held in report.held if held.what == "the dataset's arrays")
    assert arrays.now == dataset.data.table.nbytes


def test_a_batch_that_torch_cannot_collate_is_the_same_however_it_is_made() -> None:
    dataset = Dataset.from_dict({"n": [1, None, 3, 4], "ragged": [[1], [2, 3], [], [4]]})
    wrapper = UnifiedHFDatasetWrapper(dataset)
    batches = [digest(batch) for batch in ResumableDataLoader(wrapper, 2)]
    for loader in (
        ResumableDataLoader(wrapper, 2, on_error="skip"),
        ResumableDataLoader(Subset(wrapper, range(4)), 2),
        ResumableDataLoader(wrapper, 2, num_workers=1),
        DataLoader(wrapper, 2, collate_fn=wrapper.collate),
    ):
        assert [digest(batch) for batch in loader] == batches


@pytest.mark.parametrize("batched", [False, True])
def test_random_transforms_are_exact(batched: bool) -> None:
    wrapper = UnifiedHFDatasetWrapper(
        mixed(60), transform=drawing_once if batched else drawing, batched=batched
    )

    def loader(num_workers: int = 0) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(wrapper, 8, shuffle=True, seed=5, num_workers=num_workers)

    torch.manual_seed(1)
    whole = [digest(batch) for batch in loader()]
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "the training's generator was disturbed"
    assert len(set(whole)) == len(whole)
    begun = loader(2)
    batches = iter(begun)
    start = [digest(next(batches)) for _ in range(3)]
    resumed = loader(1)
    resumed.load_state_dict(begun.state_dict())
    assert start + [digest(batch) for batch in resumed] == whole
    if not batched:  # a sample's draw does not depend on the batch
        other = ResumableDataLoader(wrapper, 20, shuffle=True, seed=5)
        draws = [torch.cat([batch["draw"] for batch in each]) for each in (loader(), other)]
        assert torch.equal(*draws)


def test_a_transform_of_a_batch_must_keep_its_samples() -> None:
    wrapper = UnifiedHFDatasetWrapper(
        mixed(), transform=lambda batch: {"label": batch["label"][:1]}, batched=True
    )
    with pytest.raises(ConfigurationError, match="one value per sample"):
        wrapper.__getitems__([1, 2, 3])


def upper(batch: dict[str, Any]) -> dict[str, Any]:
    return {"TEXT": [text.upper() for text in batch["text"]], "draw": [torch.rand(1)]}


def test_the_with_transform_of_a_dataset_is_still_called() -> None:
    wrapper = UnifiedHFDatasetWrapper(
        mixed(30).with_transform(upper), {"draw": "float16"}, transform=lambda row: {**row, "t": 1}
    )
    loader = ResumableDataLoader(wrapper, 4, shuffle=True, seed=1)
    batches = list(loader)
    assert set(batches[0]) == {"TEXT", "draw", "t"}
    assert batches[0]["TEXT"][0].startswith("TEXT ")
    assert batches[0]["draw"].dtype is torch.float16
    workers = ResumableDataLoader(
        UnifiedHFDatasetWrapper(mixed(30).with_transform(upper), {"draw": "float16"}),
        4,
        shuffle=True,
        seed=1,
        num_workers=2,
    )
    assert [plain(batch["draw"]) for batch in workers] == [plain(b["draw"]) for b in batches]
    with pytest.raises(ConfigurationError, match="with_transform"):
        UnifiedHFDatasetWrapper(mixed().with_transform(upper), pad={"ids": 0})


# ---- the fingerprint


def test_a_state_belongs_to_the_data_it_was_taken_from(tmp_path: Path) -> None:
    dataset = saved(mixed(40), tmp_path / "data")

    def state_of(wrapper: Any) -> Any:
        loader = ResumableDataLoader(wrapper, 4, shuffle=True, seed=1)
        next(iter(loader))
        return loader.state_dict()

    state = state_of(UnifiedHFDatasetWrapper(dataset))
    same = ResumableDataLoader(
        UnifiedHFDatasetWrapper(hf.load_from_disk(tmp_path / "data"), {"ids": "int16"}),
        4,
        shuffle=True,
    )
    same.load_state_dict(state)
    for other in (
        UnifiedHFDatasetWrapper(dataset.map(lambda row: {"label": 1 - row["label"]})),
        UnifiedHFDatasetWrapper(dataset.shuffle(seed=2)),
        UnifiedHFDatasetWrapper(dataset, columns=["ids"]),
        UnifiedHFDatasetWrapper(dataset, pad={"ids": 0}),
        UnifiedHFDatasetWrapper(dataset, image_mode="L"),
    ):
        changed = ResumableDataLoader(other, 4, shuffle=True)
        with pytest.raises(StateMismatchError, match="fingerprint"):
            changed.load_state_dict(state)


FINGERPRINT = """
import sys; sys.path[:0] = {paths!r}
import test_hf
from dataporter import UnifiedHFDatasetWrapper
print(UnifiedHFDatasetWrapper(test_hf.mixed(30).shuffle(seed=1)).fingerprint)
"""


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    """Also for data made in memory, which datasets hashes."""
    code = FINGERPRINT.format(paths=[str(folder) for folder in Path(__file__).parents[:2]])
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    here = UnifiedHFDatasetWrapper(mixed(30).shuffle(seed=1)).fingerprint
    assert ran.stdout.split()[-1] == here


# ---- streams


def streamed(length: int = 24, shards: int = 4) -> Any:
    return mixed(length).to_iterable_dataset(num_shards=shards)


def doubled(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values * 2 for name, values in batch.items()}


def labelled(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": 1 - row["label"]}


PIPELINES = {
    "plain": lambda: streamed(),
    "mapped": lambda: streamed().map(labelled),
    "mapped in batches": lambda: streamed().map(doubled, batched=True, batch_size=5),
    "filtered": lambda: streamed().filter(lambda row: row["label"] == 1),
    "shards shuffled": lambda: streamed().shuffle(seed=1, buffer_size=1),
    "skipped": lambda: streamed().skip(3).take(15),
    "interleaved": lambda: hf.interleave_datasets([streamed(), streamed(12)], [0.7, 0.3], seed=2),
    "one after the other": lambda: hf.concatenate_datasets([streamed(), streamed(12)]),
    "repeated": lambda: streamed(8).repeat(2),
    "shuffled": lambda: streamed().shuffle(seed=1, buffer_size=7),
    "shuffled, then mapped": lambda: streamed().shuffle(seed=1, buffer_size=7).map(labelled),
    "tables, then batches": lambda: (
        streamed().with_format("arrow").map(lambda table: table, batched=True, batch_size=5)
    ),
}
INEXACT = {"shuffled", "shuffled, then mapped", "tables, then batches"}


@pytest.mark.parametrize("name", PIPELINES)
def test_snapshots_that_are_called_exact_are(name: str) -> None:
    make = PIPELINES[name]
    assert snapshots_are_exact(make()) == (name not in INEXACT)
    wrapper = UnifiedHFDatasetWrapper(make())
    assert wrapper.snapshots_are_exact == (name not in INEXACT)
    whole, states = [], []
    for sample in wrapper:
        whole.append(digest(sample))
        states.append(wrapper.state_dict())
    if name in INEXACT:
        return
    for step in range(0, len(whole), 3):
        resumed = UnifiedHFDatasetWrapper(make())
        resumed.load_state_dict(states[step])
        assert [digest(sample) for sample in resumed] == whole[step + 1 :]


def test_a_shuffle_buffer_really_loses_samples() -> None:
    """Why such snapshots are called inexact; if this fails, they may be loaded."""
    whole = []
    wrapper = UnifiedHFDatasetWrapper(PIPELINES["shuffled"]())
    for sample in wrapper:
        whole.append(digest(sample))
        if len(whole) == 12:
            state = wrapper.state_dict()
    resumed = UnifiedHFDatasetWrapper(PIPELINES["shuffled"]())
    resumed.load_state_dict(state)
    assert [digest(sample) for sample in resumed] != whole[12:]


def test_shards_together_are_the_stream_and_have_states() -> None:
    rules = {"label": "int8"}
    wrapper = UnifiedHFDatasetWrapper(streamed(), rules, columns=["label", "ids"], transform=dict)
    assert wrapper.num_shards == 4
    whole = [digest(sample) for sample in wrapper]
    shards = [wrapper.shard(4, index) for index in range(4)]
    assert [digest(sample) for shard in shards for sample in shard] == whole
    assert {shard.num_shards for shard in shards} == {1}
    batches = iter(shards[1])
    seen = [digest(next(batches)) for _ in range(2)]
    again = wrapper.shard(4, 1)
    again.load_state_dict(shards[1].state_dict())
    assert seen + [digest(sample) for sample in again] == whole[6:12]


def test_each_epoch_shuffles_a_stream_differently() -> None:
    wrapper = UnifiedHFDatasetWrapper(streamed().shuffle(seed=1, buffer_size=5))
    first = [digest(sample) for sample in wrapper]
    wrapper.set_epoch(1)
    second = [digest(sample) for sample in wrapper]
    assert first != second
    assert sorted(first) == sorted(second)
    assert wrapper.shard(2, 0)._stream.epoch == 1


def test_torchs_workers_split_a_stream_but_not_a_shard_of_it() -> None:
    wrapper = UnifiedHFDatasetWrapper(streamed(), columns=["label", "text"])
    texts = sorted(sample["text"] for sample in wrapper)
    loader = DataLoader(wrapper, None, num_workers=2)
    assert sorted(sample["text"] for sample in loader) == texts
    shard = wrapper.shard(4, 0)
    twice = DataLoader(shard, None, num_workers=2)
    assert sorted(sample["text"] for sample in twice) == sorted(2 * [s["text"] for s in shard])


def test_a_stream_of_unknown_features_has_64_bits_and_one_with_a_format_stored_dtypes() -> None:
    def rows() -> Any:
        for n in range(3):
            yield {"n": n, "x": n / 2, "l": [n, n], "s": str(n), "a": np.arange(2, dtype=np.int8)}

    generated = hf.IterableDataset.from_generator(rows)
    sample = list(UnifiedHFDatasetWrapper(generated))[2]
    assert (sample["n"].dtype, sample["x"].dtype) == (torch.int64, torch.float64)
    assert torch.equal(sample["l"], torch.tensor([2, 2]))
    expected = [digest(sample) for sample in UnifiedHFDatasetWrapper(streamed())]
    formatted = UnifiedHFDatasetWrapper(streamed().with_format("torch"))
    assert [digest(sample) for sample in formatted] == expected
    with pytest.raises(ConfigurationError, match="one by one"):
        UnifiedHFDatasetWrapper(streamed(), transform=dict, batched=True)
    with pytest.raises(ConfigurationError, match="tokens"):
        UnifiedHFDatasetWrapper(streamed(), columns=["tokens"])


def test_samples_of_a_stream_are_padded_when_they_are_collated() -> None:
    stream = UnifiedHFDatasetWrapper(
        Dataset.from_dict(TEXTS).to_iterable_dataset(), pad={"input_ids": 0, "labels": -100}
    )
    rows = UnifiedHFDatasetWrapper(Dataset.from_dict(TEXTS), pad={"input_ids": 0, "labels": -100})
    batch = next(iter(DataLoader(stream, 3, collate_fn=stream.collate)))
    assert digest(batch) == digest(rows.__getbatch__(np.arange(3)))


@pytest.mark.parametrize("name", ["plain", "shuffled", "mapped in batches"])
def test_the_loader_resumes_a_stream_with_its_conversions_and_padding(name: str) -> None:
    def loader(num_workers: int) -> ResumableDataLoader[Any]:
        stream = UnifiedHFDatasetWrapper(PIPELINES[name](), {"ids": "int16"}, pad={"ids": 0})
        return ResumableDataLoader(stream, 4, num_workers=num_workers)

    whole = [digest(batch) for batch in loader(2)]
    begun = loader(2)
    batches = iter(begun)
    first = next(batches)
    assert first["ids"].dtype is torch.int16
    assert first["ids_mask"].shape == first["ids"].shape
    start = [digest(first), digest(next(batches))]
    resumed = loader(2)
    resumed.load_state_dict(begun.state_dict())
    assert start + [digest(batch) for batch in resumed] == whole


# ---- without the libraries


def test_without_datasets_the_error_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['datasets'] = None\n"
        "from dataporter import MissingLibraryError, UnifiedHFDatasetWrapper\n"
        "assert not {'pyarrow', 'PIL'} & set(sys.modules)\n"
        "try:\n"
        "    UnifiedHFDatasetWrapper([])\n"
        "except ImportError as error:\n"
        "    assert type(error) is MissingLibraryError\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert 'pip install "dataporter[huggingface]"' in ran.stdout
