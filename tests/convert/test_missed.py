"""Missed rules: a converter reports them in the first batch or sample, with what was meant."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dataporter import ConfigurationError, KeyBasedDtypeConverter, ResumableDataLoader

BATCH = {
    "labels": torch.arange(2),
    "boxes": [torch.ones(1), torch.ones(2)],
    "inner": {"image": np.ones(2)},
    "name": ["a", "b"],
}
MEANT = {
    "label": "labels",
    "boxes": "boxes.*",
    "labels.x": "labels",
    "inner": "inner.*",
    "inner.imag": "inner.image",
    "*.image.x": "*.image",
    "zzz": None,
    "name": None,
}


@pytest.mark.parametrize("rule", MEANT)
def test_a_rule_that_matches_nothing_is_reported_with_what_was_meant(rule: str) -> None:
    close = MEANT[rule]
    with pytest.warns(RuntimeWarning, match="first batch") as caught:
        KeyBasedDtypeConverter({rule: "float16"}).convert_batch(BATCH)
    (warning,) = caught
    hint = f"for {rule!r}, did you mean {close!r}?"
    assert (hint in str(warning.message)) == (close is not None)
    assert ("did you mean" in str(warning.message)) == (close is not None)


@pytest.mark.parametrize("rule", [rule for rule in MEANT if MEANT[rule]])
def test_what_was_meant_matches(rule: str) -> None:
    converter = KeyBasedDtypeConverter({str(MEANT[rule]): "float32"}, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converter.convert_batch(BATCH)


class Converting:
    """Converts its own samples."""

    def __init__(self, converter: KeyBasedDtypeConverter) -> None:
        self.converter = converter

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.converter.convert_sample({"label": index, "late": [index] * index})


def test_the_first_sample_shows_what_its_rules_match() -> None:
    dataset = Converting(KeyBasedDtypeConverter({"labels": "int32", "late.*": "int8"}))
    with pytest.warns(RuntimeWarning, match="first sample") as caught:
        assert dataset[0]["label"] == 0
    assert "for 'labels', did you mean 'label'?" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset[1]["late"][0].dtype is torch.int8, "and no later one is compared"


@pytest.mark.parametrize("loader", [DataLoader, ResumableDataLoader])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_strict_converter_refuses_the_first_sample_wherever_it_is_read(
    loader: Any, workers: int
) -> None:
    dataset = Converting(KeyBasedDtypeConverter({"labels": "int32"}, strict=True))
    with pytest.raises(ConfigurationError, match="did you mean 'label'"):
        list(loader(dataset, 2, num_workers=workers))


class Noticing(Converting):
    """Its samples are the number of warnings while they are read."""

    def __getitem__(self, index: int) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().__getitem__(index)
        return len(caught)


def test_of_several_workers_one_warns() -> None:
    dataset = Noticing(KeyBasedDtypeConverter({"labels": "int32"}))
    assert sum(map(int, ResumableDataLoader(dataset, 1, num_workers=2))) == 1
