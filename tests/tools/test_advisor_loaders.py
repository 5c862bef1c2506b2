"""Loaders of an advisor: wherever a loader delivers batches, it gets suggestions, and stays put."""

from __future__ import annotations

import copy
import datetime
import itertools
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import own_samplers
import pytest
import torch
from budgets import cases
from datasets import Dataset, Features, List, Value
from example_advice import at
from example_batches import ROWS, Frozen, Pair, Slotted
from example_streams import KINDS, Stateful, rest
from example_tables import TEXTS, mixed
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, digest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataporter import (
    LossyConversionError,
    ResumableDataLoader,
    UnifiedHFDatasetWrapper,
    UnsupportedDatasetError,
    suggest_conversions,
)

# ---- sources of every kind


def ragged() -> Dataset:
    day = datetime.date(2024, 2, 29)
    return Dataset.from_dict(
        {
            **{name: [*rows, [1]] * 3 for name, rows in TEXTS.items()},
            "null": [1, None, 3, 4] * 3,
            "nulls": [[1], None, [None, 2], []] * 3,
            "day": [day, None, day, day] * 3,
            "words": [["a"], [], ["b", "c"], ["d"]] * 3,
            "score": [0.5, 1.25, 3.0, 0.1] * 3,
        }
    )


def nested() -> Dataset:
    features = Features({"pairs": List({"x": Value("int64"), "y": List(Value("float64"))})})
    pairs = [[{"x": n, "y": [n / 2] * (n % 3)} for n in range(length)] for length in (2, 0, 1)]
    return Dataset.from_dict({"pairs": pairs * 3}, features=features)


TABLES: dict[str, tuple[Callable[[], Dataset], dict[str, Any]]] = {
    "mixed": (mixed, {}),
    "converted": (mixed, {"dtype_conversions": {"grid": "int16"}}),
    "ragged": (ragged, {}),
    "padded": (ragged, {"pad": {"input_ids": 0, "labels": -100}}),
    "some columns": (ragged, {"columns": ["labels", "day"]}),
    "transformed": (ragged, {"transform": lambda sample: (sample["score"], sample["day"])}),
    "nested": (nested, {}),
}
BATCHES = {
    "pairs": [Pair(torch.rand(3), number) for number in range(11)],
    "frozen": [Frozen(torch.rand(3), number) for number in range(11)],
    "slotted": [Slotted(np.float32(number), [number] * 3) for number in range(11)],
    "numbers": list(range(11)),
    "text": [f"text {number}" for number in range(11)],
}


def wrapped(name: str, *, streamed: bool) -> Any:
    table, arguments = TABLES[name]
    rows = table().to_iterable_dataset(num_shards=3) if streamed else table()
    return UnifiedHFDatasetWrapper(rows, **arguments)


SOURCES: dict[str, Callable[[], Any]] = {
    **{f"table, {name}": lambda name=name: wrapped(name, streamed=False) for name in TABLES},
    **{f"streamed, {name}": lambda name=name: wrapped(name, streamed=True) for name in TABLES},
    "streamed, bare": lambda: ragged().to_iterable_dataset(num_shards=3),
    **{f"stream, {name}": lambda name=name: KINDS[name](13) for name in KINDS},
    **{f"batch, {name}": lambda name=name: BATCHES[name] for name in BATCHES},
    "columns": lambda: ROWS,
    "random": lambda: Augmented(13),
}
LOADERS = {"ours": ResumableDataLoader, "torch's": DataLoader}


