"""`suggest_conversions`: no value seen is ever changed, and guesses are marked."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from example_advice import at, form_of
from torch.utils.data import DataLoader, Dataset

from dataporter import (
    LossyConversionError,
    ResumableDataLoader,
    sample_rng,
    suggest_conversions,
)
from dataporter.seeding.generators import global_state

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
