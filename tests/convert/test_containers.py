"""Containers, arrays and samples: each keeps its type and other content."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch
from example_batches import Batches, Frozen, Metres, Pair, Slotted, Words, walked

from dataporter import (
    ConfigurationError,
    KeyBasedDtypeConverter,
)

# ---- real containers


def test_containers_of_all_kinds_keep_their_type_and_other_content() -> None:
    def leaves() -> dict[str, Any]:
        return {"image": torch.rand(2, 3), "label": torch.arange(2)}

    words = Words(leaves(), note="kept")
    ordered = collections.OrderedDict(leaves())
    defaults = collections.defaultdict(list, leaves())
    for batch in [
        Pair(**leaves()), Frozen(**leaves()), Slotted(**leaves()), words, ordered, defaults,
        types.MappingProxyType(leaves()), leaves(),
    ]:  # fmt: skip
        converter = KeyBasedDtypeConverter({"label": "int32"})
        converted = converter.convert_batch(batch)
        assert type(converted) is type(batch)
        was, now = walked(batch), walked(converted)
        assert now["label",].dtype is torch.int32
        assert was["label",].dtype is torch.int64
        assert now["image",] is was["image",]
        assert walked(converter.widen(converted))["label",].dtype is torch.int64
    assert KeyBasedDtypeConverter({"label": "int8"}).convert_batch(words).note == "kept"
    assert KeyBasedDtypeConverter({"label": "int8"}).convert_batch(defaults).default_factory is list
    nested = Batches([leaves(), (leaves(), [leaves()])])
    converted = KeyBasedDtypeConverter({"[1][1][0].label": "int8"}).convert_batch(nested)
    assert type(converted) is Batches
    assert converted[0] is nested[0]
    assert converted[1][1][0]["label"].dtype is torch.int8


class Twin(tuple[Any, ...]):
    def __new__(cls, one: Any, other: Any) -> Twin:
        return super().__new__(cls, (one, other))


class Fixed(collections.abc.Mapping[str, Any]):
    def __init__(self, *, x: Any) -> None:
        self.x = x

    def __getitem__(self, key: str) -> Any:
        return {"x": self.x}[key]

    def __iter__(self) -> Any:
        return iter("x")

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Twin(torch.ones(1), torch.ones(1)), "a Twin cannot.*missing 1.*take one sequence"),
        (Fixed(x=torch.ones(1)), "a Fixed cannot.*positional.*take one mapping"),
    ],
)
def test_a_container_that_cannot_be_rebuilt_is_named(batch: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        KeyBasedDtypeConverter({"*": "float16"}).convert_batch(batch)
    untouched = {"batch": batch, "y": torch.ones(1)}
    assert KeyBasedDtypeConverter({"y": "float16"}).convert_batch(untouched)["batch"] is batch


def test_a_tensordict_keeps_its_type_and_batch_size() -> None:
    tensordict = pytest.importorskip("tensordict")
    batch = tensordict.TensorDict(
        {"ids": torch.arange(6).view(3, 2), "inner": {"image": torch.ones(3, 4)}}, batch_size=[3]
    )
    converter = KeyBasedDtypeConverter({"ids": "int32", "inner.image": "float16"})
    converted = converter.convert_batch(batch)
    assert type(converted) is type(batch)
    assert converted.batch_size == batch.batch_size
    assert converted["ids"].dtype is torch.int32
    assert converted["inner", "image"].dtype is torch.float16
    assert batch["ids"].dtype is torch.int64
    assert (converter.widen(converted) == batch).all()


def test_a_tokenizers_batch_keeps_its_type() -> None:
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding(
        {"input_ids": torch.arange(6).view(2, 3), "attention_mask": torch.ones(2, 3).long()}
    )
    converted = KeyBasedDtypeConverter({"*": "uint8"}).convert_batch(batch)
    assert type(converted) is type(batch)
    assert converted.input_ids.dtype is torch.uint8
    assert batch.input_ids.dtype is torch.int64


@dataclasses.dataclass
class Counted:
    labels: Any
    runs: int = 0

    def __post_init__(self) -> None:
        self.runs += 1


def test_a_dataclass_is_not_initialised_again() -> None:
    batch = Counted(torch.arange(3))
    assert KeyBasedDtypeConverter({"labels": "int8"}).convert_batch(batch).runs == batch.runs == 1


# ---- arrays and samples


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6, dtype=">i4"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6)[::-1],
        np.array(3),
        np.broadcast_to(np.arange(2), (3, 2)),
    ],
)
def test_arrays_stay_arrays(array: Any) -> None:
    array.flags.writeable = False
    converter = KeyBasedDtypeConverter({"x": np.float32}, strict=True)
    converted = converter.convert_batch({"x": array})["x"]
    assert type(converted) is np.ndarray
    assert converted.dtype == np.float32
    np.testing.assert_array_equal(converted, array)
    wide = converter.widen({"x": converted})["x"]
    assert wide.dtype == array.dtype.newbyteorder("=")


def test_an_array_cannot_have_a_dtype_that_numpy_lacks() -> None:
    with pytest.raises(ConfigurationError, match="NumPy has no bfloat16"):
        KeyBasedDtypeConverter({"x": "bfloat16"}).convert_batch({"x": np.ones(3)})


def test_arrays_that_torch_has_no_dtype_for_are_kept() -> None:
    converter = KeyBasedDtypeConverter({"**": "float16"})
    batch = {"x": np.array(["a"]), "y": np.array([{}]), "z": torch.ones(1)}
    converted = converter.convert_batch(batch)
    assert converted["x"] is batch["x"]
    assert converted["y"] is batch["y"]
    assert converted["z"].dtype is torch.float16


@pytest.mark.parametrize(
    "made", [np.ma.masked_array([1, 2], mask=[0, 1]), np.arange(2).view(Metres)]
)
def test_subclasses_of_arrays_are_kept(made: Any) -> None:
    converter = KeyBasedDtypeConverter({"x": "int16"})
    with pytest.warns(RuntimeWarning, match=r"'x' \(int64, which torch cannot hold\)"):
        assert converter.convert_batch({"x": made})["x"] is made


def test_a_field_of_packed_records_is_converted() -> None:
    records = np.zeros(3, dtype=[("packed", "u1"), ("x", "f8")])
    records["x"] = range(3)
    converter = KeyBasedDtypeConverter({"x": "float16"}, strict=True)
    converted = converter.convert_batch({"x": records["x"]})["x"]
    assert converted.dtype == np.float16
    assert converted.tolist() == [0, 1, 2]


def test_numbers_of_a_sample_are_converted_before_collation() -> None:
    converter = KeyBasedDtypeConverter({"label": "int32", "weight": "float16", "seen": "uint8"})
    samples = [
        converter.convert_sample(
            {"label": number, "weight": np.float64(0.5), "seen": True, "name": "x"}
        )
        for number in range(3)
    ]
    assert type(samples[0]["weight"]) is np.float16
    batch = torch.utils.data.default_collate(samples)
    assert batch["label"].tolist() == [0, 1, 2]
    dtypes = {name: leaf.dtype for name, leaf in batch.items() if name != "name"}
    assert dtypes == {"label": torch.int32, "weight": torch.float16, "seen": torch.uint8}
    wide = converter.widen(batch)
    assert wide["label"].dtype is torch.int64
    assert wide["weight"].dtype is torch.float64
    assert wide["seen"].dtype is torch.bool
    # In a batch, a plain number is not a leaf.
    with pytest.warns(RuntimeWarning, match="matched no tensor"):
        assert converter.convert_batch({"label": 3}) == {"label": 3}


def test_bits_can_be_packed_before_collation() -> None:
    converter = KeyBasedDtypeConverter({"mask": "bits"})
    masks = [torch.tensor([1, 0, 1, 1, 0]), torch.tensor([0, 0, 1, 1, 1])]
    samples = [converter.convert_sample({"mask": mask}) for mask in masks]
    batch = torch.utils.data.default_collate(samples)
    assert torch.equal(converter.widen(batch)["mask"], torch.stack(masks))
