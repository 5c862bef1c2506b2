"""SharedSequence: the objects read equal those given, and errors name the wrong one."""

from __future__ import annotations

import copy
import math
import pickle
import random
import struct
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from example_records import EXAMPLES, Note, Pair, Unwilling, descriptors, same
from hypothesis import example, given
from hypothesis import strategies as st

from dataporter import ConfigurationError, SharedSequence
from dataporter.shared.block import create_block


class Count(int):
    pass


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return math.sqrt, (-1,)


texts = st.text(st.characters(), max_size=8) | st.sampled_from(["", "\ud800", "\udfff\ud83d", "é"])


integers = (
    st.integers(-300, 300)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([s * 2**b + d for s in (1, -1) for b in (7, 15, 31, 63) for d in (-1, 0, 1)])
)


floats = st.floats() | st.sampled_from(
    [-0.0, struct.unpack("d", b"\x01\x02\x03\x04\x05\x06\xf8\xff")[0]]
)


columns = [texts, integers, st.integers(-9, 9), floats, st.booleans(), st.none(), st.binary()]


others = st.sampled_from(
    [
        Pair(1, "a"),
        Note("b", -0.0),
        torch.arange(3),
        Count(7),
        {1: 2},
        {True: 2},
        {1.0: 2},
        {Count(1): 0},
    ]
)


scalars = st.one_of(*columns)


