"""The digest of samples: the same for equal samples in any process, another for others (C12)."""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataporter.streams.digest import digested

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=200),
    st.binary(max_size=200),
)
SAMPLES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=30),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=9), inner, max_size=6),
        st.frozensets(st.one_of(st.integers(), st.text(max_size=9)), max_size=6),
    ),
    max_leaves=20,
)


@given(sample=SAMPLES)
def test_equal_samples_have_one_digest(sample: Any) -> None:
    assert digested(sample, 7) == digested(_copied(sample), 7)
    assert 0 <= digested(sample, 7) < 1 << 32


def _copied(sample: Any) -> Any:
    """An equal sample whose dicts and sets have another order."""
    if isinstance(sample, list | tuple):
        return type(sample)(map(_copied, sample))
    if isinstance(sample, dict):
        return {key: _copied(value) for key, value in reversed(sample.items())}
    if isinstance(sample, frozenset):
        return frozenset(sorted(sample, key=repr, reverse=True))
    return sample


@given(samples=st.lists(st.integers(0, 3), min_size=2, max_size=30, unique=False))
def test_the_order_of_the_samples_counts(samples: list[int]) -> None:
    forwards = backwards = 0
    for one, other in zip(samples, reversed(samples)):
        forwards, backwards = digested(one, forwards), digested(other, backwards)
    assert (forwards == backwards) == (samples == samples[::-1])


class Color(Enum):
    RED = object()
    BLUE = "blue"


@dataclass
class Point:
    x: Any


Pair = namedtuple("Pair", "a b")
LARGE = np.arange(30_000).reshape(100, 300)

# Samples that differ in what a dataset may put into them.
OTHERS: list[tuple[Any, Any]] = [
    (1, 2),
    (1, True),
    (1, 1.0),
    (None, 0),
    ("a", "b"),
    ("a", b"a"),
    ([1, 2], [2, 1]),
    ([1, 2], (1, 2)),
    (list(range(100)), list(range(101))),
    ({"a": 1, "b": 2}, {"a": 2, "b": 1}),
    ({1, 2}, {1, 3}),
    (Color.RED, Color.BLUE),
    (Point(1), Point(2)),
    (Pair(1, 2), Pair(2, 1)),
    (Path("/a/b.png"), Path("/a/c.png")),
    (datetime.date(2020, 1, 1), datetime.date(2020, 1, 2)),
    (np.int64(1), np.int64(2)),
    (np.zeros(3, np.int32), np.zeros(3, np.float32)),
    (np.zeros((2, 3)), np.zeros((3, 2))),
    (LARGE, LARGE + 1),
    (LARGE.T, LARGE.T + 1),
    (np.array(["a", "b"]), np.array(["a", "c"])),
    (np.array([1, "b"], object), np.array([1, "c"], object)),
    (torch.tensor(1), torch.tensor(2)),
    (torch.zeros(4), torch.ones(4)),
    (torch.zeros(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)),
    (torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)),
    (torch.zeros(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.complex64).conj()),
    (torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)),
    (torch.zeros(0), torch.zeros(0, 2)),
    (b"x" * 5000, b"x" * 4990 + b"y" * 10),
]
# Samples that are the same, although their objects or folders are not.
SAMES: list[tuple[Any, Any]] = [
    (object(), object()),
    (len, len),
    (float("nan"), -float("nan")),
    ("/one/folder/a.png", "/another/a.png"),
    (Path("/one/a.png"), Path("/another/folder/a.png")),
    (torch.zeros(3).to_sparse(), torch.zeros(3).to_sparse()),
    (np.asfortranarray(LARGE), np.asfortranarray(LARGE.copy())),
    (torch.empty(3, device="meta"), torch.empty(3, device="meta")),
]


@pytest.mark.parametrize(("one", "other"), OTHERS, ids=lambda sample: type(sample).__name__)
def test_samples_that_differ_have_other_digests(one: Any, other: Any) -> None:
    assert digested(one, 0) != digested(other, 0)
    assert digested({"x": [one]}, 0) != digested({"x": [other]}, 0)


@pytest.mark.parametrize(("one", "other"), SAMES, ids=lambda sample: type(sample).__name__)
def test_samples_that_mean_the_same_have_one_digest(one: Any, other: Any) -> None:
    assert digested(one, 0) == digested(other, 0)


def test_samples_of_libraries() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for make in (
        lambda number: pyarrow.table({"a": [number, 2], "b": ["x", None]}),
        lambda number: pyarrow.array([number, 2]),
        lambda number: pyarrow.scalar(number),
        lambda number: pyarrow.record_batch({"a": [number]}),
    ):
        assert digested(make(1), 0) == digested(make(1), 0) != digested(make(3), 0)
    pandas = pytest.importorskip("pandas")
    frames = [pandas.DataFrame({"a": [number, 2]}) for number in (1, 1, 3)]
    first, again, other = (digested(frame, 0) for frame in frames)
    assert first == again != other
    images = pytest.importorskip("PIL.Image")
    first, again, other = (digested(images.new(mode, (3, 4)), 0) for mode in ("RGB", "RGB", "L"))
    assert first == again != other


def test_a_list_that_holds_itself_ends() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert digested(circle, 0) == digested(circle, 0)


def test_every_process_has_the_same_digest() -> None:
    sample = "[{'a', 'b', 'c', 1.5}, {'x': b'1', 'y': (None, True)}, 'text', 10**30]"
    program = f"from dataporter.streams.digest import digested; print(digested({sample}, 5))"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {f"{digested(eval(sample), 5)}\n"}
