"""`suggest_conversions`: no value seen is ever changed, and guesses are marked."""

from __future__ import annotations

import ast
import copy
import json
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate
from typer.testing import CliRunner

from dataporter import (
    ConfigurationError,
    ConversionPlan,
    DevicePrefetcher,
    KeyBasedDtypeConverter,
    LossyConversionError,
    ResumableDataLoader,
    SampleError,
    UnsupportedDatasetError,
    sample_rng,
    suggest_conversions,
)
from dataporter.seeding.generators import global_state
from dataporter.structure import parts_of
from dataporter.tools.advisor.suggestion import Suggestion
from dataporter.tools.cli import main


def at(plan: ConversionPlan, path: str) -> Suggestion:
    (found,) = [suggestion for suggestion in plan.suggestions if suggestion.path == path]
    return found


def form_of(value: Any, **arguments: Any) -> str | None:
    """The suggestion for a dataset of one such sample."""
    return at(suggest_conversions([value], **arguments), "").form


# ---- the narrowest dtype that keeps every value


WHOLE = {
    (0, 255): "uint8",
    (0, 256): "int16",
    (-1, 127): "int8",
    (-1, 128): "int16",
    (-128, 0): "int8",
    (-129, 0): "int16",
    (0, 2**15 - 1): "int16",
    (0, 2**15): "int32",
    (-(2**15), 0): "int16",
    (0, 2**31 - 1): "int32",
    (0, 2**31): None,
    (-(2**31) - 1, 0): None,
    (0, 0): "uint8",
}


@pytest.mark.parametrize(("ends", "form"), WHOLE.items())
def test_whole_numbers_get_the_smallest_dtype_that_holds_their_range(
    ends: tuple[int, int], form: str | None
) -> None:
    assert form_of(torch.tensor(ends)) == form
    plan = suggest_conversions(list(ends))
    assert at(plan, "").form == form, "Python's numbers are int64"
    assert (at(plan, "").low, at(plan, "").high) == ends


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64, np.int16, np.uint8, np.int8])
def test_no_suggestion_is_as_wide_as_the_present_dtype(dtype: type[np.generic]) -> None:
    limits = np.iinfo(dtype)
    assert form_of(np.array([limits.min, limits.max], dtype)) in (
        ("int32",) if limits.max == 2**31 - 1 else (None,)
    )
    narrow = form_of(np.array([0, 1], dtype))
    assert narrow == (None if np.dtype(dtype).itemsize == 1 else "uint8")


FLOATS = [
    ([0.5, -1.25, 65504.0], torch.float32, "float16"),
    ([0.5, 65504.0], torch.float64, "float16"),
    ([2.0**100, -1.5], torch.float32, "bfloat16"),
    ([2.0**100, -1.5], torch.float64, "bfloat16"),
    ([1 / 3], torch.float32, None),
    ([1 + 2.0**-20], torch.float64, "float32"),
    ([1 / 3], torch.float64, None),
    ([1e-300], torch.float64, None),
    ([float("inf"), float("-inf"), float("nan"), -0.0], torch.float64, "float16"),
    ([0.5], torch.float16, None),
    ([0.5], torch.bfloat16, None),
]


@pytest.mark.parametrize(("values", "dtype", "form"), FLOATS)
def test_floats_are_narrowed_if_each_is_restored(
    values: list[float], dtype: torch.dtype, form: str | None
) -> None:
    plan = suggest_conversions([torch.tensor(values, dtype=dtype)])
    assert at(plan, "").form == form
    assert not at(plan, "").rounded


def test_numpy_has_no_bfloat16() -> None:
    values = np.array([2.0**100], np.float32)
    assert form_of(values) is None
    assert form_of(values[0]) is None
    assert form_of({"x": 1, "y": torch.tensor(values)}["y"]) == "bfloat16"
    assert form_of(values * 1.01, tolerance=0.01) is None
    assert form_of(torch.tensor(values * 1.01), tolerance=0.01) == "bfloat16"