def delivers(loader: Any) -> bool:
    """Whether there is a first batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            next(iter(loader))
        except Exception:
            return False
    return True


@given(
    st.sampled_from(sorted(SOURCES)),
    st.sampled_from(sorted(LOADERS)),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([0, 0, 0, 1]),
    st.integers(0, 2),
)
@settings(max_examples=cases(60))
def test_wherever_a_loader_delivers_there_are_suggestions_that_hold(
    source: str, kind: str, batch_size: int | None, workers: int, stop: int
) -> None:
    def make() -> Any:
        arguments = {"seed": 5} if kind == "ours" else {}
        return LOADERS[kind](SOURCES[source](), batch_size, num_workers=workers, **arguments)

    if not delivers(make()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader, untouched = make(), make()
        batches, others = iter(loader), iter(untouched)
        for _ in range(stop):
            next(batches, None), next(others, None)
        state = loader.state_dict() if kind == "ours" else None
        plan = suggest_conversions(loader)
        if state is not None:
            assert loader.state_dict() == state
            assert [digest(batch) for batch in batches] == [digest(batch) for batch in others]
            assert rest(loader) == rest(untouched)
        converter = plan.converter()
        for batch in make():
            try:
                narrow = converter.convert_batch(batch)
            except LossyConversionError:
                assert "guess" in {one.certainty for one in plan.suggestions}
                continue
            assert digest(converter.widen(narrow)) == digest(batch)


# ---- what is in the plan


def test_lists_of_several_lengths_have_one_path() -> None:
    plan = suggest_conversions(ResumableDataLoader(wrapped("ragged", streamed=False), 4))
    assert at(plan, "input_ids.*").form == "uint8"
    assert at(plan, "input_ids.*").certainty == "certain"
    (note,) = (note for note in plan.notes if "no rule converts" in note)
    for path in ("'day.*' (date)", "'words.*.*' (str)", "'null.*' (NoneType)"):
        assert path in note


def test_padded_columns_and_their_masks_have_suggestions() -> None:
    plan = suggest_conversions(ResumableDataLoader(wrapped("padded", streamed=True), 4))
    assert at(plan, "input_ids").form == "uint8"
    assert at(plan, "labels").form == "int8"
    assert at(plan, "attention_mask").dtypes == ("int8",)


# ---- what does not move


def test_a_stream_keeps_its_place_whatever_the_source() -> None:
    for make in (lambda one: one, lambda one: DataLoader(one, 3), ResumableDataLoader):
        stream = Stateful(13)
        samples = iter(stream)
        first = [next(samples)["index"] for _ in range(4)]
        plan = suggest_conversions(make(stream), 5)
        assert at(plan, "index").values == 5
        assert [*first, *(sample["index"] for sample in samples)] == list(range(13))


class Locked(IterableDataset[Any]):
    """Cannot be copied, and keeps its place on itself."""

    def __init__(self) -> None:
        self.lock, self.place = threading.Lock(), 0

    def __iter__(self) -> Iterator[int]:
        while self.place < 9:
            self.place += 1
            yield self.place - 1
        self.place = 0


class LockedStateful(Locked):
    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def test_a_stream_that_cannot_be_copied_gets_its_state_back_or_a_note() -> None:
    stream = LockedStateful()
    next(iter(stream))
    plan = suggest_conversions(DataLoader(stream, 2), 4)
    assert (stream.place, plan.notes) == (1, ())
    moved = suggest_conversions(DataLoader(Locked(), 2), 4)
    assert "may have moved" in moved.notes[0]
    in_a_worker = suggest_conversions(DataLoader(stream, 2, num_workers=1), 4)
    assert (stream.place, in_a_worker.notes) == (1, ())


def test_large_arrays_of_a_stream_are_not_copied() -> None:
    class Rows(IterableDataset[Any]):
        def __init__(self) -> None:
            self.held = {"rows": [torch.zeros(1 << 20)]}

        def __iter__(self) -> Iterator[int]:
            yield id(self.held["rows"][0])

    rows = Rows()
    assert at(suggest_conversions(rows), "").high == id(rows.held["rows"][0])


# ---- what the loader alone knows


class Keyed:
    """Has no length, and no sample 0."""

    def __init__(self) -> None:
        self.samples = {"a": torch.tensor(1), "b": torch.tensor(300)}

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.samples[key]


@pytest.mark.parametrize("kind", LOADERS)
def test_a_custom_sampler_knows_the_indices(kind: str) -> None:
    for arguments in ({"sampler": ["a", "b"]}, {"batch_sampler": [["a"], ["b", "a"]]}):
        plan = suggest_conversions(LOADERS[kind](Keyed(), **arguments))
        assert (at(plan, "").high, at(plan, "").certainty) == (300, "guess")
    rows = [1, 2, None, 4]
    chosen = suggest_conversions(LOADERS[kind](rows, 2, sampler=[0, 1, 3]))
    assert (at(chosen, "").high, chosen.length, chosen.samples) == (4, 4, 3)
    assert at(chosen, "").certainty == "guess"
    every = suggest_conversions(LOADERS[kind](range(4), 2, sampler=[3, 0, 1, 2]))
    assert at(every, "").certainty == "certain"


@pytest.mark.parametrize("pattern", sorted(own_samplers.PATTERNS))
def test_a_custom_sampler_does_not_move(pattern: str) -> None:
    make = own_samplers.PATTERNS[pattern].build
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = make()
        if isinstance(next(iter(arguments.values())), types.GeneratorType):
            return  # of which there is no copy
        before = digest_of(arguments)
        plan = suggest_conversions(DataLoader(range(own_samplers.LENGTH), **arguments))
        assert digest_of(arguments) == before
    assert plan.samples


def digest_of(arguments: dict[str, Any]) -> str:
    """What can be seen of the samplers."""
    (sampler,) = arguments.values()
    if isinstance(sampler, Iterator):
        return repr(list(copy.copy(sampler)))
    return repr(sorted((name, repr(value)) for name, value in vars(sampler).items()))


def test_a_sampler_without_end_is_not_drawn_to_its_end() -> None:
    class Endless:
        def __iter__(self) -> Iterator[int]:
            return itertools.cycle(range(50))

    plan = suggest_conversions(DataLoader(range(100), 4, sampler=Endless()), 20)
    assert plan.samples == 20
    assert (at(plan, "").high or 0) < 50


def test_what_can_be_read_in_workers_only_is_read_in_one() -> None:
    class InWorkers(IterableDataset[Any]):
        def __iter__(self) -> Iterator[int]:
            info: Any = get_worker_info()
            yield from range(info.id, self.length, info.num_workers)

    def begin(worker: int) -> None:
        info: Any = get_worker_info()
        info.dataset.length = 20

    for loader in LOADERS.values():
        arguments: dict[str, Any] = {"num_workers": 2, "worker_init_fn": begin}
        plan = suggest_conversions(loader(InWorkers(), 4, **arguments))
        assert (at(plan, "").high, plan.samples) == (19, 20)
    with pytest.raises(AttributeError):
        suggest_conversions(DataLoader(InWorkers(), 4))


def test_what_fails_in_a_worker_arrives_as_it_was() -> None:
    class Broken(IterableDataset[Any]):
        def __iter__(self) -> Iterator[int]:
            raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        suggest_conversions(DataLoader(Broken(), 4, num_workers=1))


def test_a_stream_that_draws_proves_nothing() -> None:
    for kind in KINDS:
        plan = suggest_conversions(ResumableDataLoader(KINDS[kind](13), 4, seed=1))
        if kind != "shuffled shards":  # which has drawn under seeds of its own
            assert "draws random numbers" in plan.notes[0], kind
    still = suggest_conversions(ResumableDataLoader(wrapped("padded", streamed=True), 4))
    assert "certain" in {one.certainty for one in still.suggestions}


def test_a_stream_leaves_out_what_its_loader_leaves_out() -> None:
    class Failing(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return copy.copy(self)

        place = 0

        def __next__(self) -> int:
            self.place += 1
            if self.place > 9:
                raise StopIteration
            if self.place == 3:
                raise OSError("unreadable")
            return self.place

    plan = suggest_conversions(ResumableDataLoader(Failing(), 4, on_error="skip"))
    assert (plan.samples, at(plan, "").certainty) == (8, "guess")
    assert "left out 1 samples" in plan.notes[0]


def test_a_dataset_without_a_length_says_what_to_pass() -> None:
    with pytest.raises(UnsupportedDatasetError, match="no length"):
        suggest_conversions(Keyed())
