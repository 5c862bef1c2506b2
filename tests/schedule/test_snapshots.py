"""The state of a dataset comes back from JSON exactly, with its types (C5)."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataporter import InvalidStateError, UnsupportedDatasetError
from dataporter.schedule.snapshot import decode, encode

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.binary().map(bytearray)
)
KEYS = st.text() | st.integers() | st.tuples(st.integers(), st.text()) | st.sampled_from(["$int"])
ARRAYS = st.sampled_from(
    [
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        np.array(3.5, dtype=np.float16),
        np.zeros((0, 3)),
        np.array(["a", "bc"]),
        np.array([1, 2], dtype=">i4"),
        np.float32(1.5),
        np.int64(7),
        torch.arange(6).reshape(2, 3),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.empty(0, 2),
        torch.tensor([True, False]),
        torch.arange(6).reshape(2, 3).T,
    ]
)
STATES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(st.text(), inner).map(OrderedDict)
        | st.sets(st.integers() | st.text())
        | st.frozensets(st.binary())
    ),
    max_leaves=20,
)


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left == right or (math.isnan(left) and math.isnan(right))
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    if isinstance(left, np.ndarray | np.generic):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and left.tobytes() == right.tobytes()
        )
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left), list(right)) and same(list(left.values()), list(right.values()))
    return left == right


@given(STATES)
def test_a_state_comes_back_as_it_was(state: Any) -> None:
    text = encode(state)
    json.loads(text, parse_constant=pytest.fail)  # strictly JSON
    assert same(decode(text), state)


@pytest.mark.parametrize(
    "state",
    [
        random.getstate(),
        np.random.get_state(),
        np.random.default_rng(3).bit_generator.state,
        torch.get_rng_state(),
    ],
    ids=["python", "numpy legacy", "numpy", "torch"],
)
def test_the_states_of_generators_come_back_as_they_were(state: Any) -> None:
    assert same(decode(encode(state)), state)


def test_nothing_is_shared_with_the_original() -> None:
    array = np.zeros(3)
    copy = decode(encode({"array": array}))["array"]
    array += 1
    assert copy.tolist() == [0, 0, 0]
    copy += 1  # it is writable


@pytest.mark.parametrize(
    "state",
    [{"a": [object()]}, {"a": [print]}, {"a": [np.array([object()])]}],
    ids=["object", "function", "array of objects"],
)
def test_a_value_that_would_have_to_be_pickled_is_refused(state: Any) -> None:
    with pytest.raises(UnsupportedDatasetError, match=r"at state\['a'\]\[0\]"):
        encode(state)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        '{"$tuple":1}',
        '{"$what":1}',
        '{"$bytes":"*"}',
        '{"$tensor":["int64",[2],"AA=="]}',
        '{"$tensor":["nn",[1],"AA=="]}',
        '{"$array":["<i8",[2],"AA=="]}',
        '{"$array":["O",[1],"AAAAAAAAAAA="]}',
        '{"$int":"x"}',
        '{"$dict":[[1]]}',
        '{"$int":"1","b":2}',
    ],
)
def test_a_damaged_snapshot_is_refused(text: str) -> None:
    with pytest.raises(InvalidStateError, match="damaged"):
        decode(text)


@given(st.text(max_size=30))
def test_any_text_is_a_state_or_damaged(text: str) -> None:
    with contextlib.suppress(InvalidStateError):
        decode(text)