def test_rounding_within_a_tolerance_is_marked() -> None:
    images = [torch.tensor([1 / 3, 0.5])]
    assert at(suggest_conversions(images), "").form is None
    plan = suggest_conversions(images, tolerance=1e-3)
    assert at(plan, "").form == "float16"
    assert at(plan, "").rounded
    assert at(plan, "").kind == "certain, rounded"
    assert "rounded" in str(plan)
    assert plan.converter().convert_sample(images[0]).dtype is torch.float16
    with pytest.raises(LossyConversionError):
        plan.converter().convert_sample(torch.tensor([1e-7 / 3]))
    # Exact suggestions are not marked, and an exact form wins over others of the same size.
    exact = suggest_conversions([torch.tensor([0.5])], tolerance=1e-3)
    assert (at(exact, "").form, at(exact, "").rounded) == ("float16", False)
    tiny = suggest_conversions([torch.tensor([2.0**-24 * 1.0078125])], tolerance=1e-2)
    assert (at(tiny, "").form, at(tiny, "").rounded) == ("bfloat16", False)


def test_a_breach_of_a_guess_raises_rather_than_round() -> None:
    plan = suggest_conversions([torch.tensor([0.5])])
    with pytest.raises(LossyConversionError):
        plan.converter().convert_sample(torch.tensor([1 / 3]))
    assert plan.converter(on_loss="wrap").convert_sample(torch.tensor([1 / 3])).dtype is (
        torch.float16
    )


MASKS = [torch.tensor([[0, 1] * 20] * 2), torch.ones(40), torch.zeros(40, dtype=torch.bool)]


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_masks_are_packed_only_where_they_are_widened_again(mask: torch.Tensor) -> None:
    wide = at(suggest_conversions([mask]), "")
    assert (
        wide.form == {torch.int64: "uint8", torch.float32: "float16", torch.bool: None}[mask.dtype]
    )
    assert "'bits' would take" in wide.notes[-1]
    plan = suggest_conversions([mask], widened=True)
    assert at(plan, "").form == "bits"
    assert at(plan, "").after == plan.converter().convert_sample(mask).nbytes
    assert f"{at(plan, '').after:.1f} bytes" in wide.notes[-1]


def test_a_single_value_is_no_mask() -> None:
    assert form_of(torch.tensor(1), widened=True) == "uint8"
    assert form_of(True, widened=True) is None
    assert form_of(torch.tensor([1]), widened=True) == "uint8", "packed it would be no smaller"
    # One of them has no dimension to pack along.
    plan = suggest_conversions([torch.ones(40).bool(), torch.tensor(True)], widened=True)
    assert plan.as_rules() == {}
    labels = ResumableDataLoader({"y": torch.ones(40).bool()}, 8)
    assert suggest_conversions(labels, widened=True).as_rules() == {}, "the batch is no dimension"


def test_multiples_of_1_255_are_scaled_only_where_they_are_widened_again() -> None:
    image = torch.arange(256).float().div(255)
    assert form_of(image) is None
    assert form_of(image, widened=True) == "uint8:scale"
    assert form_of(image * 2, widened=True) is None
    near = image + 1e-5
    assert form_of(near, widened=True, tolerance=1e-2) == "float16", "scaled only exactly"


# ---- certainty


def test_a_suggestion_from_some_samples_is_a_guess() -> None:
    data = {"ids": torch.arange(100), "mask": torch.ones(100, 40).bool()}
    guessed = suggest_conversions(data, 99, widened=True)
    assert at(guessed, "ids").certainty == "guess"
    assert at(guessed, "mask").certainty == "certain", "by its dtype"
    known = suggest_conversions(data, 100, widened=True)
    assert {one.certainty for one in known.suggestions} == {"certain"}
    assert (known.samples, known.length) == (100, 100)
    assert "all 100 samples" in str(known)
    assert "99 of 100 samples" in str(guessed)
    alone = guessed.without_guesses()
    assert alone.as_rules() == {"mask": "bits"}
    assert at(alone, "ids").after == 8
    assert "uint8 would be a guess" in at(alone, "ids").notes
    assert known.without_guesses() == known


