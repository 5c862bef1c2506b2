"""Errors of a converter, its warning, and its state."""

from __future__ import annotations

import json
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from example_batches import ROWS

from dataporter import (
    ConfigurationError,
    DataPorterError,
    DevicePrefetcher,
    InvalidStateError,
    KeyBasedDtypeConverter,
    LossyConversionError,
    ResumableDataLoader,
)

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


def files(caught: pytest.WarningsRecorder) -> list[str]:
    """Where the warnings of the converter point; Python has its own, of forks for one."""
    return [each.filename for each in caught if "'nowhere'" in str(each.message)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_warning_points_at_the_users_line(num_workers: int) -> None:
    loader = ResumableDataLoader(ROWS, 8, num_workers=num_workers, converter={"nowhere": "int8"})
    with pytest.warns(RuntimeWarning, match="'nowhere'") as caught:
        next(iter(loader))
    assert files(caught) == [__file__]
    with pytest.warns(RuntimeWarning, match="'nowhere'") as caught:
        KeyBasedDtypeConverter({"nowhere": "int8"}).convert_batch({"x": torch.ones(1)})
    assert files(caught) == [__file__]


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
