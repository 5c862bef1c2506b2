"""Batches of mixtures: each source is read as if it were alone, and the batch is put together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from datasets import Dataset as Rows
from datasets import Sequence as ListOf
from datasets import Value
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import Augmented, digest
from torch.utils.data import Subset, TensorDataset, default_collate

from dataporter import (
    ConfigurationError,
    KeyBasedDtypeConverter,
    Mixture,
    ResumableDataLoader,
    SampleError,
    UnifiedHFDatasetWrapper,
    sample_rng,
)
from dataporter.fetch.fetch import WholeFetch, fetch_for
from dataporter.fetch.mixed import MixedFetch


class Together:
    """Rows that are read together, and counts how often they were."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows
        self.asked = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        self.asked += 1
        return [self.rows[index] for index in indices]


def tensors(length: int, begin: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.arange(begin, begin + length)
    return numbers[:, None] + torch.arange(3) / 10, numbers.to(torch.bfloat16)


def pairs(length: int, begin: int) -> TensorDataset:
    return TensorDataset(*tensors(length, begin))


def dicts(length: int, begin: int) -> dict[str, torch.Tensor]:
    return dict(zip("xy", tensors(length, begin)))


def listed(length: int, begin: int) -> list[dict[str, Any]]:
    return [
        {"x": x, "y": y, "text": f"{begin}", "number": begin + n}
        for n, (x, y) in enumerate(zip(*tensors(length, begin)))
    ]


def hugging(length: int, begin: int, **options: Any) -> UnifiedHFDatasetWrapper:
    return UnifiedHFDatasetWrapper(table(length, begin), **options)


@cache
def table(length: int, begin: int) -> Rows:
    columns = {
        "ids": [list(range(n % 5 + begin % 3)) for n in range(length)],
        "even": [[float(n), float(begin)] for n in range(length)],
        "text": [f"{begin + n}" for n in range(length)],
        "when": [None if n % 7 == 3 and begin > 500 else n for n in range(length)],
        "struct": [{"a": n, "b": [n] * (begin % 4)} for n in range(length)],
        "labels": [[n] * (n % 3) for n in range(length)],
    }
    rows = Rows.from_dict(columns)
    # One row may have empty lists alone, of which the type would be unknown.
    for name in ("ids", "labels"):
        rows = rows.cast_column(name, ListOf(Value("int64")))
    return rows


# By family, what makes a source of a length whose content begins at a number.
FAMILIES: dict[str, list[Callable[[int, int], Any]]] = {
    "pairs": [
        pairs,
        lambda length, begin: Subset(pairs(length + 2, begin), list(range(1, length + 1))),
        lambda length, begin: list(pairs(length, begin)),
        lambda length, begin: Together(list(pairs(length, begin))),
        lambda length, begin: TensorDataset(*(each.T.contiguous().T if each.ndim > 1 else each
                                              for each in tensors(length, begin))),
    ],
    "dicts": [
        dicts,
        lambda length, begin: {name: column.clone() for name, column in
                               reversed(dicts(length, begin).items())},
        lambda length, begin: [{"x": x, "y": y} for x, y in zip(*tensors(length, begin))],
        lambda length, begin: Together([{"x": x, "y": y} for x, y in zip(*tensors(length, begin))]),
    ],
    "arrays": [
        lambda length, begin: {"a": np.arange(begin, begin + length, dtype=np.float32)},
        lambda length, begin: {"a": np.arange(begin, begin + 2 * length, dtype=np.float32)[::2]},
    ],
    "lists": [listed, lambda length, begin: Together(listed(length, begin))],
    "Hugging Face": [
        hugging,
        lambda length, begin: Subset(hugging(length + 1, begin), list(range(length, 0, -1))),
        lambda length, begin: Subset(
            Subset(hugging(length + 1, begin), list(range(length + 1))), list(range(length))
        ),
    ],
    "padded": [
        lambda length, begin: hugging(length, begin, pad={"ids": -1, "labels": 0}),
        lambda length, begin: Subset(
            hugging(length, begin, pad={"ids": -1, "labels": 0}), list(range(length))
        ),
    ],
}  # fmt: skip


def loader_of(data: Any, batch_size: int = 16, **options: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(data, batch_size, **{"shuffle": True, "seed": 5, **options})


def samples_of(data: Mixture, named: Any) -> list[Any]:
    begins = dict(zip(data.sources, data.rows.offsets.tolist()))
    return [data.rows[begins[name] + index] for name, index in named]


def fetch_of(data: Mixture, **options: Any) -> Any:
    arguments = {"batched": True, "seeds_each": "sample", "on_error": "raise", **options}
    return fetch_for(data.rows, default_collate, **arguments)


@settings(max_examples=cases(100))
@given(st.data())
def test_a_batch_is_what_the_samples_in_order_make(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    kinds = data.draw(st.lists(st.sampled_from(FAMILIES[family]), min_size=1, max_size=4))
    sources = {
        f"source {n}": kind(data.draw(st.sampled_from([1, 8, 23])), 500 * n + 1)
        for n, kind in enumerate(kinds)
    }
    weights = {name: data.draw(st.sampled_from([0.1, 1, 3])) for name in sources}
    has_key = family not in ("pairs",) and data.draw(st.booleans())
    mixture = Mixture(sources, weights, stopping=60, source_key="source" if has_key else None)
    loader = loader_of(mixture, data.draw(st.integers(1, 20)))
    collate = getattr(next(iter(mixture.sources.values())), "collate", None)
    if family in ("Hugging Face", "padded"):
        collate = next(iter(FAMILIES[family]))(1, 0).collate
    for step, batch in enumerate(loader):
        named = loader.samples_at(0, step)
        samples = samples_of(mixture, named)
        expected = default_collate(samples) if collate is None else collate(samples)
        if isinstance(expected, dict):
            expected = {key: expected[key] for key in batch}
            assert len(expected) == len(samples[0]) + (family == "padded") * 2
        assert digest(batch) == digest(expected)
        if has_key:
            assert batch["source"] == [name for name, _ in named]


@pytest.mark.parametrize("family", ["pairs", "dicts", "arrays", "Hugging Face", "padded"])
def test_sources_that_can_be_are_read_whole(family: str) -> None:
    makers = [make for make in FAMILIES[family] if columns_or_wrapped(make(3, 0))]
    assert len(makers) > 1
    mixture = Mixture({f"source {n}": make(20, 501) for n, make in enumerate(makers)})
    fetch = fetch_of(mixture)
    assert isinstance(fetch, WholeFetch)
    assert fetch.read(np.arange(40)) is not NotImplemented


def columns_or_wrapped(source: Any) -> bool:
    return not isinstance(source, list | Together)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["process", "thread"])
def test_workers_make_the_same_batches(workers: int, kind: Any) -> None:
    for family in ("pairs", "lists", "padded"):
        sources = {f"{n}": make(50, 100) for n, make in enumerate(FAMILIES[family])}
        expected = list(map(digest, loader_of(Mixture(sources, stopping=100))))
        loader = loader_of(Mixture(sources, stopping=100), num_workers=workers, worker_kind=kind)
        assert list(map(digest, loader)) == expected


def moved(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value + 1 if name == "x" else value for name, value in sample.items()}


@pytest.mark.slow
def test_the_fetch_of_a_mixture_can_be_sent_to_a_spawned_worker() -> None:
    sources = {"a": listed(30, 0), "b": Together(listed(30, 100))}
    options = {"source_key": "from", "transforms": {"b": moved}, "stopping": 40}
    expected = list(map(digest, loader_of(Mixture(sources, **options))))
    loader = loader_of(Mixture(sources, **options), num_workers=1, multiprocessing_context="spawn")
    assert list(map(digest, loader)) == expected


# ---- randomness (C8)


class Quiet:
    """Samples like those of ``Augmented`` that draw nothing."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "python": 0.5,
            "numpy": np.zeros(3, dtype=np.float32),
            "torch": torch.zeros(2),
            "explicit": 0.5,
        }


class AugmentedTogether(Together):
    """``Augmented`` rows without draws, which are read together; a transform draws for them."""

    def __init__(self) -> None:
        super().__init__([Quiet()[index] for index in range(30)])


def augmented(sample: dict[str, Any]) -> dict[str, Any]:
    return {**Augmented(30)[sample["index"]]}


def by_position(loader: ResumableDataLoader[Any]) -> dict[int, list[str]]:
    """Digests of the samples of an epoch, by position."""
    found, position = {}, 0
    for batch in loader:
        for row in range(len(batch["index"])):
            found[position] = [digest(column[row]) for column in batch.values()]
            position += 1
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_sample_draws_is_a_function_of_its_position(workers: int) -> None:
    def mixture(neighbour: Any) -> Mixture:
        return Mixture(
            {"drawn": Augmented(30), "transformed": AugmentedTogether(), "beside": neighbour},
            {"drawn": 2, "transformed": 2, "beside": 1},
            transforms={"transformed": augmented},
            stopping=60,
            source_key="source",
        )

    expected = by_position(loader_of(mixture(Quiet()), 16))
    for batch_size in (1, 7, 60):
        assert by_position(loader_of(mixture(Quiet()), batch_size, num_workers=workers)) == expected
    # Another neighbour, which draws as well, changes nothing of the others' samples.
    other = by_position(loader_of(mixture(Augmented(30)), 16, num_workers=workers))
    beside = digest("beside")
    assert {p for p in expected if other[p] != expected[p]} == {
        p for p in expected if expected[p][-1] == beside
    }
    assert len({digests[2] for digests in expected.values() if digests[-1] != beside}) > 40


def test_a_source_that_draws_nothing_is_not_seeded() -> None:
    mixture = Mixture({"quiet": Quiet(), "drawn": Augmented(30)}, stopping=60)
    fetch = fetch_of(mixture)
    assert isinstance(fetch, MixedFetch)
    loader = loader_of(mixture)
    progress = loader.mark().progress
    for scheduled in loader.setup.schedule.requests(progress, 5):
        fetch(scheduled.request)
    quiet, drawn = (each.drawn_from for each in fetch.fetches)
    assert quiet.is_known
    assert quiet.samples == ()
    assert len(drawn.samples) == 3


def test_the_trainings_generators_stay_where_they_are() -> None:
    mixture = Mixture({"quiet": Quiet(), "drawn": Augmented(30)}, stopping=60)
    batches = iter(loader_of(mixture, collate_fn=drawing_collate))
    next(batches)
    before = random.getstate(), torch.get_rng_state().tolist()
    assert len(list(batches)) == 3
    assert (random.getstate(), torch.get_rng_state().tolist()) == before


def drawing_collate(samples: list[Any]) -> Any:
    batch = default_collate(samples)
    return {**batch, "batch": random.random(), "explicit too": sample_rng(0).random()}


def test_a_collate_function_may_draw() -> None:
    def batches(workers: int) -> list[str]:
        sources = {"quiet": Quiet(), "drawn": Augmented(30)}
        mixture = Mixture(sources, stopping=60)
        loader = loader_of(mixture, collate_fn=drawing_collate, num_workers=workers)
        return list(map(digest, loader))

    assert batches(0) == batches(2)
    batch = next(iter(loader_of(Mixture({"drawn": Augmented(30)}), collate_fn=drawing_collate)))
    # The generator continues where its sample left it, and another one is no copy.
    assert batch["explicit too"] not in batch["explicit"].tolist()
    assert batch["batch"] not in batch["python"].tolist()


def test_each_source_is_asked_once_a_batch() -> None:
    sources = {"a": Together(listed(30, 0)), "b": Together(listed(30, 100))}
    assert len(list(loader_of(Mixture(sources, transforms={"b": moved}, stopping=64)))) == 4
    assert {name: source.asked for name, source in sources.items()} == {"a": 4, "b": 4}


# ---- samples that fail


class Broken:
    """Fails at every fifth sample."""

    def __init__(self, begin: int) -> None:
        self.begin = begin

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        if index % 5 == 2:
            raise ValueError("broken")
        return self.begin + index


def broken(**options: Any) -> ResumableDataLoader[Any]:
    sources = {"web": Broken(0), "code": range(1000, 1040)}
    return loader_of(Mixture(sources, stopping=80), **options)


def test_a_failing_sample_is_named_by_its_source() -> None:
    with pytest.raises(ValueError, match="broken") as caught:
        list(broken())
    assert any("while reading sample index ('web', " in note for note in caught.value.__notes__)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.* failed")
def test_a_failing_sample_is_left_out_or_replaced_by_one_of_its_source(workers: int) -> None:
    def run(on_error: Any) -> tuple[Counter[bool], list[int], Any]:
        loader = broken(on_error=on_error, num_workers=workers)
        numbers = [int(number) for batch in loader for number in batch]
        return Counter(number >= 1000 for number in numbers), numbers, loader.failures

    counts, _, failures = run("skip")
    assert counts == {False: 32, True: 40}
    assert sorted(failure.index for failure in failures) == [("web", n) for n in range(2, 40, 5)]
    counts, numbers, _ = run("replace")
    assert counts == {False: 40, True: 40}
    assert not any(number % 5 == 2 for number in numbers if number < 1000)
    given: list[Any] = []
    if workers == 0:
        counts, numbers, _ = run(lambda error, index: given.append(index) or -1)
        assert numbers.count(-1) == 8
        assert ("web", 2) in given


@pytest.mark.filterwarnings("ignore:.* failed")
def test_a_source_of_which_all_samples_fail_leaves_the_others() -> None:
    class Gone(Broken):
        def __getitem__(self, index: int) -> int:
            raise ValueError("gone")

    sources = {"web": Gone(0), "code": range(40)}
    loader = loader_of(Mixture(sources, stopping=80), on_error="skip")
    assert sorted(int(number) for batch in loader for number in batch) == list(range(40))
    with pytest.raises(SampleError, match="left nothing"):
        list(loader_of(Mixture({"web": Gone(0)}), on_error="skip"))


def test_getitems_that_returns_too_few_is_found_out() -> None:
    class Short(Together):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return super().__getitems__(indices)[1:]

    with pytest.raises(SampleError, match="source 'b' returned 8 samples for 9 indices"):
        list(loader_of(Mixture({"a": listed(9, 0), "b": Short(listed(9, 0))}, stopping=512), 16))


# ---- samples that do not fit together


def rows(**values: Any) -> list[dict[str, Any]]:
    return [dict(values) for _ in range(40)]


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (
            rows(x=1),
            rows(x=1, y=2),
            r"source 'web' has the keys \['x'\], source 'code' has the keys \['x', 'y'\]: give",
        ),
        (
            rows(x={"a": 1}),
            rows(x={"b": 1}),
            r"has the keys \['a'\] at 'x', source 'code' has the keys \['b'\]",
        ),
        (rows(x=1), rows(x=1.0), "a number of int64 at 'x', source 'code' has one of float64"),
        (
            rows(x=torch.ones(2)),
            rows(x=torch.ones(2, dtype=torch.int32)),
            "a tensor of float32 at 'x', source 'code' has one of int32",
        ),
        (rows(x=torch.ones(2)), rows(x=np.ones(2)), "a tensor at 'x', source 'code' has a NumPy"),
        (rows(x=1), rows(x="one"), "a number at 'x', source 'code' has a str"),
        ([(1, 2)] * 40, [(1, 2, 3)] * 40, "a list of 2 values, source 'code' has one of 3"),
        ([1] * 40, rows(x=1), "a number, source 'code' has a dict"),
        (
            {"x": np.ones((40, 2))},
            {"x": np.ones((40, 2), np.float32)},
            "a NumPy array of float64 at 'x', source 'code' has one of float32",
        ),
    ],
)
def test_sources_whose_samples_differ_are_named(one: Any, two: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        list(loader_of(Mixture({"web": one, "code": two})))
    # In the other order as well, where torch drops a key.
    with pytest.raises(ConfigurationError):
        list(loader_of(Mixture({"code": two, "web": one})))


def test_shapes_that_differ_are_named_beside_what_torch_says() -> None:
    for one, two in (
        (rows(x=torch.ones(2)), rows(x=torch.ones(3))),
        (dicts(40, 0), {"x": torch.ones(40, 2), "y": torch.ones(40, dtype=torch.bfloat16)}),
    ):
        with pytest.raises(RuntimeError, match="stack expects each tensor") as caught:
            list(loader_of(Mixture({"web": one, "code": two})))
        assert any(
            "source 'web' has a tensor of shape [" in note and "at 'x'" in note
            for note in caught.value.__notes__
        )


def test_a_collate_function_decides_by_itself() -> None:
    data = Mixture({"web": rows(x=1), "code": rows(x=1.0, y=2)})
    assert sum(len(batch) for batch in loader_of(data, collate_fn=list)) == 80


def test_a_transform_or_a_converter_makes_sources_alike() -> None:
    sources = {"web": rows(x=torch.ones(2)), "code": rows(x=torch.ones(2, dtype=torch.float64))}
    converter = KeyBasedDtypeConverter({"x": "float32"})
    for options in (
        {"converters": {"code": converter}},
        {"transforms": {"code": lambda sample: {"x": sample["x"].float()}}},
    ):
        for batch in loader_of(Mixture(sources, **options)):
            assert batch["x"].dtype is torch.float32
    with pytest.raises(ConfigurationError, match="for source 'code': expected a converter"):
        Mixture(sources, converters={"code": {"x": "float32"}})


def test_wrappers_that_pad_differently_do_not_make_one_batch() -> None:
    sources = {"a": hugging(9, 0, pad={"ids": 0}), "b": hugging(9, 0, pad={"ids": -1})}
    with pytest.raises(ConfigurationError, match=r"'a' and 'b' make batches .* in different ways"):
        list(loader_of(Mixture(sources)))
    assert len(list(loader_of(Mixture(sources), collate_fn=list))) == 2


@pytest.mark.parametrize("sources", [{"a": pairs(9, 0)}, {"a": [(1, 2)] * 9}])
def test_only_dicts_hold_the_name_of_their_source(sources: Any) -> None:
    with pytest.raises(ConfigurationError, match="only a dict can hold"):
        list(loader_of(Mixture(sources, source_key="source")))


@pytest.mark.parametrize("sources", [{"a": dicts(9, 0)}, {"a": hugging(9, 0)}])
def test_the_name_of_a_source_takes_no_other_key(sources: Any) -> None:
    key = "x" if isinstance(sources["a"], dict) else "text"
    with pytest.raises(ConfigurationError, match="already have this key"):
        list(loader_of(Mixture(sources, source_key=key)))


@pytest.mark.parametrize("name", ["pairs", "lists"])
def test_a_loader_without_batches_delivers_samples(name: str) -> None:
    sources = {f"{n}": make(9, 0) for n, make in enumerate(FAMILIES[name][:2])}
    data = Mixture(sources)
    loader = loader_of(data, None)
    found = [digest(sample) for sample in loader]
    assert len(found) == 18
    expected = [samples_of(data, loader.samples_at(0, step))[0] for step in range(18)]
    assert [digest(list(each.values()) if isinstance(each, dict) else each) for each in expected]
