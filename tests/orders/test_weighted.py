"""Weighted orders: exact shares, evenly drawn, each position by itself, the same everywhere."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from collections import Counter
from fractions import Fraction
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from budgets import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from dataporter import ConfigurationError, Mixture, Order, ResumableDataLoader, WeightedOrder
from dataporter.orders.weighted import alias
from dataporter.orders.weighted.alias import FULL, AliasTable
from dataporter.orders.weighted.successive import _logarithm

SEEDS = st.integers(0, 2**63 - 1)
# The significance of test_orders.py, for the same reasons.
UNLIKELY = 1e-5
WEIGHTS = st.lists(
    st.one_of(
        st.just(0.0),
        st.integers(1, 5).map(float),
        st.floats(1e-12, 1.0),
        st.floats(0, 1e300, allow_subnormal=True),
    ),
    min_size=1,
    max_size=60,
).filter(any)


def drawn(order: Order, positions: Any, length: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    asked = np.asarray(positions, dtype=np.int64)
    return order.indices(asked, seed=seed, epoch=epoch, dataset_length=length)


def shares_of(table: AliasTable) -> list[Fraction]:
    """The exact share of each sample in a table."""
    shares = [Fraction(0)] * len(table.aliases)
    for own, (threshold, other) in enumerate(
        zip(table.thresholds.tolist(), table.aliases.tolist())
    ):
        assert 0 <= threshold <= FULL
        shares[own] += threshold
        shares[other] += FULL - threshold
    return [share / (FULL * len(shares)) for share in shares]


def p_value(counts: Any, shares: Any) -> float:
    expected = np.asarray(shares, dtype=float)
    expected = expected * (np.sum(counts) / expected.sum())
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(expected) - 1))


# ---- the table


@given(weights=WEIGHTS, chunk=st.sampled_from([1, 2, 3, 7, 1 << 18]))
@settings(max_examples=cases(500))
def test_the_share_of_each_sample_is_exact(weights: list[float], chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(alias, "_CHUNK", chunk)
        table = AliasTable.of(np.array(weights))
    total = sum(map(Fraction, weights))
    for weight, share in zip(weights, shares_of(table)):
        exact = Fraction(weight) / total
        in_means = exact * len(weights)
        if weight == 0:
            assert share == 0
        else:
            # A weight below 2**-63 of the mean never comes, nor would it in a run of any length.
            assert abs(share - exact) * len(weights) < max(in_means / 10**13, Fraction(2) ** -62)


def test_a_weight_of_a_billionth_of_the_mean_has_its_exact_share() -> None:
    weights = np.ones(1_000_000)
    weights[[3, 500_000, 999_999]] = 1e-9, 1e-12, 300.0
    table = AliasTable.of(weights)
    total = 999_997 + 1e-9 + 1e-12 + 300
    for index in (3, 500_000, 999_999):
        others = np.flatnonzero(table.aliases == index)
        given_away = sum(FULL - int(table.thresholds[other]) for other in others if other != index)
        share = (int(table.thresholds[index]) + given_away) / (FULL * 10**6)
        assert share == pytest.approx(
            weights[index] / total, rel=1e-6 if index == 500_000 else 1e-9
        )


def test_equal_weights_make_a_table_of_full_columns() -> None:
    for count in (1, 2, 3, 10, 999, 300_001):
        table = AliasTable.of(np.full(count, 0.1))
        assert (table.thresholds == FULL).all()
        assert np.array_equal(table.aliases, np.arange(count))


def test_a_table_of_several_chunks_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(1).lognormal(0, 3, 700_000)
    chunked = AliasTable.of(weights)
    counts = np.zeros(len(weights))
    np.add.at(counts, np.arange(len(weights)), chunked.thresholds / FULL)
    np.add.at(counts, chunked.aliases, 1 - chunked.thresholds / FULL)
    assert np.allclose(counts / len(weights), weights / weights.sum(), rtol=1e-6, atol=1e-15)


# ---- draws with replacement


@pytest.mark.parametrize("weights", [[1, 2, 3, 4], [0, 1, 0, 1e-3, 5], [1e-6] * 7, [2.5]])
def test_draws_over_many_seeds_have_the_shares_of_the_weights(weights: list[float]) -> None:
    order = WeightedOrder(weights, samples=1)
    present = [index for index, weight in enumerate(weights) if weight]
    for position in (0, 10**15):
        counts = Counter(
            int(drawn(order, [position], len(weights), seed, epoch)[0])
            for seed in range(1500)
            for epoch in range(2)
        )
        assert set(counts) <= set(present)
        if len(present) > 1:
            got = [counts[index] for index in present]
            assert p_value(got, [weights[index] for index in present]) > UNLIKELY


def test_draws_within_an_epoch_have_the_shares_of_the_weights() -> None:
    weights = np.random.default_rng(2).lognormal(0, 1, 500)
    order = WeightedOrder(weights)
    for seed in range(5):
        counts = np.bincount(drawn(order, np.arange(300_000), 500, seed), minlength=500)
        assert p_value(counts, weights) > UNLIKELY


def test_neighbours_positions_epochs_and_seeds_draw_independently() -> None:
    order = WeightedOrder([1, 2, 3])
    pairs = np.outer([1, 2, 3], [1, 2, 3]).ravel()
    here = drawn(order, np.arange(200_000), 3, seed=5)
    for other in (
        drawn(order, np.arange(1, 200_001), 3, seed=5),
        drawn(order, np.arange(200_000), 3, seed=5, epoch=1),
        drawn(order, np.arange(200_000), 3, seed=6),
    ):
        assert p_value(np.bincount(3 * here + other, minlength=9), pairs) > UNLIKELY


# ---- draws without replacement


@given(weights=WEIGHTS, share=st.floats(0, 1), seed=SEEDS, epoch=st.integers(0, 100))
@settings(max_examples=cases(100))
def test_an_epoch_without_replacement_has_distinct_samples_of_positive_weight(
    weights: list[float], share: float, seed: int, epoch: int
) -> None:
    present = {index for index, weight in enumerate(weights) if weight}
    samples = max(1, round(share * len(present)))
    order = WeightedOrder(weights, replacement=False, samples=samples)
    indices = drawn(order, np.arange(samples), len(weights), seed, epoch).tolist()
    assert len(set(indices)) == samples
    assert set(indices) <= present
    # Fewer samples are the beginning of more.
    every = WeightedOrder(weights, replacement=False, samples=len(present))
    more = drawn(every, np.arange(len(present)), len(weights), seed, epoch).tolist()
    assert more[:samples] == indices


def test_a_weight_that_is_too_small_to_count_comes_before_one_of_zero() -> None:
    order = WeightedOrder([0, 1e-320, 1e300], replacement=False, samples=2)
    equal = WeightedOrder([0, 1e-320, 1e-320, 1e300], replacement=False, samples=2)
    for seed in range(20):
        assert drawn(order, [0, 1], 3, seed).tolist() == [2, 1]
        assert drawn(equal, [0, 1], 4, seed).tolist() == [3, 1]


def test_without_replacement_each_sample_is_drawn_by_weight_among_those_left() -> None:
    weights = [1.0, 2.0, 3.0, 6.0]
    order = WeightedOrder(weights, replacement=False)
    counts = Counter(tuple(drawn(order, np.arange(4), 4, seed).tolist()) for seed in range(5000))
    expected = {}
    for way in permutations(range(4)):
        share, left = 1.0, sum(weights)
        for index in way:
            share *= weights[index] / left
            left -= weights[index]
        expected[way] = share
    assert p_value([counts[way] for way in expected], list(expected.values())) > UNLIKELY


def test_the_logarithm_is_right_to_the_last_digits() -> None:
    hashed = np.random.default_rng(3).integers(0, 2**52, 100_000)
    values = (np.concatenate([hashed, [0, 1, 2**52 - 1, 2**51]]) + 0.5) * 2.0**-52
    assert np.allclose(_logarithm(values), np.log(values), rtol=1e-15, atol=0)


# ---- laws of both


ORDERS = st.builds(
    WeightedOrder, st.just([3.0, 0.5, 2.0, 1.0, 0.25, 7.0, 1.0]), replacement=st.booleans()
)


@given(order=ORDERS, seed=SEEDS, epoch=st.integers(0, 10), data=st.data())
@settings(max_examples=cases(100))
def test_any_positions_can_be_asked_for_at_once(
    order: WeightedOrder, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = drawn(order, np.arange(7), 7, seed, epoch)
    asked = data.draw(st.lists(st.integers(0, 6), max_size=20))
    assert drawn(order, asked, 7, seed, epoch).tolist() == whole[asked].tolist()
    shaped = drawn(order, np.arange(6).reshape(2, 3), 7, seed, epoch)
    assert np.array_equal(shaped, whole[:6].reshape(2, 3))
    for same in (copy.deepcopy(order), pickle.loads(pickle.dumps(order))):
        assert same.name == order.name
        assert np.array_equal(drawn(same, np.arange(7), 7, seed, epoch), whole)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_draws_are_the_same_in_every_release(replacement: bool) -> None:
    weights = np.random.default_rng(4).lognormal(0, 2, 1000)
    order = WeightedOrder(weights, replacement=replacement)
    expected = {
        True: [563, 211, 517, 601, 780, 55, 517, 292],
        False: [411, 128, 804, 900, 441, 585, 845, 215],
    }[replacement]
    assert drawn(order, np.arange(8), 1000, seed=7, epoch=2).tolist() == expected


def test_the_name_tells_weights_apart_and_says_alike_what_is_equal() -> None:
    weights = [1, 2, 0, 4]
    name = WeightedOrder(weights).name
    for same in (
        np.array(weights, dtype=np.float32),
        np.array(weights, dtype=np.int64),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(weights, requires_grad=False).int(),
        [1.0, 2.0, -0.0, 4.0],
    ):
        assert WeightedOrder(same).name == name
    others = [
        WeightedOrder([1, 2, 0, 4 + 1e-15]).name,
        WeightedOrder([2, 1, 0, 4]).name,
        WeightedOrder(weights, samples=5).name,
        WeightedOrder(weights, replacement=False, samples=2).name,
    ]
    assert len({name, *others}) == 5
    assert max(map(len, others)) < 100


def test_changing_the_weights_afterwards_changes_nothing() -> None:
    for replacement in (True, False):
        weights = np.ones(50)
        order = WeightedOrder(weights, replacement=replacement)
        whole = drawn(order, np.arange(50), 50, seed=9)
        weights[:] = 0
        fresh = pickle.loads(pickle.dumps(order))
        assert np.array_equal(drawn(fresh, np.arange(50), 50, seed=9), whole)


def test_the_table_takes_twelve_bytes_a_weight_and_a_draw_nothing() -> None:
    weights = np.random.default_rng(5).random(1_000_000)
    tracemalloc.start()
    try:
        order = WeightedOrder(weights, samples=10**12)
        held, most = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        drawn(order, [5 * 10**11], 1_000_000)
        extra = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()
    assert held < 12.1e6
    assert most < 60e6
    assert extra < 100_000


# ---- bad input


@pytest.mark.parametrize(
    ("weights", "options", "words"),
    [
        ([1, -0.5], {}, r"weights\[1\]=-0.5: expected finite numbers from 0"),
        ([1, 2, float("nan")], {}, r"weights\[2\]=nan"),
        ([float("inf"), 2], {}, r"weights\[0\]=inf"),
        ([0, 0.0], {}, "2 zeros"),
        ([], {}, "has 0 numbers"),
        ([[1, 2]], {}, r"of shape \(1, 2\)"),
        (3.0, {}, r"of shape \(\)"),
        (["a", "b"], {}, "expected one number for each sample"),
        ([1, [2]], {}, "expected one number for each sample"),
        ([1j], {}, "complex128"),
        ({"a": 1}, {}, "expected one number for each sample"),
        ([1, 2], {"samples": 0}, "samples=0"),
        ([1, 2], {"samples": 1.5}, "samples=1.5"),
        ([1, 2], {"replacement": 1}, "replacement=1: expected True or False"),
        ([1, 0], {"replacement": False}, "only 1 of 2 weights are above 0: pass samples=1 or less"),
        ([1, 2], {"replacement": False, "samples": 3}, "samples=3 without replacement"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(
    weights: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        WeightedOrder(weights, **options)


def test_weights_of_another_number_than_the_samples_are_refused_by_the_loader() -> None:
    with pytest.raises(ConfigurationError, match="has 3 weights and the dataset has 4 samples"):
        ResumableDataLoader(range(4), order=WeightedOrder([1, 2, 3]))


def test_a_mixture_refuses_a_weighted_order_of_its_sources() -> None:
    data = Mixture({"a": range(3), "b": range(3)})
    with pytest.raises(ConfigurationError, match="weigh the sources by weights="):
        ResumableDataLoader(data, order=WeightedOrder([1, 2, 3]))
