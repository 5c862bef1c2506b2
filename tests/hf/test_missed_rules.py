"""Missed rules: a rule of a wrapper that can match nothing is reported, and no other."""

from __future__ import annotations

import datetime
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import (
    Array2D,
    Dataset,
    Features,
    Image,
    IterableDataset,
    List,
    Sequence,
    Value,
)
from example_batches import walked
from example_tables import TEXTS, mixed
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from dataporter import (
    ConfigurationError,
    KeyBasedDtypeConverter,
    ResumableDataLoader,
    UnifiedHFDatasetWrapper,
)
from dataporter.convert.missed import fits
from dataporter.convert.paths import Matcher, Wildcard, parse, shown
from dataporter.hf.leaves import leaves_in


def pictured() -> Dataset:
    features = Features(
        {
            "image": Image(),
            "frames": List(Image()),
            "bytes": Image(decode=False),
            "null": Value("float32"),
            "nulls": List(Value("int64")),
            "deep": List(List(Value("int8"))),
            "pairs": Sequence({"x": Value("int64"), "name": Value("string")}),
            "items": List({"x": Value("int64"), "text": List(Value("string"))}),
            "open": Array2D((None, 2), "float32"),
            "when": Value("date32"),
            "text": List(Value("string")),
            "none": Value("null"),
        }
    )
    picture = Pillow.fromarray(np.zeros((2, 2), np.uint8))
    rows = {
        "image": [picture, picture],
        "frames": [[picture], []],
        "bytes": [picture, picture],
        "null": [1.5, None],
        "nulls": [[1, None], [2]],
        "deep": [[[1], [2, 3]], []],
        "pairs": [{"x": [1], "name": ["a"]}, {"x": [], "name": []}],
        "items": [[{"x": 1, "text": ["a"]}, {"x": 2, "text": []}], []],
        "open": [[[1.0, 2.0]], [[1.0, 2.0]] * 2],
        "when": [datetime.date(2024, 2, 29)] * 2,
        "text": [["a"], []],
        "none": [None, None],
    }
    return Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("table", [mixed, pictured])
@pytest.mark.parametrize("streamed", [False, True])
def test_every_number_of_every_sample_is_at_a_path_of_the_features(
    table: Any, streamed: bool
) -> None:
    rows = table().to_iterable_dataset() if streamed else table()
    there = leaves_in(rows.features, rows.column_names)
    wrapper = UnifiedHFDatasetWrapper(rows)
    samples = iter(wrapper) if streamed else [wrapper[index] for index in range(len(wrapper))]
    matched = set()
    for sample in samples:
        for path, leaf in walked(sample).items():
            if isinstance(leaf, torch.Tensor | bool | int | float):
                found = [one for one in there if fits(path, one)]
                assert found, path
                matched |= set(found)
    steps = {path[:1] for path in matched}
    assert steps == {path[:1] for path in there}, "and at no column that has none"


STEPS = st.sampled_from(["a", "b", 0, 1])
RULES = st.lists(st.one_of(STEPS, st.sampled_from(list(Wildcard))), max_size=4).map(tuple)


@given(RULES, st.lists(STEPS, max_size=4).map(tuple))
def test_a_rule_fits_the_paths_that_it_matches(rule: Any, path: Any) -> None:
    matched = Matcher([rule]).rule(path) is not None
    assert fits(rule, path) == matched
    # A "*" of the features is any index, so it can be what an index of a path is.
    general = tuple(Wildcard.ONE if isinstance(step, int) else step for step in path)
    assert fits(rule, general) or not matched
    assert fits(rule, (Wildcard.ANY,))


TYPOS = {
    "inner.y": "inner.x",
    "label.value": "label",
    "grid.*": "grid",
    "text": None,
    "inner": "inner.*",
    "mask.x": "mask",
}


@pytest.mark.parametrize("rule", TYPOS)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_rule_that_matches_no_feature_is_reported_at_once(rule: str, streamed: bool) -> None:
    rows = mixed().to_iterable_dataset() if streamed else mixed()
    close = TYPOS[rule]
    with pytest.warns(RuntimeWarning) as caught:
        UnifiedHFDatasetWrapper(rows, {rule: "float64", "ids": "int64"})
    (warning,) = caught
    assert warning.filename == __file__
    assert f"rule {rule!r} matched no number" in str(warning.message)
    assert "'inner.x'" in str(warning.message)
    hint = f"did you mean {close!r}" if close else ""
    assert hint in str(warning.message)
    with pytest.raises(ConfigurationError, match="matched no number"):
        UnifiedHFDatasetWrapper(rows, KeyBasedDtypeConverter({rule: "float64"}, strict=True))


def test_a_missing_column_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigurationError, match="such as 'label'"):
        UnifiedHFDatasetWrapper(mixed(), {"labels": "int32"})


@pytest.mark.parametrize("streamed", [False, True])
def test_no_rule_that_can_match_is_reported(streamed: bool) -> None:
    rules = ["image", "frames.*", "nulls.*", "nulls[1]", "deep.**", "items.*.x", "pairs.**", "open"]
    rules += ["**", "*", "null", "ids_mask"]
    table = pictured().add_column("ids", [[1], [2, 3]])
    rows = table.to_iterable_dataset() if streamed else table
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in rules:
            converter = KeyBasedDtypeConverter({rule: "float64"}, strict=True)
            UnifiedHFDatasetWrapper(rows, converter, pad={"ids": 0})


def examples(length: int) -> Any:
    for number in range(length):
        yield {"ids": number, **({"late": 1} if number else {})}


@pytest.mark.parametrize("workers", [0, 1])
def test_without_features_the_first_sample_shows_it(workers: int) -> None:
    rows = IterableDataset.from_generator(examples, gen_kwargs={"length": 5})
    assert rows.features is None
    wrapper = UnifiedHFDatasetWrapper(rows, {"id": "int32"})
    with pytest.warns(RuntimeWarning, match=r"'id' matched no .* first sample.*did you mean 'ids'"):
        assert len(list(wrapper)) == 5
    strict = UnifiedHFDatasetWrapper(rows, KeyBasedDtypeConverter({"id": "int32"}, strict=True))
    with pytest.raises(ConfigurationError, match="did you mean 'ids'"):
        list(ResumableDataLoader(strict, 2, num_workers=workers))


def test_a_formatted_dataset_is_checked_by_its_first_sample() -> None:
    rows = Dataset.from_dict(TEXTS).with_transform(
        lambda rows: {"sum": [1.5] * len(rows["labels"])}
    )
    wrapper = UnifiedHFDatasetWrapper(rows, {"summ": "float16"})
    with pytest.warns(RuntimeWarning, match="did you mean 'sum'"):
        wrapper[0]


def test_paths_are_shown_as_they_are_written(tmp_path: Path) -> None:
    for rule in TYPOS:
        assert shown(parse(rule)) == rule
