"""Structures and data for an advisor: every value is restored, for any nesting of leaves."""

from __future__ import annotations

import copy
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from example_advice import at, form_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from torch.utils.data import DataLoader, default_collate

from dataporter import (
    KeyBasedDtypeConverter,
    ResumableDataLoader,
    suggest_conversions,
)
from dataporter.structure import parts_of

# ---- structures


class Pair(NamedTuple):
    image: Any
    label: Any


@dataclass(frozen=True)
class Item:
    image: Any
    label: Any


def test_paths_lead_through_every_container() -> None:
    image = np.zeros((2, 3), np.float32)
    sample = {"pair": Pair(image, 3), "item": [Item(image, 300)], "a.b": {"c[0]": (1, 2.5)}}
    plan = suggest_conversions([sample])
    assert plan.as_rules() == {
        "pair.image": "float16",
        "pair.label": "uint8",
        "item[0].image": "float16",
        "item[0].label": "int16",
        r"a\.b.c\[0\][0]": "uint8",
        r"a\.b.c\[0\][1]": "float16",
    }
    converter = plan.converter(strict=True)
    assert converter.rules == plan.as_rules()
    narrow = default_collate([sample["pair"]])
    assert narrow.image.dtype is torch.float32
    assert converter.convert_sample(sample)["item"][0].label.dtype is torch.int16


def test_leaves_that_are_not_always_present_or_change_their_dtype() -> None:
    samples = [{"a": 1}, {"a": 1.5, "b": torch.ones(2)}, {"a": 2, "b": torch.ones(7)}, {"b": None}]
    plan = suggest_conversions(samples)
    assert plan.as_rules() == {"b": "float16"}
    assert at(plan, "a").dtypes == ("float64", "int64")
    assert "not always the same" in at(plan, "a").notes[0]
    assert "present in 2 of 4 samples" in at(plan, "b").notes
    assert at(plan, "b").before == (2 + 7) * 4 / 4
    assert suggest_conversions([1.0, 1, 1.0], widened=True).as_rules() == {}
    same_name = suggest_conversions([{1: 5, "1": 6}, {"other": 7}])
    assert at(same_name, "1").notes == ("present in 1 of 2 samples",)


def test_long_lists_are_one_path() -> None:
    samples = [{"tokens": list(range(length))} for length in (3, 5, 200, 0, 20)]
    plan = suggest_conversions(samples)
    assert plan.as_rules() == {"tokens.*": "uint8"}
    assert (at(plan, "tokens.*").values, at(plan, "tokens.*").high) == (228, 199)
    for sample in samples:
        assert_exact(sample, plan.converter())
    # Also if the numbers do not fit one array.
    mixed = suggest_conversions([[*range(30), np.int64(300)]])
    assert mixed.as_rules() == {"*": "int16"}


def test_many_different_keys_are_one_path() -> None:
    """A dict keyed by ids, which would have as many paths as samples."""
    samples = [{"by_id": {f"id.{number}": {"x": number, "y": 0.5}}} for number in range(900)]
    plan = suggest_conversions(samples)
    assert plan.as_rules() == {"by_id.*.x": "int16", "by_id.*.y": "float16"}
    assert at(plan, "by_id.*.x").values == 900
    assert at(plan, "by_id.*.x").high == 899
    few = suggest_conversions(samples, 200)
    assert len(few.suggestions) == 400
    # Values seen before the limit count too.
    early = [{f"id{number}": {5: 70_000}.get(number, number)} for number in range(900)]
    assert suggest_conversions(early).as_rules() == {"*": "int32"}
    fine = [{f"id{number}": {5: 1 / 3}.get(number, 0.5)} for number in range(900)]
    assert suggest_conversions(fine).as_rules() == {}
    # A level whose ids have different meanings has one dtype or none.
    odd = [{f"id{number}": number if number % 2 else 0.5} for number in range(900)]
    assert suggest_conversions(odd).as_rules() == {}