def test_a_maximum_proves_the_range() -> None:
    data = {"ids": torch.arange(3000) % 200, "other": torch.arange(3000)}
    plan = suggest_conversions(data, 100, maximum={"ids": 50257})
    ids = at(plan, "ids")
    assert (ids.form, ids.certainty) == ("int32", "certain")
    assert 100 < (ids.high or 0) < 200, "what was seen"
    assert ids.headroom == pytest.approx((2**31 - 1) / 50257)
    assert at(plan, "other").certainty == "guess"
    assert at(suggest_conversions(data, maximum={"ids": 2**40}), "ids").form is None
    mask = [torch.ones(80, dtype=torch.int64)]
    assert form_of(mask[0], widened=True, maximum={"": 2}) == "uint8"


def test_headroom_is_that_of_the_nearer_end() -> None:
    def headroom(low: int, high: int) -> float | None:
        return at(suggest_conversions([low, high]), "").headroom

    assert headroom(0, 199) == pytest.approx(255 / 199)
    assert headroom(-100, 10) == pytest.approx(128 / 100)
    assert headroom(-1, 120) == pytest.approx(127 / 120)
    assert headroom(0, 0) is None


class Drawing(Dataset[float]):
    """Whole numbers this time, maybe others the next time."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        self.draw()
        return 0.5


DRAWS = [
    random.random,
    np.random.rand,
    lambda: torch.rand(1),
    lambda: sample_rng().random(),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_all_samples_prove_nothing_if_they_are_random(draw: Any) -> None:
    before = global_state()
    for source in (Drawing(draw), DataLoader(Drawing(draw), 2)):
        plan = suggest_conversions(source)
        assert at(plan, "").certainty == "guess"
        assert "draws random numbers" in plan.notes[0]
    assert global_state() == before
    still = suggest_conversions(Drawing(int))
    assert (at(still, "").certainty, still.notes) == ("certain", ())


# ---- which samples


class Watched(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        assert type(index) is int
        self.read.append(index)
        return index


def test_samples_are_drawn_without_repetition_from_the_whole() -> None:
    def read(seed: int, samples: int = 500, length: int = 10**12) -> list[int]:
        watched = Watched(length)
        suggest_conversions(watched, samples, seed=seed)
        return watched.read

    assert read(1) == read(1) != read(2)
    assert len(set(read(1))) == 500
    assert min(read(1)) < 10**11 < 9 * 10**11 < max(read(1))
    assert read(1, 50, 50) == list(range(50))
    assert sorted(read(1, 49, 50)) != list(range(49))


class Counting(IterableDataset[int]):
    def __init__(self, length: int) -> None:
        self.length, self.taken = length, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.length):
            self.taken += 1
            yield number


def test_an_iterable_dataset_is_read_from_the_front_and_no_further() -> None:
    endless = Counting(10**9)
    plan = suggest_conversions(endless, 300)
    assert (endless.taken, plan.samples, plan.length) == (300, 300, None)
    assert (at(plan, "").high, at(plan, "").certainty) == (299, "guess")
    short = suggest_conversions(Counting(10), 11)
    assert (short.samples, at(short, "").certainty) == (10, "certain")
    batched = Counting(10**9)
    plan = suggest_conversions(DataLoader(batched, 7), 30)
    assert (batched.taken, plan.samples, at(plan, "").before) == (30, 30, 8)


# ---- loaders


def collate(samples: list[int]) -> dict[str, torch.Tensor]:
    return {"padded": torch.tensor([[sample, -100, 0, 0] for sample in samples])}


@pytest.mark.parametrize("make", [DataLoader, ResumableDataLoader])
def test_the_paths_of_a_loader_are_those_of_its_batches(make: Any) -> None:
    plan = suggest_conversions(make(range(50), 8, collate_fn=collate))
    assert plan.as_rules() == {"padded": "int8"}
    assert (at(plan, "padded").before, at(plan, "padded").after, plan.samples) == (32, 4, 50)
    assert at(plan, "padded").values == 200


def test_a_loader_keeps_its_position() -> None:
    generator = torch.Generator().manual_seed(5)
    arguments: dict[str, Any] = {
        "batch_size": 4, "shuffle": True, "generator": generator, "converter": {"": "int16"}
    }  # fmt: skip
    loader = ResumableDataLoader(range(100), **arguments)
    untouched = ResumableDataLoader(
        range(100), **{**arguments, "generator": torch.Generator().manual_seed(5)}
    )
    states = generator.get_state(), global_state()
    plan = suggest_conversions(loader)
    assert at(plan, "").dtypes == ("int64",), "it is looked at without its converter"
    assert torch.equal(generator.get_state(), states[0])
    assert global_state() == states[1]
    batches, others = iter(loader), iter(untouched)
    assert next(batches).tolist() == next(others).tolist()
    state = loader.state_dict()
    suggest_conversions(loader)
    assert loader.state_dict() == state == untouched.state_dict()
    assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in others]


def test_a_loader_reads_as_it_does_in_training() -> None:
    class Together(Watched):
        def __getitems__(self, indices: list[int]) -> list[int]:
            self.read.append(-len(indices))
            return indices

    together = Together(10)
    suggest_conversions(DataLoader(together, 4))
    assert together.read == [-4, -4, -2]
    single = suggest_conversions(DataLoader([{"x": 5}, {"x": np.arange(3)}], batch_size=None))
    assert single.as_rules() == {"x": "uint8"}, "converted by torch, and a number is no leaf"
    own = DataLoader(Watched(10), batch_sampler=[[0, 1], [2]])
    assert suggest_conversions(own).as_rules() == {"": "uint8"}
    rows = ResumableDataLoader({"x": torch.arange(9), "y": np.ones(9)}, 4)
    assert suggest_conversions(rows).as_rules() == {"x": "uint8", "y": "float16"}


def test_samples_that_fail_are_left_out_if_the_loader_skips_them() -> None:
    class Broken(Watched):
        def __getitem__(self, index: int) -> int:
            if index % 2:
                raise OSError("unreadable")
            return index

    loader = ResumableDataLoader(Broken(10), 4, on_error="skip")
    plan = suggest_conversions(loader)
    assert (plan.samples, at(plan, "").certainty) == (5, "guess")
    assert "left out 5 samples" in plan.notes[0]
    replaced = ResumableDataLoader(Broken(10), 4, on_error=lambda error, index: 1000)
    assert at(suggest_conversions(replaced), "").high == 1000
    with pytest.raises(OSError, match="unreadable") as failed:
        suggest_conversions(ResumableDataLoader(Broken(10), 4))
    assert "index 1" in "".join(failed.value.__notes__)

    class Hopeless(Watched):
        def __getitem__(self, index: int) -> int:
            raise OSError("unreadable")

    with pytest.raises(SampleError, match="all 3 samples"):
        suggest_conversions(ResumableDataLoader(Hopeless(3), 2, on_error="skip"))


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


# ---- the printed plan


def test_the_rules_can_be_pasted() -> None:
    data = [{"a.b": 5, "it's": torch.tensor([1 / 3]), "*": 1.5, "[1]": 7}]
    plan = suggest_conversions(data, tolerance=1e-3)
    printed = str(plan)
    pasted = printed[printed.index("KeyBasedDtypeConverter(") :]
    converter = eval(pasted, {"KeyBasedDtypeConverter": KeyBasedDtypeConverter})
    assert converter.rules == plan.as_rules()
    assert converter.conversion.rtol == 1e-3
    rules = pasted[pasted.index("{") : pasted.index("}") + 1]
    assert ast.literal_eval(rules) == plan.as_rules()
    assert "rounded: values change" in printed
    assert "guess: " not in printed, "there is none"


def test_a_table_has_a_width_and_loses_nothing() -> None:
    path = "a" * 150
    plan = suggest_conversions([{path: 199, "[red]b[/red]": 2.5, "ü": 1e-30}])
    lines = [line for line in str(plan).splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 100
    assert "".join(line.split("|")[1].strip() for line in lines).count("a") >= 150
    assert "1.3x" in str(plan)
    assert r"\\[red\\]b\\[/red\\]" in str(plan)


def test_json() -> None:
    plan = suggest_conversions({"x": np.array([0.5, np.inf, np.nan]), "y": np.arange(3)})
    told = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert told == plan.to_dict()
    assert told["rules"] == {"x": "float16", "y": "uint8"}
    assert told["suggestions"][0]["low"] == told["suggestions"][0]["high"] == 0.5
    assert told["suggestions"][0]["notes"] == ["also holds infinity or nan"]
    assert (told["before"], told["after"], told["saved"]) == (16, 3, 1 - 3 / 16)


# ---- errors


class Stopping(Watched):
    def __getitem__(self, index: int) -> int:
        raise StopIteration


class Failing(Watched):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise ZeroDivisionError("three")
        return index


class FailingStream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(3)
        raise ZeroDivisionError("three")


DATA = {"x": [1, 2], "y": 0.5, "z": True}
WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([1], {"samples": 0}, ConfigurationError, "samples=0"),
    ([1], {"samples": -1}, ConfigurationError, "samples=-1"),
    ([1], {"samples": 1.5}, ConfigurationError, "samples=1.5"),
    ([1], {"seed": -1}, ConfigurationError, "seed=-1"),
    ([1], {"tolerance": -1}, ConfigurationError, "tolerance=-1"),
    ([1], {"tolerance": float("nan")}, ConfigurationError, "tolerance=nan"),
    ([1], {"tolerance": "x"}, ConfigurationError, "tolerance='x'"),
    ([1], {"maximum": [5]}, ConfigurationError, "maximum=[5]"),
    ([1], {"maximum": {"": 1.5}}, ConfigurationError, "got 1.5"),
    ([DATA], {"maximum": {"nix": 5}}, ConfigurationError, "'x[0]', 'x[1]', 'y', 'z'"),
    ([DATA], {"maximum": {"x[": 5}}, ConfigurationError, "cannot be read"),
    ([DATA], {"maximum": {"x[1]": 1}}, ConfigurationError, "1 is less than 2"),
    ([DATA], {"maximum": {"y": 1}}, ConfigurationError, "it holds float64"),
    ([DATA], {"maximum": {"z": 1}}, ConfigurationError, "it holds bool"),
    ([], {}, ConfigurationError, "no samples"),
    (Counting(0), {}, ConfigurationError, "no samples"),
    ({"x": np.ones(3), "y": np.ones(2)}, {}, ConfigurationError, "one length"),
    (5, {}, UnsupportedDatasetError, "int: expected a dataset"),
    (DevicePrefetcher([1], "cpu"), {}, UnsupportedDatasetError, "pass the loader"),
    ({"x": "y"}, {}, UnsupportedDatasetError, "dict"),
    (Stopping(3), {}, SampleError, "index 0"),
]


@pytest.mark.parametrize(("source", "arguments", "kind", "words"), WRONG)
def test_mistakes_are_named(
    source: Any, arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as refused:
        suggest_conversions(source, **arguments)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("source", "note"),
    [
        (Failing(10), "the sample with index 3"),
        (DataLoader(Failing(10), 2), "the sample with index 3"),
        (FailingStream(), "after the first 3"),
        (DataLoader(FailingStream(), 2), "after the first 3"),
        (DataLoader(range(9), 4, collate_fn=lambda s: s[0] // 0), "indices [0, 1, 2, 3]"),  # type: ignore[arg-type]
    ],
)
def test_an_error_of_the_dataset_is_raised_with_its_index(source: Any, note: str) -> None:
    before = global_state()
    with pytest.raises(ZeroDivisionError) as failed:
        suggest_conversions(source)
    assert note in "".join(failed.value.__notes__)
    assert global_state() == before


# ---- the command


MODULE = """
import random
import torch
from torch.utils.data import DataLoader
from dataclasses import dataclass

