"""Comparison: where two recordings first differ, and in how many batches (C1, C2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dataporter.tools.verification.digest import Leaf, path_shown
from dataporter.tools.verification.recording import Event

__all__ = ["Comparison", "Difference", "Kind", "Sample", "compare", "compare_samples", "samples_of"]

Kind = Literal["samples", "values", "dtype", "shape", "keys", "length"]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference.

    Attributes:
        kind: what differs: which samples were delivered; the values, dtype or shape of a leaf; the
            keys of the batch; or the length of the pass.
        batch: number of batches between the interruption and this one.
        epoch, step: of the batch that was expected.
        path: of the leaf, as text; "" if the whole batch differs.
        row: offset in the batch.
        sample: index of the sample in that row; None: the loader does not know it.
        expected, found: the two values.
    """

    kind: Kind
    batch: int
    epoch: int
    step: int
    path: str
    row: int | None
    sample: Any
    expected: str
    found: str

    def __str__(self) -> str:
        sample = "" if self.sample is None else f", sample {self.sample}"
        row = "" if self.row is None else f", row {self.row}"
        leaf = f", {self.path}" if self.path else ""
        return (
            f"epoch {self.epoch}, step {self.step}{leaf}{row}{sample}: expected {self.expected}, "
            f"found {self.found}"
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far two recordings agree.

    Attributes:
        batches: number that were compared; ends of passes do not count.
        differing: number of those that differ.
        kinds: of all differences.
        first: the first difference.
    """

    batches: int
    differing: int
    kinds: frozenset[Kind] = frozenset()
    first: Difference | None = None


def compare(
    expected: Sequence[Event], found: Sequence[Event], *, incomplete: bool = False
) -> Comparison:
    """Compare the events after an interruption with those that were expected.

    Args:
        incomplete: ``found`` ended early, by an error or for lack of time, so missing events are
            no difference.
    """
    batches = differing = 0
    kinds: set[Kind] = set()
    first: Difference | None = None
    for index, should in enumerate(expected):
        if index >= len(found):
            if incomplete:
                break
            difference: Difference | None = Difference(
                *("length", batches, should.epoch, should.step, "", None, None),
                *(_named(should), "nothing more"),
            )
        else:
            difference = _difference(should, found[index], batches)
        if difference is None:
            batches += not should.is_end
            continue
        kinds.add(difference.kind)
        first = first or difference
        if difference.kind == "length":  # all that follows is shifted
            missing = sum(not event.is_end for event in expected[index:])
            batches, differing = batches + missing, differing + missing
            break
        batches, differing = batches + 1, differing + 1
    return Comparison(batches, differing, frozenset(kinds), first)


def _named(event: Event) -> str:
    return "the end of the epoch" if event.is_end else f"a batch{_samples_of(event)}"


def _samples_of(event: Event) -> str:
    if not event.indices:
        return ""
    shown = ", ".join(map(str, event.indices[:6]))
    return f" of samples [{shown}{', ...' if len(event.indices) > 6 else ''}]"


def _difference(should: Event, did: Event, batch: int) -> Difference | None:
    def difference(
        kind: Kind, expected: str, found: str, path: str = "", row: int | None = None
    ) -> Difference:
        known = row is not None and should.indices is not None and row < len(should.indices)
        sample = should.indices[row] if known else None  # type: ignore[index]  # known
        return Difference(
            kind, batch, should.epoch, should.step, path, row, sample, expected, found
        )

    if should.is_end or did.is_end:
        if should.is_end == did.is_end:
            return None
        return difference("length", _named(should), _named(did))
    # What a custom sampler has yielded is not always known.
    if None not in (should.indices, did.indices) and should.indices != did.indices:
        pairs = enumerate(zip(should.indices or (), did.indices or ()))
        row = next((row for row, (one, other) in pairs if one != other), None)
        return difference(
            "samples", f"a batch{_samples_of(should)}", f"a batch{_samples_of(did)}", row=row
        )
    paths, others = [leaf.path for leaf in should.leaves], [leaf.path for leaf in did.leaves]
    if paths != others:
        in_order = "" if sorted(map(str, paths)) != sorted(map(str, others)) else " in this order"
        return difference(
            "keys", _keys_shown(should.leaves) + in_order, _keys_shown(did.leaves) + in_order
        )
    for leaf, other in zip(should.leaves, did.leaves):
        if leaf.digest != other.digest:
            kind, expected, found, row = _difference_in_leaf(leaf, other, should)
            return difference(kind, expected, found, path_shown(leaf.path), row)
    return None


def _keys_shown(leaves: Sequence[Leaf]) -> str:
    names = [path_shown(leaf.path) for leaf in leaves if leaf.path[-1:] != ("()",)]
    return f"the keys {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _difference_in_leaf(leaf: Leaf, other: Leaf, event: Event) -> tuple[Kind, str, str, int | None]:
    if leaf.path[-1:] == ("()",):
        return "keys", _text(leaf.value), _text(other.value), None
    if (leaf.kind, leaf.dtype) != (other.kind, other.dtype):
        return "dtype", leaf.dtype or leaf.kind, other.dtype or other.kind, None
    if leaf.shape != other.shape:
        return "shape", str(list(leaf.shape)), str(list(other.shape)), None
    pairs = enumerate(zip(leaf.rows, other.rows))
    row = next((row for row, (one, another) in pairs if one != another), None)
    if row is None:
        # A list with an item for each sample, such as strings, is a leaf for each item.
        in_list = event.indices is not None and isinstance(leaf.path[-1:], tuple) and leaf.path
        last = leaf.path[-1] if in_list else None
        row = last if isinstance(last, int) and last < len(event.indices or ()) else None
        return "values", _text(leaf.value), _text(other.value), row
    if leaf.value is None or other.value is None:
        return "values", f"bytes of digest {leaf.rows[row].hex()}", other.rows[row].hex(), row
    one, another = np.asarray(leaf.value[row]), np.asarray(other.value[row])
    offset = _first_unequal(one, another)
    at = "" if one.size < 2 else f" at {list(map(int, np.unravel_index(offset, one.shape)))}"
    return "values", _text(one.reshape(-1)[offset]) + at, _text(another.reshape(-1)[offset]), row


def _first_unequal(one: Any, other: Any) -> int:
    """The offset of the first element whose bytes differ: NaN equals itself."""
    size = one.dtype.itemsize
    pairs = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (one, other)]
    return int(np.argmax((pairs[0] != pairs[1]).reshape(-1, size).any(axis=1)))


def _text(value: Any) -> str:
    if value is None:
        return "a value that was not kept"
    text = str(value.item() if isinstance(value, np.generic) else value)
    if isinstance(value, str):
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Sample(NamedTuple):
    """A sample as a batch delivered it: its index, and its row of each leaf."""

    index: Any
    rows: tuple[tuple[str, bytes], ...]
    epoch: int
    step: int


def samples_of(ranks: Sequence[Sequence[Event]]) -> list[Sample]:
    """The samples in the rest of an epoch, in order over all ranks and without padding.

    Leaves that do not have a row for each sample are left out.
    """
    left = [list(_until_end(events)) for events in ranks]
    samples: list[Sample] = []
    for step in range(max(map(len, left), default=0)):
        for events in left:
            if step >= len(events):
                continue
            event = events[step]
            indices = event.indices or ()
            for row, index in enumerate(indices):
                if event.repeats and event.repeats[row]:
                    continue
                rows = tuple(
                    (path_shown(leaf.path), leaf.rows[row])
                    for leaf in event.leaves
                    if len(leaf.rows) == len(indices)
                )
                samples.append(Sample(index, rows, event.epoch, event.step))
    return samples


def _until_end(events: Sequence[Event]) -> Any:
    for event in events:
        if event.is_end:
            return
        yield event


def compare_samples(
    expected: Sequence[Sequence[Event]], found: Sequence[Sequence[Event]], dropped: int = 0
) -> Comparison:
    """Compare the rest of an epoch sample by sample, across batch sizes and numbers of ranks.

    Args:
        expected, found: the events of each rank.
        dropped: of a loader that drops an incomplete last batch: one run may lack fewer than this.
    """
    should_be, delivered = samples_of(expected), samples_of(found)
    count = min(len(should_be), len(delivered))
    differing, first = 0, None
    kinds: set[Kind] = set()
    surplus = abs(len(should_be) - len(delivered))
    if surplus >= max(1, dropped) and _have_ended(expected) and _have_ended(found):
        differing += surplus
        kinds.add("length")
        at = (should_be or delivered)[-1]
        first = Difference(
            *("length", count, at.epoch, at.step, "", None, None),
            *(f"{len(should_be)} samples to the end of the epoch", str(len(delivered))),
        )
    for number, (should, did) in enumerate(zip(should_be, delivered)):
        if should.index == did.index and _rows_agree(should.rows, did.rows):
            continue
        differing += 1
        kind: Kind = "samples" if should.index != did.index else "values"
        kinds.add(kind)
        if first is None:
            path = _first_path(should, did) if kind == "values" else ""
            named = ("sample {}", "the values it had")[kind == "values"]
            other = ("sample {}", "others")[kind == "values"]
            first = Difference(
                *(kind, number, should.epoch, should.step, path, None, should.index),
                *(named.format(should.index), other.format(did.index)),
            )
    return Comparison(count, differing, frozenset(kinds), first)


def _have_ended(ranks: Sequence[Sequence[Event]]) -> bool:
    return all(any(event.is_end for event in events) for events in ranks)


def _rows_agree(one: Sequence[Any], other: Sequence[Any]) -> bool:
    held = dict(other)
    return all(held.get(path, row) == row for path, row in one)


def _first_path(one: Sample, other: Sample) -> str:
    held = dict(other.rows)
    return next((path for path, row in one.rows if held.get(path, row) != row), "")