def test_the_number_of_paths_is_bounded_and_omissions_are_reported() -> None:
    samples = [
        {f"{outer}": {f"{outer}.{inner}": 1.5 for inner in range(200)}} for outer in range(100)
    ]
    plan = suggest_conversions(samples)
    assert len(plan.suggestions) < 5000
    assert "too many different paths" in plan.notes[0]
    converter = plan.converter()
    for sample in samples:
        converter.convert_sample(sample)


def test_an_empty_key_has_no_name() -> None:
    plan = suggest_conversions([{"": 5, "a": {"": 5}}, 5.5])
    assert plan.as_rules() == {}
    assert any("empty key" in note for one in plan.suggestions for note in one.notes)


LEFT_ALONE = [
    "text",
    None,
    b"bytes",
    object(),
    torch.ones(3).to_sparse(),
    torch.ones(3, dtype=torch.complex64),
    1j,
    np.array(["a"]),
    torch.empty(0),
    torch.empty(3, device="meta"),
    torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    torch.ones(3).to(torch.float8_e4m3fn),
    2**70,
    2**40,
    [],
]


@pytest.mark.parametrize("leaf", LEFT_ALONE, ids=lambda leaf: type(leaf).__name__)
def test_leaves_that_cannot_be_narrowed_get_no_suggestion(leaf: Any) -> None:
    plan = suggest_conversions([{"x": leaf}], widened=True, tolerance=0.1)
    assert plan.as_rules() == {}
    assert plan.after == plan.before
    assert plan.saved == 0
    assert "Nothing can be narrowed." in str(plan)
    json.dumps(plan.to_dict(), allow_nan=False)
    assert plan.converter().convert_sample({"x": 1}) == {"x": 1}


def test_tensors_of_every_kind_are_judged_by_their_values() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    assert form_of(weight) == "float16"
    assert form_of(torch.ones(4, 3).t()) == "float16"
    assert form_of(np.arange(6)[::-2]) == "uint8"
    assert form_of(np.arange(6, dtype=">i4")) == "uint8"
    assert form_of(torch.full((2,), 2j).conj().imag) == "float16"


# ---- the law


NUMBERS = st.one_of(
    st.booleans(),
    st.integers(-300, 70000),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=16),
    st.floats(),
)


ARRAYS = numpy_st.arrays(
    st.sampled_from([np.bool_, np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64]),
    numpy_st.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=10),
    elements={"min_value": 0, "max_value": 1},
) | numpy_st.arrays(
    st.sampled_from([np.int8, np.int32, np.uint32, np.float16, np.float32]),
    numpy_st.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=10),
)


LEVELS = numpy_st.arrays(np.uint8, st.integers(0, 9)).map(lambda levels: levels / np.float32(255))


LEAVES = st.one_of(NUMBERS, ARRAYS, ARRAYS.map(torch.from_numpy), LEVELS, st.text(), st.none())


KEYS = st.sampled_from(["a", "b", "a.b", "*", "[0]", "", "0", "\\"])


SAMPLES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(KEYS, inner, max_size=3),
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(Item, inner, inner),
    ),
    max_leaves=6,
)


DATASETS = st.one_of(
    st.lists(SAMPLES, min_size=1, max_size=5),
    # The same leaves in each sample, as in most datasets.
    st.fixed_dictionaries({"x": NUMBERS, "y": ARRAYS}).flatmap(
        lambda sample: st.just([sample, copy.deepcopy(sample)])
    ),
    st.lists(st.lists(st.integers(-5, 300), max_size=25), min_size=1, max_size=4),
)


def assert_exact(sample: Any, converter: KeyBasedDtypeConverter) -> None:
    again = converter.widen(converter.convert_sample(sample))
    assert_same(again, sample)


def assert_same(again: Any, sample: Any) -> None:
    parts = parts_of(sample)
    if parts is None:
        if isinstance(again, torch.Tensor | np.ndarray | np.generic):
            wide = np.asarray(sample)
            assert np.asarray(again).dtype == wide.dtype
            np.testing.assert_array_equal(np.asarray(again), wide)
        else:
            assert again is sample
        return
    others = parts_of(again)
    assert others is not None
    assert [part.key for part in others] == [part.key for part in parts]
    for other, part in zip(others, parts):
        assert_same(other.value, part.value)