@dataclass
class Holder:
    inner: object

data = {"ids": torch.arange(3000) % 200, "y": torch.full((3000,), 0.3)}
loader = DataLoader(torch.arange(40), 8)
holder = Holder(data)

def make():
    return data

def wants(arguments):
    return data

def breaks():
    raise ZeroDivisionError("by zero\\nand more")

class Broken:
    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise KeyError("nothing here")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "own_data.py").write_text(MODULE)
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    (tmp_path / "lacks.py").write_text("import no_such_library")
    return tmp_path


def analyze(*arguments: str) -> str:
    ran = CliRunner().invoke(main, ["analyze", *arguments])
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.parametrize("name", ["data", "make", "holder.inner"])
@pytest.mark.parametrize("where", ["own_data", "own_data.py", "{}/own_data.py", "./own_data.py"])
def test_targets(here: Path, where: str, name: str) -> None:
    output = analyze(f"{where.format(here)}:{name}", "--samples", "50")
    assert "'ids': 'uint8',  # guess" in output
    assert "50 of 3,000 samples" in output


def test_a_file_may_have_the_name_of_a_module(here: Path) -> None:
    (here / "json.py").write_text("data = [5]")
    assert "'': 'uint8'" in analyze("json.py:data")
    assert json.dumps(5) == "5"


