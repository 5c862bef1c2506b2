"""Digests and comparison: each difference in a byte, dtype, shape, key or sample is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dataporter.tools.verification.comparison import compare, compare_samples
from dataporter.tools.verification.digest import digest_of, leaves_of
from dataporter.tools.verification.recording import Event


def event(batch: Any, indices: Any = (5, 7), step: int = 0, **more: Any) -> Event:
    return Event(0, step, tuple(leaves_of(batch)), indices, **more)


END = Event(0, 3, is_end=True)


class Pair(NamedTuple):
    x: Any
    y: Any


BATCH = {
    "image": torch.tensor([[1.0, float("nan")], [3.0, 4.0]]),
    "label": np.array([1, 2]),
    "text": ["one", "two"],
    "pair": Pair(torch.tensor([1, 2], dtype=torch.bfloat16), b"bytes"),
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**BATCH, **changes}


@pytest.mark.parametrize(
    ("other", "kind", "path", "row", "shown"),
    [
        (
            changed(image=torch.tensor([[1.0, float("nan")], [3.0, 5.0]])),
            *("values", "image", 1, ("4.0 at [1]", "5.0")),
        ),
        (
            changed(image=torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
            *("values", "image", 0, ("nan at [1]", "2.0")),
        ),
        (changed(image=BATCH["image"].double()), "dtype", "image", None, ("float32", "float64")),
        (changed(image=BATCH["image"][:, :1]), "shape", "image", None, ("[2, 2]", "[2, 1]")),
        (changed(label=np.array([1, 3])), "values", "label", 1, ("2", "3")),
        (changed(label=torch.tensor([1, 2])), "dtype", "label", None, ("int64", "int64")),
        (changed(text=["one", "too"]), "values", "text.1", 1, ("'two'", "'too'")),
        (
            changed(pair=Pair(torch.tensor([1, 3], dtype=torch.bfloat16), b"bytes")),
            *("values", "pair.x", 1, ("16384", "16448")),
        ),
        (changed(pair=Pair(BATCH["pair"].x, b"other")), "values", "pair.y", None, ("b'bytes'",)),
        (changed(more=1), "keys", "", None, ("image, label", "more")),
        (dict(reversed(BATCH.items())), "keys", "", None, ("in this order",)),
    ],
)
def test_the_first_difference_is_named(
    other: Any, kind: str, path: str, row: int | None, shown: tuple[str, ...]
) -> None:
    same = compare([event(BATCH), END], [event(BATCH), END])
    assert (same.batches, same.differing, same.first) == (1, 0, None)
    found = compare([event(BATCH), END], [event(other), END])
    assert (found.batches, found.differing, set(found.kinds)) == (1, 1, {kind})
    assert found.first is not None
    assert (found.first.path, found.first.row) == (path, row)
    assert found.first.sample == (None if row is None else (5, 7)[row])
    for text in shown:
        assert text in f"{found.first.expected} / {found.first.found}"


def test_other_samples_are_distinguished_from_other_values() -> None:
    found = compare([event(BATCH)], [event(BATCH, (5, 8))])
    assert found.first is not None
    assert (found.first.kind, found.first.row, found.first.sample) == ("samples", 1, 7)


def test_samples_that_are_not_known_are_no_difference() -> None:
    assert compare([event(BATCH)], [event(BATCH, None)]).first is None
    assert compare([event(BATCH, None)], [event(BATCH)]).first is None


def test_a_pass_that_ends_early_is_a_difference_and_all_after_it_count() -> None:
    batches = [event(BATCH, step=step) for step in range(3)]
    short = compare([*batches, END, batches[0]], [*batches[:2], END, batches[0]])
    assert (short.batches, short.differing, set(short.kinds)) == (4, 2, {"length"})
    assert short.first is not None
    assert short.first.found == "the end of the epoch"
    nothing = compare([*batches, END], batches[:1])
    assert (nothing.batches, nothing.differing) == (3, 2)
    only_the_end = compare([*batches, END], batches)
    assert only_the_end.first is not None
    assert (only_the_end.batches, only_the_end.differing) == (3, 0)


def test_events_missing_because_of_an_error_or_lack_of_time_are_no_difference() -> None:
    found = compare([event(BATCH), event(BATCH)], [event(BATCH)], incomplete=True)
    assert (found.batches, found.differing, found.first) == (1, 0, None)


def test_sets_and_objects_are_compared_by_their_content() -> None:
    class Thing:
        def __init__(self, value: Any) -> None:
            self.value = value

    class Slotted:
        __slots__ = ("value",)

        def __init__(self, value: Any) -> None:
            self.value = value

    class Word(str):
        __slots__ = ()

        def __repr__(self) -> str:
            return "a word"

    class Tagged(int):
        pass

    assert digest_of({"a", "b", "c"}) == digest_of({"c", "b", "a"})
    assert digest_of(Slotted(1)) == digest_of(Slotted(1)) != digest_of(Slotted(2))
    assert digest_of(Word("a")) == digest_of(Word("a")) != digest_of(Word("b"))
    assert digest_of("read at 0x1f") != digest_of("read at 0x2f")
    tagged, others = Tagged(3), Tagged(3)
    assert digest_of(tagged) == digest_of(others) != digest_of(Tagged(4))
    others.tag = 1  # type: ignore[attr-defined]
    assert digest_of(tagged) != digest_of(others)
    assert digest_of(Path("a/b")) == digest_of(Path("a/b")) != digest_of(Path("a/c"))
    assert digest_of(Thing(torch.ones(2))) == digest_of(Thing(torch.ones(2)))
    assert digest_of(Thing(torch.ones(2))) != digest_of(Thing(torch.zeros(2)))
    looped: list[Any] = [1]
    looped.append(looped)
    assert digest_of(looped)
    assert digest_of({}) != digest_of([])
    assert digest_of(torch.empty(0, 3)) != digest_of(torch.empty(0, 4))
    assert digest_of(torch.eye(3).to_sparse()) == digest_of(torch.eye(3).to_sparse())


def rows(values: list[int], indices: list[int], step: int, **more: Any) -> Event:
    return event({"x": torch.tensor(values)}, tuple(indices), step, **more)


def test_samples_are_compared_across_batch_sizes_and_ranks() -> None:
    one = [rows([10, 11, 12, 13], [0, 1, 2, 3], 0), rows([14], [4], 1), END]
    two = [
        [rows([10, 11], [0, 1], 0), rows([14], [4], 1), END],
        [rows([12, 13], [2, 3], 0), rows([10], [0], 1, repeats=(True,)), END],
    ]
    assert compare_samples([one], two).first is None
    assert compare_samples([one], two).batches == 5
    fewer = [one[0], END]
    assert compare_samples([one], [fewer]).first is not None
    assert compare_samples([one], [fewer], dropped=4).first is None  # a dropped tail
    assert compare_samples([one], [fewer], dropped=1).first is not None
    two[1][0] = rows([12, 99], [2, 3], 0)
    found = compare_samples([one], two)
    assert found.first is not None
    assert (found.differing, found.first.sample, found.first.path) == (1, 3, "x")
    two[1][0] = rows([12], [2], 0)
    found = compare_samples([one], two)
    assert {"samples", "length"} == set(found.kinds)
