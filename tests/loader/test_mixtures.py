"""Mixtures in loaders: stopped, resumed and changed anywhere, on any world (C6, C14)."""

from __future__ import annotations

import copy
import json
import pickle
import time
import warnings
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset

from dataporter import (
    ConfigurationError,
    InvalidStateError,
    LinearWeights,
    Mixture,
    ResumableDataLoader,
    StateMismatchError,
    memory_report,
    remainder,
)
from dataporter.orders import ShuffledOrder
from dataporter.orders.mixture.change import changed
from dataporter.orders.mixture.order import source_seed
from dataporter.orders.mixture.weights import Weights

BEGINS = {"web": 0, "code": 10_000, "books": 20_000, "talk": 30_000}


def source(name: str, length: int) -> range:
    return range(BEGINS[name], BEGINS[name] + length)


def mixture(lengths: dict[str, int], weights: Any = None, **options: Any) -> Mixture:
    return Mixture({name: source(name, n) for name, n in lengths.items()}, weights, **options)


def loader_of(data: Any, batch_size: int = 8, **options: Any) -> ResumableDataLoader[Any]:
    arguments = {"shuffle": True, "seed": 5, **options}
    return ResumableDataLoader(data, batch_size, **arguments)


def numbers(batches: Any) -> list[int]:
    return [int(number) for batch in batches for number in batch]