def test_the_options_of_the_command(here: Path) -> None:
    options = ["--tolerance", "0.001", "--maximum", "ids=50257", "--widened", "--json"]
    told = json.loads(analyze("own_data:data", *options))
    assert told["rules"] == {"ids": "int32", "y": "float16"}
    assert told["samples"] == 1000
    assert [one["certainty"] for one in told["suggestions"]] == ["certain", "guess"]
    assert [one["rounded"] for one in told["suggestions"]] == [False, True]
    assert "'': 'uint8',  # certain" in analyze("own_data:loader")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["own_data"], "expected package.module:name"),
        (["own_data:"], "expected package.module:name"),
        (["own_data:nix"], "own_data has no nix; it has"),
        (["own_data.py:holder.nix"], "has no holder.nix"),
        (["nix.py:data"], "there is no file nix.py"),
        (["no_such_module:data"], "No module named 'no_such_module'"),
        (["lacks:data"], "No module named 'no_such_library'"),
        (["leaves.py:data"], "SystemExit: 3"),
        (["own_data:wants"], "needs arguments"),
        (["own_data:breaks"], "ZeroDivisionError: by zero and more"),
        (["own_data:Broken"], "KeyError: 'nothing here'; dataporter: while reading the sample"),
        (["own_data:data", "--maximum", "ids"], "expected PATH=N"),
        (["own_data:data", "--maximum", "nix=5"], "the paths are 'ids', 'y'"),
        (["own_data:Holder"], "needs arguments"),
    ],
)
def test_the_mistakes_of_the_command_are_one_line(
    here: Path, arguments: list[str], words: str
) -> None:
    ran = CliRunner().invoke(main, ["analyze", *arguments])
    assert ran.exit_code == 2
    assert words in ran.output
    assert ran.output.startswith("dataporter: analyze: ")
    assert len(ran.output.splitlines()) == 1
    assert ran.stdout == ""
