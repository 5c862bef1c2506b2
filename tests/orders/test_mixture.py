"""The arithmetic of mixtures: shares, interleaving, phases; without any loader (C14)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import ceil, log2
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataporter.errors import ConfigurationError
from dataporter.orders import SequentialOrder, ShuffledOrder
from dataporter.orders.mixture.apportion import MOST_SAMPLES, Apportionment, whole_weights
from dataporter.orders.mixture.change import changed
from dataporter.orders.mixture.interleave import interleaved, period_for
from dataporter.orders.mixture.order import MixtureOrder, source_seed
from dataporter.orders.mixture.phase import Blend, timeline_of
from dataporter.orders.mixture.weights import Weights
from dataporter.seeding.hashing import fold

LARGEST = 10**12

weights_of = st.lists(
    st.one_of(
        st.sampled_from([0.0, 1e-6, 0.05, 0.25, 0.7, 1.0, 3.0]),
        st.floats(1e-6, 1e3),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=9,
).filter(any)
shares_of = weights_of.map(whole_weights)


# Shares.


@given(weights_of)
def test_whole_weights_are_in_proportion(weights: list[float]) -> None:
    whole = whole_weights(weights)
    total = sum(whole)
    assert 1 <= total <= 2**30
    exact = sum(Fraction(repr(w)) if isinstance(w, float) else w for w in weights)
    for weight, part in zip(weights, whole):
        share = (Fraction(repr(weight)) if isinstance(weight, float) else weight) / exact
        assert abs(share - Fraction(part, total)) * 2**30 <= len(weights)
        assert (part > 0) == (weight > 0)


def test_decimals_are_what_they_say() -> None:
    assert whole_weights([0.7, 0.25, 0.05]) == (14, 5, 1)
    assert whole_weights([1e-6, 0.999999]) == (1, 999_999)


@given(shares_of, st.integers(0, LARGEST), st.integers(1, 300))
def test_counts_sum_to_n_never_decrease_and_keep_to_their_shares(
    weights: tuple[int, ...], start: int, length: int
) -> None:
    shares = Apportionment.of(weights)
    counts = shares.counts(np.arange(start, start + length, dtype=np.int64))
    assert counts.sum(axis=0).tolist() == list(range(start, start + length))
    assert (np.diff(counts, axis=1) >= 0).all()
    assert shares.bound == ceil(log2(len(weights))) / 2
    for n in (start, start + length - 1):
        for source, weight in enumerate(weights):
            exact = Fraction(n * weight, sum(weights))
            assert abs(shares.counts_of(n)[source] - exact) <= shares.bound
            if all(n * w % sum(weights) == 0 for w in weights):
                assert shares.counts_of(n)[source] == exact


@given(shares_of, st.integers(1, LARGEST), st.data())
def test_the_least_number_with_a_count(weights: tuple[int, ...], count: int, data: Any) -> None:
    shares = Apportionment.of(weights)
    source = data.draw(st.sampled_from([s for s, weight in enumerate(weights) if weight]))
    first = shares.least(lambda counts: counts[source] >= count)
    if first == MOST_SAMPLES:
        return
    assert shares.counts_of(first)[source] == count
    assert shares.counts_of(first - 1)[source] == count - 1


# Interleaving.


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5).filter(
        lambda periods: any(map(sum, periods))
    ),
    st.integers(0, 2**64 - 6),
)
def test_a_period_has_its_shares_and_counts_each_source(periods: list[list[int]], key: int) -> None:
    shares = np.array(periods, dtype=np.int64).T
    keys = np.arange(len(periods), dtype=np.uint64) + np.uint64(key)
    sources, ranks = interleaved(shares, keys)
    for period, counts in enumerate(periods):
        length = sum(counts)
        row = sources[period, :length].tolist()
        assert [row.count(source) for source in range(3)] == counts
        seen: Counter[int] = Counter()
        for source, rank in zip(row, ranks[period, :length].tolist()):
            assert rank == seen[source]
            seen[source] += 1


def test_a_period_is_a_multiple_of_the_weights_where_that_is_short() -> None:
    assert period_for(20, 3) == 260
    assert period_for(1000, 3) == 1000
    assert period_for(2**30, 3) == 256
    assert period_for(2**30, 1000) == 4000


# Phases: whole runs against counting by hand.


def blend_of(
    lengths: list[int],
    weights: Weights,
    limits: list[int | None] | None = None,
    stopping: Any = 1000,
) -> Blend:
    names = tuple("abcdefghi"[: len(lengths)])
    limited = tuple(limits) if limits else (None,) * len(lengths)
    return Blend(names, tuple(lengths), weights, limited, stopping)


@st.composite
def blends(draw: Any, names: str = "abcde", largest: int = 60) -> Blend:
    count = draw(st.integers(1, len(names)))
    chosen = draw(st.permutations(names))[:count]
    lengths = draw(st.lists(st.integers(1, largest), min_size=count, max_size=count))
    each = st.lists(
        st.sampled_from([0.0, 1e-6, 0.05, 0.25, 0.7, 1.0, 3.0]), min_size=count, max_size=count
    ).filter(any)
    ats = sorted({0, *draw(st.lists(st.integers(1, 400), max_size=2))})
    knots = tuple((at, tuple(draw(each))) for at in ats)
    stopping = draw(
        st.one_of(st.integers(1, 700), st.sampled_from(["first_exhausted", "all_exhausted"]))
    )
    return Blend(
        tuple(chosen),
        tuple(lengths),
        Weights(knots, draw(st.booleans())),
        (None,) * count,
        stopping,
    )


def samples(order: MixtureOrder, seed: int, epoch: int, start: int, stop: int) -> list[Any]:
    """(source, index in it) at positions of an epoch."""
    positions = np.arange(start, stop, dtype=np.int64)
    indices = order.indices(positions, seed=seed, epoch=epoch, dataset_length=order.length)
    ends = np.cumsum(order.blend.lengths)
    which = np.searchsorted(ends, indices, side="right")
    begins = ends - np.array(order.blend.lengths)
    return [
        (order.blend.names[source], int(index - begins[source]))
        for source, index in zip(which.tolist(), indices.tolist())
    ]


def alone(inner: Any, seed: int, name: str, length: int, count: int) -> list[int]:
    """The first samples of a source that is read by itself, pass after pass."""
    found: list[int] = []
    number = 0
    while len(found) < count:
        found += inner.indices(
            np.arange(length), seed=source_seed(seed, name), epoch=number, dataset_length=length
        ).tolist()
        number += 1
    return found[:count]


def streams(run: list[Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name, index in run:
        found.setdefault(name, []).append(index)
    return found


@pytest.mark.parametrize("inner", [ShuffledOrder(), SequentialOrder()])
@given(blend=blends(), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_each_source_is_consumed_as_if_it_were_alone(
    inner: Any, blend: Blend, seed: int, data: Any
) -> None:
    order = MixtureOrder.of(blend, inner)
    run: list[Any] = []
    for epoch in range(3):
        length = min(order.length_of(epoch), 900)
        cut = data.draw(st.integers(0, length))
        run += samples(order, seed, epoch, 0, cut) + samples(order, seed, epoch, cut, length)
        counted = {name: c.count for name, c in order.consumed(seed, epoch, length).items()}
        assert {name: count for name, count in counted.items() if count} == {
            name: len(stream) for name, stream in streams(run).items()
        }
        if length < order.length_of(epoch):
            break
    lengths = dict(zip(blend.names, blend.lengths))
    for name, stream in streams(run).items():
        assert stream == alone(inner, seed, name, lengths[name], len(stream))


@given(st.lists(blends(), min_size=2, max_size=4), st.integers(0, 2**63 - 1), st.data())
def test_whatever_changes_nothing_is_lost_and_nothing_comes_twice(
    chain: list[Blend], seed: int, data: Any
) -> None:
    inner = ShuffledOrder()
    first = chain[0]
    lengths = dict(zip(first.names, first.lengths))
    order = MixtureOrder.of(first, inner)
    epoch = position = 0
    run: list[Any] = []
    for number, blend in enumerate(chain):
        if number:
            # Sources keep their lengths here; growth has a test for itself.
            for name, length in zip(blend.names, blend.lengths):
                lengths.setdefault(name, length)
            kept = tuple(lengths[name] for name in blend.names)
            blend = Blend(blend.names, kept, blend.weights, blend.limits, blend.stopping)
            phases = changed(order, blend, seed=seed, epoch=epoch, position=position)
            before = order.consumed(seed, epoch, position)
            order = MixtureOrder.of(blend, inner, phases)
            assert {n: c for n, c in order.consumed(seed, epoch, position).items() if c.count} == {
                n: c for n, c in before.items() if c.count
            }
        for _ in range(data.draw(st.integers(1, 2))):
            left = min(order.length_of(epoch) - position, 500)
            stop = position + data.draw(st.integers(0, left))
            run += samples(order, seed, epoch, position, stop)
            position = stop
            if position == order.length_of(epoch):
                epoch, position = epoch + 1, 0
    for name, stream in streams(run).items():
        assert stream == alone(inner, seed, name, lengths[name], len(stream))
    counts = {name: len(stream) for name, stream in streams(run).items()}
    known = order.consumed(seed, epoch, position)
    assert {name: c.count for name, c in known.items() if c.count} == counts
    assert (
        order.phase_at(epoch, position).begin
        <= sum(counts.values())
        == sum(c.count for c in known.values())
    )


@settings(max_examples=50)
@given(
    st.lists(st.integers(1, LARGEST), min_size=1, max_size=5),
    st.integers(0, 2**63 - 1),
    st.integers(0, LARGEST),
    st.data(),
)
def test_far_positions_follow_from_the_position_alone(
    lengths: list[int], seed: int, position: int, data: Any
) -> None:
    weights = data.draw(
        st.lists(st.sampled_from([1e-6, 0.3, 1.0]), min_size=len(lengths), max_size=len(lengths))
    )
    blend = blend_of(lengths, Weights(((0, tuple(weights)),)), stopping=2 * LARGEST)
    order = MixtureOrder.of(blend, ShuffledOrder())
    run = samples(order, seed, 0, position, position + 300)
    before = order.consumed(seed, 0, position)
    after = order.consumed(seed, 0, position + 300)
    by_name = dict(zip(blend.names, lengths))
    counted = Counter(name for name, _ in run)
    for name in blend.names:
        assert after[name].count - before[name].count == counted[name]
        share = dict(zip(blend.names, timeline_of(order.phases[0]).weights(0, position)))[name]
        assert abs(before[name].count - position * share) <= 3 + 256 / 4
        # Each index follows from the count alone.
        count = before[name].count
        for index in [index for source, index in run if source == name]:
            number, offset = divmod(count, by_name[name])
            (expected,) = ShuffledOrder().indices(
                np.array([offset]),
                seed=source_seed(seed, name),
                epoch=number,
                dataset_length=by_name[name],
            )
            assert index == expected
            count += 1


# How long an epoch is.


def test_first_exhausted_ends_before_a_second_pass() -> None:
    order = MixtureOrder.of(
        blend_of([100, 100], Weights(((0, (0.5, 0.5)),)), stopping="first_exhausted"),
        ShuffledOrder(),
    )
    assert order.length_of(0) == order.length_of(1) == 200
    for epoch in range(2):
        assert len(set(samples(order, 1, epoch, 0, 200))) == 200
    order = MixtureOrder.of(
        blend_of([10, 1000], Weights(((0, (1, 1)),)), stopping="first_exhausted"), ShuffledOrder()
    )
    assert order.length_of(0) == 20


def test_all_exhausted_waits_for_each_source() -> None:
    order = MixtureOrder.of(
        blend_of([10, 1000], Weights(((0, (1, 1)),)), stopping="all_exhausted"), ShuffledOrder()
    )
    # The last position may be the shorter source's.
    assert order.length_of(0) in (1999, 2000)
    ended = MixtureOrder.of(
        blend_of([10, 1000], Weights(((0, (1, 1)),)), [1, None], stopping="all_exhausted"),
        ShuffledOrder(),
    )
    assert ended.length_of(0) == 1010
    assert len(set(samples(ended, 1, 0, 0, 1010))) == 1010
    # The shorter source has ended, so that the next epoch has none of it.
    assert ended.length_of(1) == 1000
    assert {name for name, _ in samples(ended, 1, 1, 0, 1000)} == {"b"}


@given(blends(), st.integers(0, 2**63 - 1))
def test_epochs_are_what_stopping_says(blend: Blend, seed: int) -> None:
    blend = Blend(
        blend.names,
        blend.lengths,
        Weights(blend.weights.knots[:1]),
        blend.limits,
        "first_exhausted",
    )
    order = MixtureOrder.of(blend, ShuffledOrder())
    length = order.length_of(0)
    if length > 5000:
        return
    counts = {name: c.count for name, c in order.consumed(seed, 0, length).items()}
    by_name = dict(zip(blend.names, blend.lengths))
    assert all(counts[name] <= by_name[name] for name in counts)
    following = timeline_of(order.phases[0])._steps[0].apportionment.counts_of(length + 1)
    assert (
        any(count > most for count, most in zip(following.tolist(), blend.lengths)) or length == 1
    )


def test_max_passes_end_a_source_exactly() -> None:
    blend = blend_of([7, 50], Weights(((0, (1, 1)),)), [4, None], stopping=1000)
    order = MixtureOrder.of(blend, ShuffledOrder())
    run = samples(order, 3, 0, 0, 1000)
    assert Counter(index for name, index in run if name == "a") == dict.fromkeys(range(7), 4)
    # Nothing of it comes after its last pass.
    last = max(n for n, (name, _) in enumerate(run) if name == "a")
    assert last < 60


def test_a_mixture_whose_sources_have_all_ended_is_over() -> None:
    blend = blend_of([7, 5], Weights(((0, (1, 1)),)), [2, 1], stopping=15)
    order = MixtureOrder.of(blend, ShuffledOrder())
    assert [order.length_of(epoch) for epoch in range(4)] == [15, 4, 0, 0]
    run = samples(order, 3, 0, 0, 15) + samples(order, 3, 1, 0, 4)
    assert Counter(name for name, _ in run) == {"a": 14, "b": 5}


def test_the_next_step_begins_early_where_all_sources_of_one_have_ended() -> None:
    weights = Weights(((0, (1.0, 0.0)), (100, (0.5, 0.5))))
    order = MixtureOrder.of(blend_of([7, 50], weights, [2, None]), ShuffledOrder())
    run = [name for name, _ in samples(order, 1, 0, 0, 300)]
    assert run[:14] == ["a"] * 14
    assert run[14:] == ["b"] * 286
    ramp = Weights(((0, (1, 1)), (100, (1, 1.5))), linear=True)
    order = MixtureOrder.of(blend_of([100, 10], ramp, [None, 1], stopping=100), ShuffledOrder())
    assert Counter(name for name, _ in samples(order, 1, 0, 0, 100)) == {"a": 90, "b": 10}


def test_epochs_over_a_schedule_are_as_long_as_they_may_be() -> None:
    steps = Weights(((0, (1, 1)), (10, (2, 1))))
    blend = replace(blend_of([1000, 1000], steps, stopping="first_exhausted"), most=100)
    order = MixtureOrder.of(blend, ShuffledOrder())
    assert [order.length_of(epoch) for epoch in range(3)] == [100] * 3
    ramp = Weights(((0, (1, 1)), (1000, (2, 1))), linear=True)
    order = MixtureOrder.of(replace(blend, weights=ramp), ShuffledOrder())
    assert [order.length_of(epoch) for epoch in range(12)] == [100] * 12
    ends = blend_of([10, 1000], Weights(((0, (1, 1)),)), [1, 1], stopping="all_exhausted")
    order = MixtureOrder.of(ends, ShuffledOrder())
    assert [order.length_of(epoch) for epoch in range(3)] == [1010, 0, 0]
    ends = blend_of([10, 10], Weights(((0, (1, 1)),)), [1, 1], stopping="first_exhausted")
    assert MixtureOrder.of(ends, ShuffledOrder()).length_of(0) == 20


def test_an_epoch_beyond_every_run_is_refused() -> None:
    blend = blend_of([10], Weights(((0, (1,)),)), stopping=10**9)
    with pytest.raises(ConfigurationError, match="lies beyond"):
        MixtureOrder.of(blend, ShuffledOrder()).length_of(10**12)


# Schedules.


def test_steps_and_ramps_have_their_shares() -> None:
    steps = Weights(((0, (1, 0)), (1000, (1, 3))))
    order = MixtureOrder.of(blend_of([50, 50], steps, stopping=5000), ShuffledOrder())
    run = [name for name, _ in samples(order, 3, 0, 0, 5000)]
    assert run[:1000].count("b") == 0
    assert run[1000:5000].count("b") == 3000
    ramp = Weights(((0, (1, 0)), (10_000, (0, 1))), linear=True)
    order = MixtureOrder.of(blend_of([50, 50], ramp, stopping=12_000), ShuffledOrder())
    run = [name for name, _ in samples(order, 3, 0, 0, 12_000)]
    assert abs(run[:10_000].count("b") - 5000) <= 1
    for begin in range(0, 10_000, 1000):
        assert abs(run[begin : begin + 1000].count("b") - (begin + 500) / 10) <= 25
    assert run[10_000:].count("a") == 0


# Uniformity and independence, over many seeds; each bound is passed by chance once in a million.


def drawn(shares: tuple[int, ...], count: int) -> Any:
    """The sources of so many periods, each with a key of its own."""
    columns = np.repeat(np.array(shares, dtype=np.int64)[:, None], count, axis=1)
    keys = np.array([fold(seed, 99) for seed in range(count)], dtype=np.uint64)
    return interleaved(columns, keys)[0].astype(np.int64)


def far(statistic: float, freedom: int) -> bool:
    """Whether a chi-square statistic is beyond what chance gives once in a million."""
    return statistic > freedom + 5 * (2 * freedom) ** 0.5 + 15


def test_each_place_of_a_period_holds_each_source_equally_often() -> None:
    shares, count = (14, 5, 1), 20_000
    sources = drawn(shares, count)
    for source, share in enumerate(shares):
        found = (sources == source).sum(axis=0)
        expected = count * share / 20
        # The places of a period have one sum, hence one degree of freedom less.
        statistic = ((found - expected) ** 2 / expected).sum() * 19 / 20 / (1 - share / 20)
        assert not far(statistic, 19)


def test_neighbours_are_independent_within_a_period() -> None:
    shares, count = (14, 5, 1), 20_000
    sources = drawn(shares, count)
    for distance in (1, 2, 7):
        pairs = 3 * sources[:, :-distance] + sources[:, distance:]
        number = pairs.size
        statistic, freedom = 0.0, 0
        for one, first in enumerate(shares):
            for other, second in enumerate(shares):
                left = second - (one == other)
                expected = number * first * left / (20 * 19)
                if expected:
                    found = (pairs == 3 * one + other).sum()
                    statistic += (found - expected) ** 2 / expected
                    freedom += 1
        assert not far(statistic, freedom)


def test_runs_within_a_period_are_as_many_as_chance_gives() -> None:
    shares, count = (40, 60), 5_000  # Wald and Wolfowitz (1940)
    sources = drawn(shares, count)
    runs = 1 + (np.diff(sources, axis=1) != 0).sum(axis=1)
    product, total = 2 * 40 * 60, 100
    mean = product / total + 1
    variance = product * (product - total) / (total**2 * (total - 1))
    assert abs(runs.mean() - mean) < 5 * (variance / count) ** 0.5
    assert abs(runs.var() / variance - 1) < 5 * (2 / count) ** 0.5


def test_all_arrangements_of_a_short_period_are_equally_likely() -> None:
    sources = drawn((2, 2, 1), 60_000)
    arrangements = Counter(map(tuple, sources.tolist()))
    assert len(arrangements) == 30
    statistic = sum((found - 2000) ** 2 / 2000 for found in arrangements.values())
    assert not far(statistic, 29)


def test_periods_and_seeds_are_independent_of_one_another() -> None:
    blend = blend_of([10**6] * 2, Weights(((0, (1, 1)),)), stopping=10**6)
    order = MixtureOrder.of(blend, SequentialOrder())
    rows = []
    for seed in range(40):
        found = timeline_of(order.phases[0]).taken(seed, 0, np.arange(256 * 20, dtype=np.int64))
        rows += list(2.0 * found.sources.reshape(20, 256) - 1)
    periods = np.array(rows)
    correlations = (periods @ periods.T)[np.triu_indices(len(periods), 1)] / 256
    # 256 signs that sum to 0: the variance of a product's mean is 1 / 255.
    assert abs(correlations.mean()) < 5 / (255 * len(correlations)) ** 0.5
    assert abs(correlations.var() * 255 - 1) < 0.02


def test_a_batch_is_near_its_shares() -> None:
    """Within a batch of a period's length each source differs by no more than twice the bound."""
    blend = blend_of([1000] * 3, Weights(((0, (0.7, 0.25, 0.05)),)), stopping=10**6)
    order = MixtureOrder.of(blend, ShuffledOrder())
    for seed in range(20):
        taken = timeline_of(order.phases[0]).taken(seed, 0, np.arange(52_000, dtype=np.int64))
        for start in range(0, 52_000, 260):
            counts = np.bincount(taken.sources[start : start + 260], minlength=3)
            assert counts.tolist() == [182, 65, 13]
        running = np.cumsum(np.equal.outer(taken.sources, np.arange(3)), axis=0)
        exact = np.outer(np.arange(1, 52_001), [0.7, 0.25, 0.05])
        assert np.abs(running - exact).max() <= 260 / 4 + 1
