"""`KeyBasedDtypeConverter`: structure kept, values exact or an error, and all of it undone."""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import pickle
import types
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataporter import (
    ConfigurationError,
    DataPorterError,
    DevicePrefetcher,
    InvalidStateError,
    KeyBasedDtypeConverter,
    LossyConversionError,
    ResumableDataLoader,
)
from dataporter.structure import parts_of


class Pair(NamedTuple):
    image: Any
    label: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    label: Any
    made: int = dataclasses.field(default=3, init=False)


@dataclasses.dataclass
class Slotted:
    __slots__ = ("image", "label")
    image: Any
    label: Any


class Words(collections.UserDict[str, Any]):
    """A mapping that is not a dict and has another attribute, like those of tokenizers."""

    def __init__(self, data: dict[str, Any], note: str = "") -> None:
        super().__init__(data)
        self.note = note


class Metres(np.ndarray[Any, Any]):
    """A custom class of arrays."""


class Batches(list[Any]):
    """A custom list."""


# ---- the example of the README


def test_the_printed_example() -> None:
    converter = KeyBasedDtypeConverter(
        {
            "inputs.image": "float16",
            "labels": "int32",
            "attention_mask": "uint8",
        }
    )
    batch = {
        "inputs": {"image": torch.rand(4, 3, 8, 8), "text": ["a", "b", "c", "d"]},
        "labels": torch.arange(4),
        "attention_mask": torch.ones(4, 16, dtype=torch.int64),
        "id": torch.arange(4),
    }
    converted = converter.convert_batch(batch)
    assert converted["inputs"]["image"].dtype is torch.float16
    assert converted["labels"].dtype is torch.int32
    assert converted["attention_mask"].dtype is torch.uint8
    assert converted["id"] is batch["id"]
    assert converted["inputs"]["text"] is batch["inputs"]["text"]
    assert batch["labels"].dtype is torch.int64
    wide = converter.widen(converted)
    assert {name: leaf.dtype for name, leaf in wide.items() if name != "inputs"} == {
        "labels": torch.int64,
        "attention_mask": torch.int64,
        "id": torch.int64,
    }


# ---- drawn structures


LEAVES = {
    "int64": torch.int64,
    "int16": torch.int16,
    "float32": torch.float32,
    "float64": torch.float64,
    "bool": torch.bool,
    "bfloat16": torch.bfloat16,
    "uint16": torch.uint16,
    "complex64": torch.complex64,
    "float8": torch.float8_e5m2,
}
small_numbers = st.lists(
    st.sampled_from([0, 1, 2, 100, 255, 256, 40000, 2**31, -1, -129])
    | st.sampled_from([0.5, -0.0, 1e-45, 6e-8, 1e38, float("inf"), float("-inf"), float("nan")]),
    min_size=1,
    max_size=4,
)


@st.composite
def leaf(draw: st.DrawFn) -> Any:
    dtype = LEAVES[draw(st.sampled_from(sorted(LEAVES)))]
    numbers = draw(small_numbers)
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        made = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    else:
        limits = torch.iinfo(dtype)
        whole = [int(number) for number in numbers if number == number and abs(number) < 2**40]
        like = torch.empty(0, dtype=dtype).numpy().dtype
        held = [min(max(number, limits.min), limits.max) for number in whole]
        made = torch.from_numpy(np.array(held, dtype=like))
    in_numpy = dtype not in (torch.bfloat16, torch.float8_e5m2) and draw(st.booleans())
    return made.numpy() if in_numpy else made


