"""Columns: images, conversions and padding; and errors of the arguments."""

from __future__ import annotations

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
    DatasetDict,
    Features,
    Image,
    List,
    Value,
)
from example_tables import TEXTS, mixed, plain
from PIL import Image as Pillow
from subjects import digest
from torch.utils.data import DataLoader

from dataporter import (
    ConfigurationError,
    LossyConversionError,
    ResumableDataLoader,
    UnifiedHFDatasetWrapper,
    UnsupportedDatasetError,
    create_resumable_dataloader,
)

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