def by_source(run: list[int]) -> dict[str, list[int]]:
    streams = defaultdict(list)
    names = sorted(BEGINS, key=BEGINS.__getitem__)
    for number in run:
        name = names[number // 10_000]
        streams[name].append(number - BEGINS[name])
    return dict(streams)


def alone(name: str, length: int, count: int, seed: int = 5) -> list[int]:
    found: list[int] = []
    passes = 0
    while len(found) < count:
        found += (
            ShuffledOrder()
            .indices(
                np.arange(length),
                seed=source_seed(seed, name),
                epoch=passes,
                dataset_length=length,
            )
            .tolist()
        )
        passes += 1
    return found[:count]


THREE = {"web": 300, "code": 90, "books": 17}
WEIGHTS = {"web": 0.7, "code": 0.25, "books": 0.05}


def test_a_mixture_has_its_shares_and_each_source_its_own_order() -> None:
    loader = loader_of(mixture(THREE, WEIGHTS, stopping=1300))
    run = numbers(loader)
    assert len(run) == 1300
    streams = by_source(run)
    assert {name: len(stream) for name, stream in streams.items()} == {
        "web": 910,
        "code": 325,
        "books": 65,
    }
    for name, stream in streams.items():
        assert stream == alone(name, THREE[name], len(stream))
    # The next epoch continues each source.
    more = by_source(run + numbers(loader))
    for name, stream in more.items():
        assert stream == alone(name, THREE[name], len(stream))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("strategy", ["simple", "advanced", "distributed"])
def test_it_resumes_at_the_next_sample(num_workers: int, strategy: str) -> None:
    def load() -> ResumableDataLoader[Any]:
        data = mixture(THREE, WEIGHTS, stopping=200)
        return loader_of(data, num_workers=num_workers, strategy=strategy)

    whole = load()
    expected = [numbers(whole) for _ in range(3)]
    loader = load()
    run: list[int] = numbers(loader)
    for number, batch in enumerate(loader):
        run += batch.tolist()
        if number == 11:
            state = json.loads(json.dumps(loader.state_dict()))
            break
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = load()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert numbers(resumed) == expected[1][12 * 8 :]
        assert numbers(resumed) == expected[2]
    assert run == expected[0] + expected[1][: 12 * 8]


chain_of = st.lists(
    st.fixed_dictionaries(
        {
            "sources": st.sets(st.sampled_from(sorted(BEGINS)), min_size=1),
            "weights": st.fixed_dictionaries(
                {name: st.sampled_from([0, 1e-6, 0.05, 0.7, 2]) for name in BEGINS}
            ),
            "batch_size": st.integers(1, 9),
            "world_size": st.integers(1, 3),
            "steps": st.integers(0, 12),
            "stopping": st.sampled_from(["first_exhausted", "all_exhausted", 77]),
        }
    ).filter(lambda one: any(one["weights"][name] for name in one["sources"])),
    min_size=1,
    max_size=4,
)
FOUR = {"web": 50, "code": 23, "books": 5, "talk": 1}


@settings(deadline=None)
@given(chain_of)
def test_weights_sources_worlds_and_batch_sizes_change_at_each_stop(chain: list[Any]) -> None:
    run: list[int] = []
    state = None
    for life in chain:
        lengths = {name: FOUR[name] for name in sorted(life["sources"])}
        weights = {name: life["weights"][name] for name in lengths}
        world_size = life["world_size"]
        ranks = [
            loader_of(
                mixture(lengths, weights, stopping=life["stopping"]),
                life["batch_size"],
                rank=rank,
                world_size=world_size,
                strategy="distributed",
                tail="uneven",
            )
            for rank in range(world_size)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for loader in ranks:
                if state is not None:
                    loader.load_state_dict(state)
        batches = [iter(loader) for loader in ranks]
        for _ in range(life["steps"]):
            epoch, step = ranks[0].epoch, ranks[0].step
            expected = [
                loader.samples_at(epoch, step) for loader in ranks if _has(loader, epoch, step)
            ]
            found = [next(each, None) for each in batches]
            got = [batch.tolist() for batch in found if batch is not None]
            assert got == [[BEGINS[name] + at for name, at in each] for each in expected]
            run += [number for batch in got for number in batch]
            if len(got) < world_size:
                # Some ranks have ended their pass; after this last step so do the others.
                behind = (each for each, batch in zip(batches, found) if batch is not None)
                assert all(next(each, None) is None for each in behind)
                batches = [iter(loader) for loader in ranks]
        states = [loader.state_dict() for loader in ranks]
        # A rank without a share of an epoch's last batch has ended the epoch before the others.
        epochs = {each["epoch"] for each in states}
        assert len(epochs) == 2 or all(each == states[0] for each in states)
        state = json.loads(json.dumps(states[0]))
    # Padding repeats nothing here, so what came is what was consumed.
    for name, stream in by_source(run).items():
        assert sorted(stream) == sorted(alone(name, FOUR[name], len(stream)))


def _has(loader: ResumableDataLoader[Any], epoch: int, step: int) -> bool:
    """Whether a rank is in this epoch still, and has a share of this step."""
    return loader.epoch == epoch and step < loader.step + loader.remaining


def test_a_state_says_what_changed_in_one_line() -> None:
    loader = loader_of(mixture(THREE, WEIGHTS))
    next(iter(loader))
    state = loader.state_dict()
    lengths = {"web": 300, "code": 120, "talk": 40}
    resumed = loader_of(mixture(lengths, {"web": 0.5, "code": 0.25, "talk": 0.25}))
    with pytest.warns(UserWarning, match="the mixture has changed") as caught:
        resumed.load_state_dict(state)
    (warning,) = caught
    assert str(warning.message) == (
        "the mixture has changed since the state was saved: added 'talk', left out 'books', "
        "'code' grew from 90 to 120 samples, weights {web: 0.7, code: 0.25, books: 0.05} → "
        "{web: 0.5, code: 0.25, talk: 0.25}. This holds from sample 8 of the run on; each source "
        "continues where it stands"
    )
    # Saved and loaded again, nothing has changed.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = loader_of(mixture(lengths, {"web": 0.5, "code": 0.25, "talk": 0.25}))
        again.load_state_dict(resumed.state_dict())
    assert numbers(again) == numbers(resumed)


def test_the_order_of_the_sources_and_the_scale_of_the_weights_change_nothing() -> None:
    loader = loader_of(mixture(THREE, WEIGHTS))
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    lengths = {name: THREE[name] for name in reversed(THREE)}
    other = loader_of(mixture(lengths, {"web": 14, "code": 5, "books": 1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(state)
        again = loader_of(mixture(THREE, WEIGHTS))
        again.load_state_dict(json.loads(json.dumps(other.state_dict())))
    rest = numbers(batches)
    assert numbers(other) == rest
    assert numbers(again) == rest


def test_a_source_that_was_left_out_comes_back_where_it_was() -> None:
    run: list[int] = []
    state = None
    for lengths in (THREE, {"web": 300, "code": 90}, THREE):
        data = mixture(lengths, dict.fromkeys(lengths, 1), stopping=1000)
        loader = loader_of(data)
        if state is not None:
            with pytest.warns(UserWarning, match="books"):
                loader.load_state_dict(state)
        batches = iter(loader)
        run += numbers(next(batches) for _ in range(9))
        state = loader.state_dict()
    stream = by_source(run)["books"]
    assert stream == alone("books", 17, len(stream))
    assert len(stream) > 30


def test_a_source_that_has_grown_is_whole_from_its_next_pass_on() -> None:
    loader = loader_of(mixture({"web": 300, "books": 20}, {"web": 1, "books": 1}, stopping=1000))
    batches = iter(loader)
    run = numbers(next(batches) for _ in range(3))
    grown = loader_of(mixture({"web": 300, "books": 30}, {"web": 1, "books": 1}, stopping=1000))
    with pytest.warns(UserWarning, match="'books' grew from 20 to 30"):
        grown.load_state_dict(loader.state_dict())
    batches = iter(grown)
    run += numbers(next(batches) for _ in range(20))
    stream = by_source(run)["books"]
    assert stream[:20] == alone("books", 20, 20)
    assert sorted(stream[20:50]) == list(range(30))
    state = json.loads(json.dumps(grown.state_dict()))
    again = loader_of(mixture({"web": 300, "books": 30}, {"web": 1, "books": 1}, stopping=1000))
    again.load_state_dict(state)
    assert numbers(again) == numbers(batches)


def test_a_source_that_shrinks_in_the_middle_of_a_pass_is_refused() -> None:
    loader = loader_of(mixture({"web": 300, "books": 20}, {"web": 1, "books": 1}, stopping=1000))
    next(iter(loader))
    other = loader_of(mixture({"web": 300, "books": 12}, {"web": 1, "books": 1}, stopping=1000))
    with pytest.raises(StateMismatchError, match="'books' of the mixture had 20 samples"):
        other.load_state_dict(loader.state_dict())
    assert other.step == 0


def test_a_source_with_another_content_is_refused() -> None:
    data = Mixture({"web": np.arange(300), "books": np.arange(20)})
    loader = loader_of(data)
    next(iter(loader))
    other = loader_of(Mixture({"web": np.arange(300), "books": np.arange(20) + 1}))
    with pytest.raises(StateMismatchError, match="'books' of the mixture has as many samples"):
        other.load_state_dict(loader.state_dict())


# Changes in the middle of a pass.


@pytest.mark.parametrize("num_workers", [0, 2])
def test_weights_change_from_the_next_request_on(num_workers: int) -> None:
    data = mixture(THREE, WEIGHTS, stopping=2000)
    loader = loader_of(data, num_workers=num_workers)
    batches = iter(loader)
    run = numbers(next(batches) for _ in range(30))
    assert "talk" not in by_source(run)
    data.set_weights({"web": 0, "code": 0, "books": 1})
    later = [next(batches).tolist() for _ in range(30)]
    ahead = max(
        (n + 1 for n, batch in enumerate(later) if set(by_source(batch)) != {"books"}), default=0
    )
    assert ahead <= num_workers * 2
    run += [number for batch in later for number in batch]
    for name, stream in by_source(run).items():
        assert stream == alone(name, THREE[name], len(stream))
    assert data.weights == {"web": 0, "code": 0, "books": 1}
    assert data.consumed() == {name: len(stream) for name, stream in by_source(run).items()}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("delivered", [0, 1, 3, 20])
def test_a_state_carries_a_change_that_is_yet_to_come(num_workers: int, delivered: int) -> None:
    def load() -> tuple[Mixture, ResumableDataLoader[Any]]:
        data = mixture(THREE, WEIGHTS, stopping=400)
        return data, loader_of(data, num_workers=num_workers)

    data, loader = load()
    batches = iter(loader)
    for _ in range(10):
        next(batches)
    data.set_weights({"web": 1, "code": 1, "books": 3})
    for _ in range(delivered):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    rest, following = numbers(batches), numbers(loader)
    resumed_data, resumed = load()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert numbers(resumed) == rest
    assert numbers(resumed) == following
    assert resumed_data.weights == {"web": 0.2, "code": 0.2, "books": 0.6}


def test_weights_change_between_passes_and_while_the_next_epoch_is_prefetched() -> None:
    data = mixture(THREE, WEIGHTS, stopping=64)
    loader = loader_of(data, num_workers=2, persistent_workers=True, prefetch_next_epoch=True)
    run = numbers(loader)
    data.set_weights({"web": 1, "code": 0, "books": 0})
    second = numbers(loader)
    assert len(second) == 64
    data.set_weights({"web": 0, "code": 1, "books": 0})
    third, fourth = numbers(loader), numbers(loader)
    assert set(by_source(fourth)) == {"code"}
    for name, stream in by_source(run + second + third + fourth).items():
        assert stream == alone(name, THREE[name], len(stream))


def test_a_marks_state_carries_a_change_since() -> None:
    data = mixture(THREE, WEIGHTS, stopping=400)
    loader = loader_of(data)
    batches = iter(loader)
    run = [next(batches).tolist() for _ in range(3)]
    mark = loader.mark()
    run += [next(batches).tolist() for _ in range(2)]
    data.set_weights({"web": 1, "code": 1, "books": 1})
    run += [batch.tolist() for batch in batches]
    resumed = loader_of(mixture(THREE, WEIGHTS, stopping=400))
    resumed.load_state_dict(loader.state_dict(at=mark))
    assert [batch.tolist() for batch in resumed] == run[3:]


def test_set_weights_without_a_loader_replaces_them() -> None:
    data = mixture(THREE, WEIGHTS, stopping=100)
    assert data.weights == WEIGHTS
    assert data.passes() == dict.fromkeys(THREE, 0)
    data.set_weights({"web": 0, "code": 0, "books": 1})
    assert set(by_source(numbers(loader_of(data)))) == {"books"}


# What a loader and torch make of it.


def test_len_remaining_and_samples_at_agree_with_what_comes() -> None:
    data = mixture(THREE, WEIGHTS, stopping=100)
    loader = loader_of(data)
    assert len(loader) == 13
    batches = iter(loader)
    for step in range(13):
        assert loader.remaining == 13 - step
        named = loader.samples_at(0, step)
        assert next(batches).tolist() == [BEGINS[name] + at for name, at in named]
    later = loader.samples_at(7, 3)
    loader.seek(epoch=7, step=3)
    assert next(iter(loader)).tolist() == [BEGINS[name] + at for name, at in later]


def test_by_itself_it_is_its_first_epoch_in_stored_order() -> None:
    data = mixture(THREE, WEIGHTS)
    plain = numbers(DataLoader(data, batch_size=8))
    assert len(plain) == len(data)
    streams = by_source(plain)
    assert all(
        stream == [n % THREE[name] for n in range(len(stream))] for name, stream in streams.items()
    )
    assert plain == numbers(loader_of(data, shuffle=False, seed=0))[: len(plain)]
    assert data[-1] == plain[-1]
    with pytest.raises(IndexError):
        data[len(data)]


def test_copies_and_pickles_stand_where_the_loader_does() -> None:
    loader = loader_of(mixture(THREE, WEIGHTS))
    batches = iter(loader)
    next(batches)
    copied, pickled = copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))
    rest = numbers(batches)
    assert numbers(copied) == rest
    assert numbers(pickled) == rest


def test_the_state_is_small() -> None:
    few = loader_of(mixture(THREE, WEIGHTS))
    next(iter(few))
    assert len(json.dumps(few.state_dict())) < 1000
    names = [f"s{n:03d}" for n in range(500)]
    many = loader_of(Mixture({name: range(1000) for name in names}, dict.fromkeys(names, 1)))
    next(iter(many))
    assert len(json.dumps(many.state_dict())) < 1000 + 40 * 500


def test_tokens_are_not_samples() -> None:
    lengths = {"web": 500, "books": 5000}
    data = Mixture(
        {"web": range(1000), "books": range(10_000, 11_000)},
        {"web": 0.7, "books": 0.3},
        unit="tokens",
        lengths={"web": 500, "books": np.full(1000, 5000)},
        stopping=10_000,
    )
    run = numbers(loader_of(data, 100))
    tokens = {
        name: len(each) * lengths[n]
        for n, (name, each) in zip(
            lengths,
            sorted(
                {
                    "web": [x for x in run if x < 10_000],
                    "books": [x for x in run if x >= 10_000],
                }.items(),
                reverse=True,
            ),
        )
    }
    total = sum(tokens.values())
    assert abs(tokens["books"] / total - 0.3) < 0.001


def test_a_ramp_moves_through_epochs_and_resumes() -> None:
    ramp = LinearWeights([(0, {"web": 1, "books": 0}), (640, {"web": 0, "books": 1})])
    data = Mixture({"web": source("web", 300), "books": source("books", 50)}, ramp, stopping=160)
    loader = loader_of(data)
    shares = []
    for _ in range(5):
        shares.append(len(by_source(numbers(loader)).get("books", ())))
    assert shares == sorted(shares)
    assert shares[-1] == 160
    assert abs(sum(shares[:4]) - 320) <= 1


# Bad input.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture({}), "expected a dict of map-style datasets by name"),
        (lambda: Mixture([range(3)]), "expected a dict of map-style datasets by name"),  # type: ignore[arg-type]  # on purpose
        (lambda: mixture(THREE, {"web": -1, "code": 1, "books": 1}), "'web' has the weight -1"),
        (
            lambda: mixture(THREE, {"web": float("nan"), "code": 1, "books": 1}),
            "'web' has the weight nan",
        ),
        (lambda: mixture(THREE, {**WEIGHTS, "web": 10**400}), "'web' has the weight 1000"),
        (lambda: mixture(THREE, [0.7, 0.2, 0.1]), "are a dict by source"),
        (lambda: mixture(THREE, LinearWeights(WEIGHTS)), "LinearWeights of such a list"),  # type: ignore[arg-type]  # on purpose
        (lambda: Mixture({"web": range(0)}), "all sources are empty"),
        (lambda: mixture(THREE, {"web": 0, "code": 0, "books": 0}), "are all 0"),
        (lambda: mixture(THREE, {"web": 1}), "names no weight for 'code', 'books'"),
        (lambda: mixture(THREE, {**WEIGHTS, "wob": 1}), "names 'wob', but the sources are 'web'"),
        (lambda: mixture({**THREE, "talk": 0}, {**WEIGHTS, "talk": 1}), "source 'talk' is empty"),
        (lambda: mixture(THREE, [(0, WEIGHTS), (9, WEIGHTS), (8, WEIGHTS)]), "goes backwards"),
        (lambda: mixture(THREE, [(5, WEIGHTS)]), "begins at position 5"),
        (lambda: mixture(THREE, [(0, WEIGHTS), (0, WEIGHTS)]), "goes backwards"),
        (lambda: mixture(THREE, WEIGHTS, stopping="never"), "stopping='never'"),
        (lambda: mixture(THREE, WEIGHTS, stopping=0), "stopping=0"),
        (lambda: mixture(THREE, WEIGHTS, max_passes={"books": 0}), "max_passes"),
        (lambda: mixture(THREE, WEIGHTS, unit="words"), "unit='words'"),
        (lambda: mixture(THREE, WEIGHTS, unit="tokens"), "needs lengths= for 'web'"),
        (lambda: Mixture({"web": range(3)}, lengths={"web": 3}), "without unit='tokens'"),
        (lambda: mixture(THREE, WEIGHTS, transforms={"wob": str}), "transforms names 'wob'"),
        (lambda: loader_of(mixture(THREE, WEIGHTS), order="torch").order, ""),
    ],
)
def test_bad_input_is_one_clear_error(make: Any, message: str) -> None:
    if not message:
        make()
        return
    with pytest.raises(ConfigurationError, match=message.replace("[", r"\[")):
        make()


@pytest.mark.parametrize(
    "damage", ["[]", "[null, [], []]", "7", "[null, [[[0,0,null],1,[],[]]], []]"]
)
def test_a_damaged_state_is_refused(damage: str) -> None:
    loader = loader_of(mixture(THREE, WEIGHTS))
    state = {**loader.state_dict(), "mixture": json.loads(damage)}
    with pytest.raises(InvalidStateError, match="'mixture'"):
        loader.load_state_dict(state)


def test_states_of_mixtures_and_others_are_told_apart() -> None:
    mixed, plain = loader_of(mixture(THREE, WEIGHTS)), loader_of(range(100))
    with pytest.raises(StateMismatchError, match="no mixture"):
        mixed.load_state_dict(plain.state_dict())
    with pytest.raises(StateMismatchError, match="mixture"):
        plain.load_state_dict(mixed.state_dict())


def test_tensors_come_whole() -> None:
    data = Mixture({"a": torch.arange(8), "b": torch.arange(100, 104)})
    run = numbers(loader_of(data))
    assert sorted(run) == [*range(8), *range(100, 104)]


# The rest of what may change at a resume.


def resumed_with(state: Any, data: Mixture, **options: Any) -> ResumableDataLoader[Any]:
    loader = loader_of(data, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        loader.load_state_dict(json.loads(json.dumps(state)))
    return loader


def test_the_epoch_under_way_keeps_its_length_and_the_next_one_has_the_new() -> None:
    loader = loader_of(mixture(THREE, WEIGHTS, stopping=80))
    batches = iter(loader)
    run = numbers(next(batches) for _ in range(3))
    longer = resumed_with(loader.state_dict(), mixture(THREE, WEIGHTS, stopping=160))
    assert (len(longer), longer.remaining) == (10, 7)
    run += numbers(longer)
    assert len(run) == 80
    assert len(longer) == 20
    run += numbers(longer)
    assert len(run) == 240
    for name, stream in by_source(run).items():
        assert stream == alone(name, THREE[name], len(stream))


def test_a_source_ends_after_its_passes_over_all_lives() -> None:
    state, run = None, []
    for limit in (None, 3, 3, 5):
        options = {} if limit is None else {"max_passes": {"books": limit}}
        data = mixture(THREE, dict.fromkeys(THREE, 1), stopping=64, **options)
        loader = loader_of(data) if state is None else resumed_with(state, data)
        run += numbers(loader)
        state = loader.state_dict()
        if limit is not None:
            run += numbers(loader)
            state = loader.state_dict()
    assert len(by_source(run)["books"]) == 5 * 17
    for name, stream in by_source(run).items():
        assert stream == alone(name, THREE[name], len(stream))


def test_epochs_that_steps_end_lose_nothing() -> None:
    state, run = None, []
    for batch_size in (8, 8, 5, 20):
        data = mixture(THREE, WEIGHTS)
        options = {"batch_size": batch_size, "steps_per_epoch": 6, "strategy": "advanced"}
        loader = (
            loader_of(data, **options) if state is None else resumed_with(state, data, **options)
        )
        for _ in range(2):
            before = len(run)
            for number, batch in enumerate(loader):
                run += batch.tolist()
                if number == 3:
                    state = loader.state_dict()
            assert len(run) - before <= 6 * batch_size
        state = loader.state_dict()
    for name, stream in by_source(run).items():
        assert stream == alone(name, THREE[name], len(stream))


@pytest.mark.parametrize("changes", [False, True])
def test_batches_that_came_early_are_not_lost_nor_repeated(changes: bool) -> None:
    class Slow(Dataset[int]):
        def __init__(self, name: str) -> None:
            self.name = name

        def __len__(self) -> int:
            return THREE[self.name]

        def __getitem__(self, index: int) -> int:
            if index == 3:  # a batch with this one comes late
                time.sleep(0.3)
            return BEGINS[self.name] + index

    def load(weights: dict[str, float]) -> ResumableDataLoader[Any]:
        data = Mixture({name: Slow(name) for name in THREE}, weights, stopping=400)
        return loader_of(data, num_workers=2, in_order=False)

    loader = load(WEIGHTS)
    run: list[int] = []
    for batch in loader:
        run += batch.tolist()
        state = loader.state_dict()
        if state["early"]:
            break
    assert state["early"]
    weights = {"web": 1, "code": 1, "books": 1} if changes else WEIGHTS
    resumed = load(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        resumed.load_state_dict(json.loads(json.dumps(state)))
    run += numbers(resumed)
    assert len(run) == 400
    for name, stream in by_source(run).items():
        assert sorted(stream) == sorted(alone(name, THREE[name], len(stream)))
    without = {"web": 1, "code": 1}
    data = Mixture({name: Slow(name) for name in without}, without, stopping=400)
    with pytest.raises(StateMismatchError, match="delivered early"):
        loader_of(data).load_state_dict(
            {**state, "early": [[state["position"] + 320, state["position"] + 328, 0]]}
        )


def test_a_later_epoch_is_known_after_changes() -> None:
    data = mixture(THREE, WEIGHTS, stopping=100)
    loader = loader_of(data)
    list(loader)
    data.set_weights({"web": 1, "code": 0, "books": 1})
    resumed = resumed_with(loader.state_dict(), mixture(THREE, WEIGHTS, stopping=100))
    later = resumed.samples_at(5, 2)
    assert loader.samples_at(5, 2) == later
    resumed.seek(epoch=5, step=2)
    assert next(iter(resumed)).tolist() == [BEGINS[name] + at for name, at in later]
    with pytest.raises(ConfigurationError, match="before the mixture changed"):
        resumed.samples_at(0, 0)
    # The loader that has changed it knows what came before.
    assert loader.samples_at(0, 0)


def test_other_weights_at_a_resume_replace_a_change_that_is_yet_to_come() -> None:
    data = mixture(THREE, WEIGHTS, stopping=400)
    loader = loader_of(data, num_workers=2)
    batches = iter(loader)
    run = numbers(next(batches) for _ in range(4))
    data.set_weights({"web": 1, "code": 0, "books": 0})
    resumed = resumed_with(
        loader.state_dict(), mixture(THREE, {"web": 0, "code": 1, "books": 0}, stopping=400)
    )
    rest = numbers(resumed)
    assert set(by_source(rest)) == {"code"}
    run += rest
    for name, stream in by_source(run).items():
        assert stream == alone(name, THREE[name], len(stream))


def test_a_jump_back_and_a_change_after_it() -> None:
    data = mixture(THREE, WEIGHTS, stopping=400)
    loader = loader_of(data)
    batches = iter(loader)
    first = [next(batches).tolist() for _ in range(20)]
    loader.seek(epoch=0, step=5)
    batches = iter(loader)
    again = [next(batches).tolist() for _ in range(3)]
    assert again == first[5:8]
    data.set_weights({"web": 0, "code": 0, "books": 1})
    rest = [next(batches).tolist() for _ in range(3)]
    assert set(by_source([number for batch in rest for number in batch])) == {"books"}


def test_torchdatas_states_and_remainder_are_refused_for_mixtures() -> None:
    loader = loader_of(mixture(THREE, WEIGHTS))
    next(iter(loader))
    with pytest.raises(ConfigurationError, match="a mixture needs none"):
        remainder(mixture(THREE, WEIGHTS), loader.state_dict())
    assert memory_report(loader).leaves


def test_sources_of_one_length_come_in_orders_of_their_own() -> None:
    data = mixture({"web": 90, "code": 90}, stopping=180)
    streams = by_source(numbers(loader_of(data)))
    assert sorted(streams["web"]) == sorted(streams["code"])
    assert streams["web"] != streams["code"]


@pytest.mark.parametrize("after", [4, 8, 11])
def test_padding_after_a_change_repeats_what_a_resumed_run_knows(after: int) -> None:
    """A state knows nothing of an epoch before the last change in it."""

    def load(rank: int) -> tuple[Mixture, ResumableDataLoader[Any]]:
        data = mixture(THREE, WEIGHTS, stopping=100)
        return data, loader_of(data, 3, rank=rank, world_size=3, tail="pad", strategy="distributed")

    for rank in range(3):
        _, loader = load(rank)
        batches = iter(loader)
        for _ in range(3):
            next(batches)
        (phase,) = loader.setup.lookup.order.phases  # type: ignore[attr-defined]  # of a mixture
        phases = changed(
            loader.setup.lookup.order,  # type: ignore[attr-defined]  # of a mixture
            replace(phase.blend, weights=Weights(((0, (1, 1, 1)),))),
            seed=5,
            epoch=0,
            position=27,
        )
        # As set_weights() does it on the ranks of a process group.
        loader._mixing.asked.phases = phases  # type: ignore[union-attr]  # of a mixture
        loader._cursor.mix(phases)
        for _ in range(after - 3):
            next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        rest = numbers(batches)
        _, resumed = load(rank)
        resumed.load_state_dict(state)
        assert numbers(resumed) == rest
        assert rest


# What a jump, a worker or a reader by index makes of other weights.


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("jump", ["seek", "load", "set_epoch"])
def test_a_jump_forgets_what_was_asked_for(jump: str, num_workers: int) -> None:
    data = mixture(THREE, WEIGHTS, stopping=400)
    loader = loader_of(data, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    for _ in range(20):
        next(batches)
    if jump == "seek":
        loader.seek(epoch=0, step=1)
    elif jump == "load":
        loader.load_state_dict(state)
    else:
        loader.set_epoch(1)
    data.set_weights({"web": 0, "code": 1, "books": 0})
    assert set(by_source(numbers(loader))) == {"code"}


def test_building_it_with_the_weights_that_were_set_changes_nothing() -> None:
    data = mixture(THREE, WEIGHTS, stopping=400)
    loader = loader_of(data)
    batches = iter(loader)
    next(batches)
    data.set_weights({"web": 3, "code": 1, "books": 1})
    next(batches)
    other = loader_of(mixture(THREE, [(0, {"web": 0.6, "code": 0.2, "books": 0.2})], stopping=400))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_state_dict(loader.state_dict())
    assert numbers(other) == numbers(batches)


@pytest.mark.parametrize("steps", [20, 30])
def test_other_batches_a_step_do_not_change_the_epoch_under_way(steps: int) -> None:
    def load(batch_size: int, steps: int) -> ResumableDataLoader[Any]:
        return loader_of(mixture(THREE, WEIGHTS, stopping=999), batch_size, steps_per_epoch=steps)

    loader = load(7, 20)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    state = loader.state_dict()
    resumed = load(14, steps)
    resumed.load_state_dict(state)
    assert numbers(resumed) == numbers(batches)
    run = numbers(resumed)
    assert len(run) == steps * 14
    again = load(14, steps)
    again.load_state_dict(json.loads(json.dumps(state)))
    list(again)
    assert numbers(again) == run


def test_an_epoch_ends_where_its_last_source_does() -> None:
    data = mixture(
        {"web": 10, "code": 1000}, {"web": 1, "code": 1}, stopping=200, max_passes={"web": 1}
    )
    loader = loader_of(data)
    batches = iter(loader)
    run = numbers([next(batches)])
    data.set_weights({"web": 1, "code": 0})
    run += numbers(batches)
    assert sorted(by_source(run)["web"]) == list(range(10))
    assert numbers(loader) == []


class Changing(Dataset[int]):
    mixture: Mixture

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        self.mixture.set_weights({"a": 1})
        return index


def test_weights_that_nobody_would_hear_of_are_refused() -> None:
    changing = Changing()
    changing.mixture = Mixture({"a": changing}, {"a": 1})
    with pytest.raises(ConfigurationError, match="in a worker process"):
        next(iter(loader_of(changing.mixture, num_workers=1)))
    inner = mixture(THREE, WEIGHTS)
    Mixture({"inner": inner, "talk": range(3)})
    sampled = mixture(THREE, WEIGHTS)
    ResumableDataLoader(sampled, batch_sampler=BatchSampler(range(9), 4, drop_last=False))
    read = mixture(THREE, WEIGHTS)
    list(DataLoader(read, 4))
    for data in (inner, sampled, read):
        with pytest.raises(ConfigurationError, match="read by index"):
            data.set_weights(WEIGHTS)


DAMAGE = [
    ([1, 0, 1, 4, 0], ["web", 300]),
    ([1, 0, 1, 4, 0], []),
    ([1, 0, 1, 4, 0], ["web", 0, 0.7]),
    ([1, 0, 1, 4, 0], ["web", 300, 0.7, None, 1]),
    ([1, 0, 1, 2], 2),
    ([1, 0, 1, 1], True),
    ([1, 0, 2, 0], 1),
    ([1, 0, 0, 0], 1),
    ([1, 0, 2], [0, 0]),
]


@pytest.mark.parametrize(("path", "value"), DAMAGE)
def test_each_part_of_a_record_is_checked(path: list[int], value: Any) -> None:
    loader = loader_of(mixture(THREE, WEIGHTS))
    next(iter(loader))
    state = json.loads(json.dumps(loader.state_dict()))
    part = state["mixture"]
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    with pytest.raises((InvalidStateError, StateMismatchError), match="mixture"):
        loader.load_state_dict(state)


def test_more_passes_than_any_run_has_are_no_limit() -> None:
    data = mixture(THREE, WEIGHTS, max_passes={"books": 2**60}, stopping=100)
    assert len(numbers(loader_of(data))) == 100
