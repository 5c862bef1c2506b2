"""Collation: the same as torch's default_collate, in bits, types and errors."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from dataporter.fetch.collate import collate

Pair = namedtuple("Pair", ["one", "two"])


class Number(int):
    """A custom int."""


LEAVES = st.one_of(
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.booleans(),
    st.text(max_size=2),
    st.none(),
    st.builds(Number, st.integers(0, 9)),
    st.builds(lambda value: torch.tensor([value, 0]), st.integers(0, 9)),
    st.builds(np.float32, st.floats(width=32)),
    st.builds(lambda size: np.zeros(size), st.integers(0, 2)),
)
SAMPLES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.dictionaries(st.sampled_from("ab"), inner, max_size=2).map(OrderedDict),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=6,
)


def outcome(function: Any, samples: list[Any]) -> Any:
    try:
        return described(function(samples))
    except Exception as error:
        return type(error), str(error)


def described(batch: Any) -> Any:
    """A batch as a value that ``==`` compares bit by bit, with all types."""
    if isinstance(batch, torch.Tensor):
        return batch.dtype, batch.shape, batch.device.type, batch.contiguous().numpy().tobytes()
    if isinstance(batch, dict):
        return type(batch), [(key, described(value)) for key, value in batch.items()]
    if isinstance(batch, list | tuple):
        return type(batch), [described(value) for value in batch]
    return type(batch), repr(batch)


@given(st.lists(SAMPLES, min_size=1, max_size=4))
def test_any_samples_collate_as_in_torch(samples: list[Any]) -> None:
    assert outcome(collate, samples) == outcome(default_collate, samples)


@given(SAMPLES, st.integers(1, 4))
def test_equal_samples_collate_as_in_torch(sample: Any, count: int) -> None:
    assert outcome(collate, [sample] * count) == outcome(default_collate, [sample] * count)


@pytest.mark.parametrize("leaf", [st.integers(-(2**63), 2**63 - 1), st.floats(), st.text()])
def test_leaves_in_dicts_and_tuples_collate_as_in_torch(leaf: Any) -> None:
    @given(st.lists(st.fixed_dictionaries({"a": leaf, "b": st.tuples(leaf)}), min_size=1))
    def compare(samples: list[Any]) -> None:
        assert described(collate(samples)) == described(default_collate(samples))

    compare()


def test_numbers_go_to_the_default_device_as_in_torch() -> None:
    with torch.device("meta"):
        assert collate([{"a": 1}])["a"].device.type == "meta"


def test_no_samples_raise_the_same_error_as_in_torch() -> None:
    assert outcome(collate, []) == outcome(default_collate, [])


@pytest.mark.parametrize("kind", [int, dict, tuple, Number])
def test_types_added_to_torchs_map_are_collated_by_their_function(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(default_collate_fn_map, kind, lambda batch, *, collate_fn_map: "custom")
    sample = {int: 1, dict: {"a": 1}, tuple: (1, 2), Number: Number(1)}[kind]
    assert collate([sample, sample]) == "custom"
