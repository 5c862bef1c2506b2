"""`KeyBasedDtypeConverter`: structure kept, values exact or an error, and all of it undone."""

from __future__ import annotations

import copy
import types
from typing import Any

import numpy as np
import pytest
import torch
from example_batches import Batches, Frozen, Pair, Words, walked
from hypothesis import given
from hypothesis import strategies as st

from dataporter import (
    ConfigurationError,
    KeyBasedDtypeConverter,
    LossyConversionError,
)
from dataporter.convert import forms as forms_module

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_float_that_is_no_level_is_found_in_every_block(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms_module, "_BLOCK", 7)
    levels = torch.arange(231, 255).view(2, 3, 4)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    image = (levels.to(wide) / 255).to(dtype)
    converter = KeyBasedDtypeConverter({"": "uint8:scale"})
    assert converter.convert_batch(image).equal(levels.byte())
    for bad in range(24):
        wrong = image.where(levels != 231 + bad, torch.tensor(2, dtype=dtype))
        with pytest.raises(LossyConversionError) as raised:
            converter.convert_batch(wrong)
        assert raised.value.value == wrong.view(-1)[bad].item()
        assert raised.value.sample == bad // 12


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