@given(DATASETS, st.booleans())
def test_every_sample_read_is_converted_exactly(samples: list[Any], widened: bool) -> None:
    plan = suggest_conversions(samples, widened=widened)
    assert not any(suggestion.rounded for suggestion in plan.suggestions)
    assert all(suggestion.after <= suggestion.before for suggestion in plan.suggestions)
    json.dumps(plan.to_dict(), allow_nan=False)
    assert str(plan)
    for sample in samples:
        assert_exact(sample, plan.converter())


@given(st.lists(st.lists(st.floats(), max_size=5), min_size=1, max_size=5))
def test_within_a_tolerance_every_sample_is_converted(samples: list[list[float]]) -> None:
    tensors = [torch.tensor(sample, dtype=torch.float64) for sample in samples]
    plan = suggest_conversions(tensors, tolerance=0.01)
    converter = plan.converter()
    for tensor in tensors:
        again = converter.widen(converter.convert_sample(tensor))
        torch.testing.assert_close(again, tensor, rtol=0.01, atol=0, equal_nan=True)
        if plan.suggestions and not at(plan, "").rounded:
            torch.testing.assert_close(again, tensor, rtol=0, atol=0, equal_nan=True)


@given(
    st.lists(numpy_st.arrays(np.int64, 3, elements=st.integers(-2, 2)), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_every_batch_of_a_loader_is_converted_exactly(
    rows: list[np.ndarray[Any, Any]], batch_size: int
) -> None:
    loader = DataLoader([{"x": row, "y": True} for row in rows], batch_size)  # type: ignore[arg-type]
    converter = suggest_conversions(loader, widened=True).converter()
    for batch in loader:
        narrow = converter.convert_batch(batch)
        assert narrow["x"].nbytes < batch["x"].nbytes
        assert torch.equal(converter.widen(narrow)["x"], batch["x"])


# ---- real data


def test_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    data = {"image": digits.images / 16, "label": digits.target}
    plan = suggest_conversions(data, samples=2000)
    assert plan.as_rules() == {"image": "float16", "label": "uint8"}
    assert {one.kind for one in plan.suggestions} == {"certain"}
    assert (plan.before, plan.after) == (64 * 8 + 8, 64 * 2 + 1)
    loader = ResumableDataLoader(data, 100, converter=plan.converter(strict=True))
    for narrow, wide in zip(loader, ResumableDataLoader(data, 100)):
        assert narrow["image"].dtype is torch.float16
        assert torch.equal(loader.converter.widen(narrow)["image"], wide["image"])


def test_tokens_of_the_standard_library() -> None:
    """Words are numbered in order, so later files have larger numbers than a sample shows."""
    vocabulary: dict[str, int] = {}
    rows = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:40]:
        words = file.read_text(encoding="utf-8", errors="replace").split()[:512]
        ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "length": len(ids)})

    def padded(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(sample["length"] for sample in samples)
        return {
            name: torch.tensor([s[name] + [0] * (longest - s["length"]) for s in samples])
            for name in ("input_ids", "attention_mask")
        }

    loader: DataLoader[Any] = DataLoader(rows, 8, collate_fn=padded)  # type: ignore[arg-type]
    few = suggest_conversions(loader, 8, maximum={"input_ids": len(vocabulary)}, widened=True)
    assert few.as_rules() == {"input_ids": "int16", "attention_mask": "bits"}
    assert at(few, "input_ids").certainty == "certain"
    assert at(few, "attention_mask").certainty == "guess"
    converter = few.converter(strict=True)
    for batch in loader:
        narrow = converter.convert_batch(batch)
        assert sum(part.nbytes for part in narrow.values()) * 7 < sum(
            part.nbytes for part in batch.values()
        )
        for name, wide in converter.widen(narrow).items():
            assert torch.equal(wide, batch[name])
    direct = suggest_conversions(rows)
    assert set(direct.as_rules()) == {"input_ids.*", "attention_mask.*", "length"}