values = st.recursive(
    scalars | others,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abcd") | texts, inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def alike(draw: st.DrawFn) -> list[Any]:
    """Records of one shape, or values of one type."""
    fields = draw(st.lists(st.sampled_from([*columns, values]), max_size=4))
    names = draw(st.lists(texts, min_size=len(fields), max_size=len(fields), unique=True))
    row = draw(
        st.sampled_from(
            [
                st.tuples(*fields),
                st.tuples(*fields).map(list),
                st.tuples(*fields).map(lambda row: dict(zip(names, row))),
                draw(st.sampled_from(columns)),
            ]
        )
    )
    return draw(st.lists(row, max_size=12))


# Repeated, they fill many pieces of columns before a value that does not fit.
object_lists = st.lists(values, max_size=8) | st.builds(
    lambda before, times, late, after: before * times + late + after,
    alike(),
    st.sampled_from([1, 1, 1, 300]),
    st.lists(values, max_size=2),
    alike(),
)


slices = st.builds(
    slice,
    st.none() | st.integers(-15, 15),
    st.none() | st.integers(-15, 15),
    st.none() | st.sampled_from([-7, -3, -1, 1, 2, 5]),
)


@given(object_lists)
@example([0, False, 1.0, 1, "1"])
@example([0, True, 1])
@example([True, 0, False])
@example([{"a": 0.5}, {"a": 1}])
@example([{"a": 1}, {"a": True}, {"a": 1.0}])
@example([{"a": 1, "b": 2}, {"b": 2, "a": 1}])
@example([(), (), [1]])
@example([{}, {}, {"a": 1}])
@example([Pair(1, 2), (1, 2)])
@example([{True: 1}, {1: 1}])
@example(["\ud83d", "\ude00", "\ud83d\ude00", "😀"])
def test_what_comes_out_is_what_went_in(objects: list[Any]) -> None:
    shared = SharedSequence(iter(objects))
    length = len(objects)
    assert len(shared) == length
    assert same(list(shared), objects)
    assert same(list(reversed(shared)), objects[::-1])
    indices = random.Random(length).sample(range(-length, length), min(50, 2 * length))
    for index in indices:
        assert same(shared[index], objects[index])
        assert same(shared[np.int64(index)], objects[index])
    assert same(shared.__getitems__(indices), [objects[index] for index in indices])
    for beyond in (length, -length - 1):
        with pytest.raises(IndexError, match="index"):
            shared[beyond]


@given(alike(), st.lists(slices, min_size=1, max_size=3))
def test_slices_of_slices_are_those_of_a_list_and_copy_nothing(
    objects: list[Any], cuts: list[slice]
) -> None:
    view, sliced = SharedSequence(objects), objects
    block = view._block
    for cut in cuts:
        view, sliced = view[cut], sliced[cut]
        assert type(view) is SharedSequence
        assert view._block is block
        assert same(list(view), sliced)
        for index in range(-len(sliced), len(sliced)):
            assert same(view[index], sliced[index])
        assert same(list(pickle.loads(pickle.dumps(view))), sliced)
        with pytest.raises(IndexError, match="empty" if not sliced else f"{-len(sliced)} to"):
            view[len(sliced)]


@given(
    st.lists(st.sampled_from([0, 1, True, 1.0, "a", None, (1,)]), max_size=6),
    st.sampled_from([0, 1, "a", None, (1,), "absent"]),
)
def test_searching_and_comparing_are_those_of_a_list(objects: list[Any], sought: Any) -> None:
    shared = SharedSequence(objects)
    assert (sought in shared) == (sought in objects)
    assert shared.count(sought) == objects.count(sought)
    if sought in objects:
        assert shared.index(sought) == objects.index(sought)
    else:
        with pytest.raises(ValueError):  # noqa: PT011  # as a list does
            shared.index(sought)
    for other in (objects, tuple(objects), SharedSequence(objects), shared):
        assert shared == other
        assert other == shared
    for other in ([*objects, 1], [*objects[:-1], "other"], "abc", 5):
        assert (shared == other) == (objects == other)
        assert (shared != other) == (objects != other)


def test_it_has_no_hash_and_cannot_be_changed() -> None:
    shared = SharedSequence([[1, "a"], [2, "b"]])
    with pytest.raises(TypeError, match="unhashable"):
        hash(shared)
    with pytest.raises(TypeError):
        shared[0] = [3, "c"]  # type: ignore[index]
    with pytest.raises(TypeError, match="read-only"):
        shared._block.memory[0] = 0
    shared[0].append("changed")
    assert shared == [[1, "a"], [2, "b"]]


@pytest.mark.parametrize(
    ("objects", "bytes_each"),
    [
        ([i % 100 for i in range(50_000)], 1),
        ([-(2**15)] * 50_000, 2),
        ([2**31 - 1] * 50_000, 4),
        ([2**31] * 50_000, 8),
        ([0.5] * 50_000, 8),
        ([True, False] * 25_000, 1),
        (["abcd"] * 50_000, 8),
        ([{"a": 1, "b": 1000}] * 50_000, 3),
        ([(1, 1.0, "é")] * 50_000, 15),
        # The last value widens the column.
        ([1] * 49_999 + [1000], 2),
    ],
)
def test_columns_are_as_narrow_as_their_values(objects: list[Any], bytes_each: int) -> None:
    shared = SharedSequence(objects)
    assert same(list(shared), objects)
    assert len(objects) * bytes_each <= shared.nbytes <= len(objects) * bytes_each + 1000
    assert shared[::2].nbytes == shared.nbytes


@pytest.mark.parametrize("late", [[], ["misfit", None], [{"a": 1}]])
@pytest.mark.parametrize(
    "objects",
    [
        ["a" * 700_000, "", "b" * 2_500_000, "", ""],
        [{"a": f"{i:0100d}", "b": i, "c": [i]} for i in range(30_000)],
        [(0.5 * i, i % 2 == 0, -i) for i in range(300_000)],
        [tuple(range(64))] * 5,
        [list(range(65))] * 5,
    ],
)
def test_large_columns_and_wide_records(objects: list[Any], late: list[Any]) -> None:
    objects = objects + late
    shared = SharedSequence(objects)
    assert len(shared) == len(objects)
    assert all(map(same, shared, objects))
    assert same(shared[len(objects) - 1], objects[-1])


def test_a_generator_is_consumed_lazily() -> None:
    alive = most = 0

    class Large:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

        def __reduce__(self) -> Any:
            return bytes, (bytes(self.size),)

    class Small(Large):
        size = 10

    Large.size = 100_000
    shared = SharedSequence(Large() for _ in range(200))
    assert shared[199] == bytes(100_000)
    assert most < 50
    most = 0
    SharedSequence(Small() for _ in range(10_000))
    assert most < 2100


def test_its_repr_is_short() -> None:
    assert repr(SharedSequence(range(100_000))) == (
        "<SharedSequence of 100,000 objects, 0.4 MB shared>"
    )


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("view", [slice(None), slice(30, 5, -3)])
def test_copies_share_the_block(copied: Any, view: slice) -> None:
    shared = SharedSequence(EXAMPLES)[view]
    again = copied(shared)
    assert again == EXAMPLES[view]
    assert again._block is shared._block
    assert sys.platform != "linux" or len(pickle.dumps(shared)) < 500


def read_from_thread(shared: SharedSequence[Any], seed: int, failures: list[Any]) -> None:
    order = list(range(len(shared)))
    random.Random(seed).shuffle(order)
    for index in order * 20:
        if not same(shared[index], EXAMPLES[index]):
            failures.append(index)


def test_threads_read_at_once() -> None:
    shared, failures = SharedSequence(EXAMPLES), []
    threads = [
        threading.Thread(target=read_from_thread, args=(shared, seed, failures))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


# Errors.


@pytest.mark.parametrize("before", [0, 1, 5000])
@pytest.mark.parametrize(
    "wrap", [lambda it: it, lambda it: {"a": it}, lambda it: (it, 1), lambda it: [[it]]]
)
def test_an_object_that_cannot_be_pickled_is_named_by_its_index(before: int, wrap: Any) -> None:
    objects = [wrap(n) for n in range(before)] + [wrap(Unwilling()), wrap(1)]
    with pytest.raises(ConfigurationError, match=rf"object {before} cannot .*not me.*instead"):
        SharedSequence(iter(objects))


def test_an_object_that_cannot_be_unpickled_is_named_when_it_must_be() -> None:
    objects = [{"a": n} for n in range(3000)] + [{"a": OneWay()}] * 2000 + [{"b": 1}]
    with pytest.raises(ConfigurationError, match=r"object 3000 cannot .*math domain"):
        SharedSequence(objects)


@pytest.mark.parametrize("nothing", [5, None, object()])
def test_an_argument_that_is_not_iterable_is_refused(nothing: Any) -> None:
    with pytest.raises(ConfigurationError, match="not iterable: pass a list"):
        SharedSequence(nothing)


def test_an_error_of_the_generator_is_raised_unchanged() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        SharedSequence(failing())


@pytest.mark.parametrize("index", ["a", 1.0, None, [1]])
def test_wrong_types_of_index_are_named(index: Any) -> None:
    with pytest.raises(TypeError, match="indexed by integers and slices, not by"):
        SharedSequence([1, 2])[index]


def test_an_index_out_of_range_says_what_is_in_range() -> None:
    shared = SharedSequence(range(1500))
    with pytest.raises(IndexError, match=r"index 1500 is out of range .* of 1,500 .*-1500 to 1499"):
        shared[1500]
    with pytest.raises(IndexError, match="index 3: this SharedSequence is empty"):
        SharedSequence([])[3]


def test_a_block_is_not_half_made() -> None:
    def fail(_: Any) -> None:
        raise OSError("full")

    before = descriptors() if sys.platform == "linux" else 0
    with pytest.raises(OSError, match="full"):
        create_block(100, fail)
    assert sys.platform != "linux" or descriptors() == before