others = st.sampled_from(["text", None, b"bytes", 3]) | st.just(torch.arange(3))
names = st.sampled_from(["image", "label", "a.b", "0", "*"])
nested = st.recursive(
    leaf() | others,
    lambda inner: (
        st.dictionaries(names, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.lists(inner, max_size=3).map(Batches)
        | st.dictionaries(names, inner, max_size=3).map(Words)
        | st.dictionaries(names, inner, max_size=3).map(types.MappingProxyType)
        | st.builds(Pair, inner, inner)
        | st.builds(Frozen, inner, inner)
    ),
    max_leaves=8,
)
paths = st.sampled_from(
    ["", "image", "*", "**", "**.image", "**.label", "[0]", "**[0]", r"a\.b", "*.label", r"**.\*"]
)
forms = st.sampled_from(["uint8", "int8", "int32", "float16", "bfloat16", "bool", "bits", "int64"])


def walked(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Every leaf and every container, by path."""
    found = {path: value}
    for part in parts_of(value) or ():
        found |= walked(part.value, (*path, part.step))
    return found


def as_numbers(leaf: Any) -> Any:
    tensor = torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf
    tensor = tensor.float() if tensor.dtype is torch.float8_e5m2 else tensor
    # Any nan equals any other.
    return ["nan" if number != number else number for number in tensor.tolist()]


def is_leaf(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray)


@given(nested, st.dictionaries(paths, forms, min_size=1, max_size=3))
def test_structure_is_kept_untouched_leaves_are_the_same_and_values_are_exact_or_an_error(
    batch: Any, rules: dict[str, str]
) -> None:
    """And widening restores values and dtypes."""
    converter = KeyBasedDtypeConverter(rules, rtol=0)
    before = walked(batch)
    kept = {path: copy.deepcopy(leaf) for path, leaf in before.items() if is_leaf(leaf)}
    conversion = converter.conversion
    refusal = ""
    try:
        converted, originals = conversion.batch(batch)
    except LossyConversionError:
        return
    except ConfigurationError as error:
        refusal = str(error)
    if refusal:
        # A tie; or an array cannot be bfloat16, and what has no dimension cannot be packed.
        named = {form.name for form in conversion.forms}
        assert "equally specific" in refusal or named & {"bfloat16", "bits"}
        return
    after = walked(converted)
    assert list(after) == list(before)
    for path, was in before.items():
        now = after[path]
        assert type(now) is type(was)
        if not is_leaf(was):
            touched = any(
                after[inner] is not before[inner]
                for inner in before
                if inner[: len(path)] == path and is_leaf(before[inner])
            )
            assert touched or now is was
            continue
        rule = conversion.matcher.rule(path)
        # The input was not modified.
        assert as_numbers(was) == as_numbers(kept[path])
        assert was.dtype == kept[path].dtype
        if rule is None:
            assert now is was
        elif conversion.forms[rule].name != "bits":
            assert as_numbers(now) == as_numbers(was)
    names: dict[int, set[str]] = {}
    for rule, name in originals:
        names.setdefault(rule, set()).add(name)
    if any(len(met - {conversion.forms[rule].name}) > 1 for rule, met in names.items()):
        return  # one rule, several dtypes: widening is refused, tested below
    if any(len(met) > 1 for met in names.values()):
        return
    converter._remember(originals)
    wide = walked(converter.widen(converted))
    assert list(wide) == list(before)
    for path, was in before.items():
        if is_leaf(was):
            assert type(wide[path]) is type(was)
            assert wide[path].dtype == was.dtype
            assert wide[path].shape == was.shape
            assert as_numbers(wide[path]) == as_numbers(was)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=70), st.integers(1, 3), st.data())
def test_bits_give_back_every_length(row: list[int], rows: int, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.bool, torch.int64, torch.uint8, torch.float32]))
    mask = torch.tensor([row[::-1], row, row][:rows]).to(dtype)
    converter = KeyBasedDtypeConverter({"mask": "bits"})
    packed = converter.convert_batch({"mask": mask})
    assert packed["mask"].dtype is (torch.int8 if len(row) % 8 else torch.uint8)
    assert packed["mask"].shape == (rows, -(-len(row) // 8))
    wide = converter.widen(packed)["mask"]
    assert wide.dtype is dtype
    assert torch.equal(wide, mask)


def test_joined_bits_of_several_lengths_are_refused() -> None:
    converter = KeyBasedDtypeConverter({"mask": "bits"})

    def packed(length: int) -> Any:
        return converter.convert_sample({"mask": torch.ones(length, dtype=torch.int64)})["mask"]

    joined = torch.stack([packed(9), packed(12)])
    padded = torch.nn.utils.rnn.pad_sequence([packed(20), packed(12)], batch_first=True)
    for rows in (joined, padded, padded.flip(0), joined[:, None]):
        with pytest.raises(ConfigurationError, match=r"'mask'.*same length"):
            converter.widen({"mask": rows})
    assert converter.widen({"mask": joined[1:]})["mask"].tolist() == [[1] * 12]


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("form", ["bits", "uint8:scale"])
@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.ones(2, 2).to_sparse(),
        lambda: torch.ones(2, 2).to_sparse_csr(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    ],
    ids=["coo", "csr", "nested", "jagged"],
)
def test_forms_that_are_not_dtypes_take_dense_tensors(made: Any, form: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"'x': form '{form}' takes dense"):
        KeyBasedDtypeConverter({"x": form}).convert_batch({"x": made()})


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 3), (1, 8), (4, 16), (7,), (0,)])
def test_bits_of_empty_masks(shape: tuple[int, ...]) -> None:
    mask = torch.ones(shape, dtype=torch.int64)
    converter = KeyBasedDtypeConverter({"mask": "bits"})
    wide = converter.widen(converter.convert_batch({"mask": mask}))["mask"]
    assert wide.shape == mask.shape
    assert torch.equal(wide, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_scaled_images_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    levels = torch.arange(256).view(1, 16, 16).repeat(2, 1, 1)
    wide_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    images = (levels.to(wide_dtype) / 255).to(dtype)
    converter = KeyBasedDtypeConverter({"": "uint8:scale"})
    narrow = converter.convert_batch(images)
    assert narrow.dtype is torch.uint8
    assert torch.equal(narrow, levels.to(torch.uint8))
    wide = converter.widen(narrow)
    assert wide.dtype is dtype
    assert torch.equal(wide, images)


def test_bytes_that_were_not_scaled_are_not_divided_when_widened() -> None:
    converter = KeyBasedDtypeConverter({"": "uint8:scale"})
    pixels = torch.tensor([0, 7, 255], dtype=torch.uint8)
    assert converter.widen(converter.convert_batch(pixels)) is pixels


def test_an_image_that_is_no_multiple_is_an_error_unless_a_tolerance_allows_it() -> None:
    image = torch.tensor([[0.0, 1.0], [1 / 255, 0.3]])
    with pytest.raises(LossyConversionError, match=r"0\.30000") as raised:
        KeyBasedDtypeConverter({"": "uint8:scale"}).convert_batch(image)
    assert raised.value.sample == 1
    with pytest.raises(LossyConversionError, match="smallest that fits is float16"):
        KeyBasedDtypeConverter({"": "uint8:scale"}).convert_batch(torch.tensor([5 / 16]))
    near = KeyBasedDtypeConverter({"": "uint8:scale"}, rtol=0.01).convert_batch(image)
    assert near.tolist() == [[0, 255], [1, 77]]
    for infinite in (float("inf"), float("-inf")):
        with pytest.raises(LossyConversionError, match="inf"):
            KeyBasedDtypeConverter({"": "uint8:scale"}, rtol=0.01).convert_batch(
                torch.tensor([infinite])
            )
    beyond = torch.tensor([-1.0, 2.0, float("nan"), 0.5])
    clipped = KeyBasedDtypeConverter({"": "uint8:scale"}, on_loss="saturate").convert_batch(beyond)
    assert clipped.tolist() == [0, 255, 0, 128]
    with pytest.raises(ConfigurationError, match="takes floats"):
        KeyBasedDtypeConverter({"": "uint8:scale"}).convert_batch(torch.tensor([1]))


def test_the_documented_savings() -> None:
    image = torch.randint(0, 256, (8, 3, 32, 32)).float().div(255)
    mask = torch.ones(8, 512, dtype=torch.int64)
    ids = torch.randint(0, 50257, (8, 512))
    cases = [(image, "float16", 0.5), (image, "uint8:scale", 0.75), (ids, "int32", 0.5),
             (mask, "uint8", 0.875), (mask, "bits", 0.984)]  # fmt: skip
    for tensor, form, saved in cases:
        narrow = KeyBasedDtypeConverter({"": form}).convert_batch(tensor)
        assert round(1 - narrow.nbytes / tensor.nbytes, 3) == saved


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


# ---- errors


def test_a_lossy_conversion_says_what_where_and_what_would_fit() -> None:
    labels = torch.zeros(4, 3, dtype=torch.int64)
    labels[2, 1] = 300
    with pytest.raises(LossyConversionError) as raised:
        KeyBasedDtypeConverter({"targets.labels": "uint8"}).convert_batch(
            {"targets": {"labels": labels}}
        )
    error = raised.value
    assert isinstance(error, ValueError)
    assert isinstance(error, DataPorterError)
    assert (error.path, error.value, error.sample) == ("targets.labels", 300, 2)
    assert (error.dtype, error.fits) == ("uint8", "int16")
    for word in ("'targets.labels'", "300", "sample 2", "[2, 1]", "int64", "uint8", "44", "int16",
                 "saturate"):  # fmt: skip
        assert word in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, again.fits) == (str(error), error.path, error.fits)


@pytest.mark.parametrize("fits", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_the_dtype_named_as_fitting_can_be_used_in_the_rule(fits: torch.dtype) -> None:
    limits = torch.iinfo(fits)
    values = torch.tensor([limits.min, limits.max])
    rule = "uint8" if fits is not torch.uint8 else "int8"
    with pytest.raises(LossyConversionError) as raised:
        KeyBasedDtypeConverter({"": rule}).convert_batch(values)
    assert raised.value.fits == str(fits).removeprefix("torch.")


def test_what_on_loss_does() -> None:
    batch = {"x": torch.tensor([300, -5, 7])}
    saturated = KeyBasedDtypeConverter({"x": "uint8"}, on_loss="saturate").convert_batch(batch)
    assert saturated["x"].tolist() == [255, 0, 7]
    wrapped = KeyBasedDtypeConverter({"x": "uint8"}, on_loss="wrap").convert_batch(batch)
    assert wrapped["x"].tolist() == [44, 251, 7]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KeyBasedDtypeConverter({"x": "float17"}), r"'x'.*'float17'.*float16"),
        (lambda: KeyBasedDtypeConverter({"x": "qint8"}), "does not cast"),
        (lambda: KeyBasedDtypeConverter({"x": None}), "None"),
        (lambda: KeyBasedDtypeConverter({"x": "U3"}), "U3"),
        (lambda: KeyBasedDtypeConverter({"x": int}), "int"),
        (lambda: KeyBasedDtypeConverter({"x..y": "int8"}), r"x\.\.y"),
        (lambda: KeyBasedDtypeConverter([{"path": "x", "dtype": "int8"}] * 2), "two rules.*'x'"),
        (lambda: KeyBasedDtypeConverter([{"path": "x"}]), r"\{'path': 'x'\}"),
        (lambda: KeyBasedDtypeConverter([{"path": "x", "dtype": "int8", "z": 1}]), "expected"),
        (lambda: KeyBasedDtypeConverter("x"), "expected"),
        (lambda: KeyBasedDtypeConverter({}, on_loss="ignore"), "on_loss='ignore'"),
        (lambda: KeyBasedDtypeConverter({}, rtol=-1), "rtol=-1"),
        (lambda: ResumableDataLoader(range(3), converter=3), "3"),
    ],
)
def test_wrong_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make()


def test_two_equally_specific_rules_are_an_error_at_the_first_leaf_that_both_fit() -> None:
    converter = KeyBasedDtypeConverter({"*.x": "int8", "y.*": "int16"})
    there = {"y": {"z": torch.arange(2)}, "z": {"x": torch.arange(2)}, "name": ["a", "b"]}
    converted = converter.convert_batch(there)
    assert (converted["y"]["z"].dtype, converted["z"]["x"].dtype) == (torch.int16, torch.int8)
    # Strings are not leaves.
    assert converter.convert_batch({"y": {"x": ["a", "b"]}}) == {"y": {"x": ["a", "b"]}}
    message = r"'\*\.x' and 'y\.\*' are equally specific, and both fit the path 'y\.x'"
    for convert in (converter.convert_batch, converter.convert_sample, converter.widen):
        with pytest.raises(ConfigurationError, match=message):
            convert({"y": {"x": torch.arange(2)}})
    with pytest.raises(ConfigurationError, match=message):
        converter.convert_sample({"y": {"x": 1}})


@pytest.mark.parametrize(
    ("num_workers", "context"), [(0, None), (1, "fork"), (1, "spawn")], ids=str
)
def test_the_tie_is_an_error_of_the_batch_in_every_worker(
    num_workers: int, context: str | None
) -> None:
    loader = ResumableDataLoader(
        {"x": torch.arange(4)}, 2, num_workers=num_workers, multiprocessing_context=context,
        converter={"**.*": "int8", "*.**": "int16"},
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match="both fit the path 'x'") as raised:
        next(iter(loader))
    assert "epoch 0, step 0" in "".join(raised.value.__notes__)
    assert loader.position == 0


def test_rules_may_be_a_list_and_dtypes_have_every_name() -> None:
    rules = json.loads('[{"path": "x", "dtype": "float16"}, {"path": "y.z", "dtype": "int32"}]')
    assert KeyBasedDtypeConverter(rules).rules == {"x": "float16", "y.z": "int32"}
    for name in ("float16", "half", "torch.float16", torch.float16, np.float16, "f2",
                 np.dtype("float16")):  # fmt: skip
        assert KeyBasedDtypeConverter({"x": name}).rules == {"x": "float16"}
    assert KeyBasedDtypeConverter({"x": "<i8", r"a\.b": "int"}).rules == {
        "x": "int64",
        r"a\.b": "int32",
    }


def test_a_rule_that_matches_nothing_is_reported_once_with_the_present_paths() -> None:
    converter = KeyBasedDtypeConverter({"label": "int32", "x": "float16"})
    batch = {"labels": torch.arange(2), "x": torch.ones(2), "name": ["a", "b"]}
    with pytest.warns(
        RuntimeWarning, match=r"'label' matched.*'labels' \(int64\).*'name\[0\]' \(s"
    ):
        converter.convert_batch(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converter.convert_batch(batch)
    strict = KeyBasedDtypeConverter({"label": "int32"}, strict=True)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"'labels' \(int64\)"):
            strict.convert_batch(batch)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_warning_points_at_the_users_line(num_workers: int) -> None:
    loader = ResumableDataLoader(ROWS, 8, num_workers=num_workers, converter={"nowhere": "int8"})
    with pytest.warns(RuntimeWarning, match="'nowhere'") as caught:
        next(iter(loader))
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(RuntimeWarning, match="'nowhere'") as caught:
        KeyBasedDtypeConverter({"nowhere": "int8"}).convert_batch({"x": torch.ones(1)})
    assert [warning.filename for warning in caught] == [__file__]


def test_widening_to_an_unknown_or_ambiguous_dtype_is_refused() -> None:
    converter = KeyBasedDtypeConverter({"*": "int32"})
    with pytest.raises(ConfigurationError, match="converted nothing there"):
        converter.widen({"x": torch.zeros(1, dtype=torch.int32)})
    batch = converter.convert_batch({"x": torch.arange(2), "y": torch.arange(2).to(torch.int16)})
    with pytest.raises(ConfigurationError, match="int64 or int16"):
        converter.widen(batch)
    # A leaf in another dtype was widened already.
    assert converter.widen({"x": torch.ones(1)})["x"].dtype is torch.float32


@pytest.mark.parametrize("order", [1, -1])
def test_leaves_that_were_narrow_already_say_nothing_about_the_others(order: int) -> None:
    converter = KeyBasedDtypeConverter({"x": "int32"})
    batches = [{"x": torch.arange(2).to(dtype)} for dtype in (torch.int32, torch.int64)]
    for batch in batches[::order]:
        converted = converter.convert_batch(batch)
    assert converter.widen(converted)["x"].dtype is torch.int64


@pytest.mark.parametrize("widen", [True, {"x": "int32"}])
def test_an_argument_that_cannot_widen_is_refused_at_once(widen: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"widen=loader\.converter"):
        DevicePrefetcher([], "cpu", widen=widen)


def test_a_rule_for_complex_numbers_warns_of_no_parts_that_are_discarded() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in ("complex64", "complex128"):
            KeyBasedDtypeConverter({"x": dtype})


# ---- the small state


def test_a_resumed_converter_widens_alike() -> None:
    rules = {"labels": "int32", "mask": "uint8"}
    batch = {"labels": torch.arange(3), "mask": torch.tensor([True, False, True])}
    first = KeyBasedDtypeConverter(rules)
    converted = first.convert_batch(batch)
    state = json.loads(json.dumps(first.state_dict()))
    assert len(json.dumps(state)) < 200
    second = KeyBasedDtypeConverter(rules)
    second.load_state_dict(state)
    wide = second.widen(converted)
    assert wide["labels"].dtype is torch.int64
    assert wide["mask"].dtype is torch.bool
    assert second.state_dict() == state


@pytest.mark.parametrize(
    "state",
    [
        None,
        {},
        {"version": 2, "originals": {}},
        {"version": 1, "originals": {"x": "int"}},
        {"version": 1, "originals": {"x": ["int99"]}},
    ],
)
def test_a_foreign_state_is_refused_and_nothing_is_applied(state: Any) -> None:
    converter = KeyBasedDtypeConverter({"x": "int8"})
    converter.convert_batch({"x": torch.arange(3)})
    before = converter.state_dict()
    with pytest.raises(InvalidStateError):
        converter.load_state_dict(state)
    assert converter.state_dict() == before


# ---- in the loader


ROWS = {
    "image": torch.randint(0, 256, (50, 3, 8, 8)).float().div(255),
    "label": torch.arange(50),
    "mask": torch.rand(50, 13) > 0.5,
}
RULES = {"image": "uint8:scale", "label": "int32", "mask": "bits"}


class Rows(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        return {name: column[index] for name, column in ROWS.items()}


@pytest.mark.parametrize("dataset", [ROWS, Rows()], ids=["columns", "rows"])
@pytest.mark.parametrize(
    ("num_workers", "worker_kind"), [(0, "process"), (2, "process"), (2, "thread")]
)
def test_every_engine_converts_and_the_widened_stream_is_the_plain_one(
    dataset: Any, num_workers: int, worker_kind: str
) -> None:
    def loader(**arguments: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            dataset, 8, shuffle=True, seed=3, num_workers=num_workers, worker_kind=worker_kind,
            **arguments,
        )  # fmt: skip

    converting = loader(converter=RULES)
    converter = converting.converter
    assert converter is not None
    plain = list(loader())
    narrow = list(converting)
    assert len(narrow) == len(plain)
    for small, batch in zip(narrow, plain):
        assert small["image"].dtype is torch.uint8
        assert small["label"].dtype is torch.int32
        assert small["mask"].shape == (len(batch["label"]), 2)
    widened = list(DevicePrefetcher(loader(converter=converter), "cpu", widen=converter))
    for wide, batch in zip(widened, plain):
        for name in ROWS:
            assert wide[name].dtype is batch[name].dtype
            assert torch.equal(wide[name], batch[name])


def test_converted_and_plain_streams_resume_each_other() -> None:
    """The converter is not part of the state: the samples are the same."""

    def loader(converter: Any) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(ROWS, 8, shuffle=True, seed=3, converter=converter)

    whole = [batch["label"].tolist() for batch in loader(None)]
    for first, second in [(RULES, None), (None, RULES), (RULES, {"label": "int16"})]:
        begun = loader(first)
        batches = iter(begun)
        seen = [next(batches)["label"].tolist() for _ in range(3)]
        resumed = loader(second)
        resumed.load_state_dict(begun.state_dict())
        assert seen + [batch["label"].tolist() for batch in resumed] == whole


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loss_in_the_loader_names_the_sample_of_the_dataset(num_workers: int) -> None:
    loader = ResumableDataLoader(
        {"label": torch.arange(400)}, 10, num_workers=num_workers, converter={"label": "uint8"}
    )
    with pytest.raises(LossyConversionError) as raised:
        list(loader)
    notes = "".join(raised.value.__notes__)
    assert (raised.value.value, raised.value.sample) == (256, 6)
    assert "index 256 in the dataset" in notes
    assert "epoch 0, step 25" in notes
    # The batch was not delivered.
    assert loader.step == 25


@pytest.mark.parametrize("persistent_workers", [False, True])
def test_a_new_converter_takes_effect_at_the_next_pass(persistent_workers: bool) -> None:
    loader = ResumableDataLoader(
        Rows(), 8, num_workers=1, persistent_workers=persistent_workers,
        converter={"image": "float16"},
    )  # fmt: skip
    assert {batch["image"].dtype for batch in loader} == {torch.float16}
    first = loader.usage().workers
    assert {batch["image"].dtype for batch in loader} == {torch.float16}
    assert (loader.usage().workers == first) or not persistent_workers
    loader.converter = KeyBasedDtypeConverter({"image": "float64"})
    assert {batch["image"].dtype for batch in loader} == {torch.float64}
    loader.converter = {"image": "bfloat16"}  # type: ignore[assignment]  # rules are accepted too
    assert {batch["image"].dtype for batch in loader} == {torch.bfloat16}
    assert isinstance(loader.converter, KeyBasedDtypeConverter)
    loader.converter = None
    assert {batch["image"].dtype for batch in loader} == {torch.float32}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_strict_converter_refuses_the_first_batch_before_it_counts(num_workers: int) -> None:
    converter = KeyBasedDtypeConverter({"nowhere": "uint8"}, strict=True)
    loader = ResumableDataLoader(ROWS, 10, num_workers=num_workers, converter=converter)
    with pytest.raises(ConfigurationError, match="'nowhere'"):
        next(iter(loader))
    assert loader.position == 0


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(6))


def test_a_stream_is_converted_too() -> None:
    loader = ResumableDataLoader(Stream(), 3, converter={"": "uint8"})
    assert [(batch.dtype, batch.tolist()) for batch in loader] == [
        (torch.uint8, [0, 1, 2]),
        (torch.uint8, [3, 4, 5]),
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_converter_set_during_a_pass_waits_for_the_next_one(num_workers: int) -> None:
    """The converter that converts the batches of this pass also records their dtypes."""
    loader = ResumableDataLoader(ROWS, 10, num_workers=num_workers, converter=RULES)
    before = loader.converter
    assert before is not None
    batches = iter(loader)
    next(batches)
    loader.converter = {"label": "int16"}  # type: ignore[assignment]  # rules are accepted too
    for batch in batches:
        assert before.widen(batch)["label"].dtype is torch.int64
        assert batch["label"].dtype is torch.int32
    assert next(iter(loader))["label"].dtype is torch.int16
    assert loader.converter.state_dict()["originals"] == {"label": ["int64"]}
