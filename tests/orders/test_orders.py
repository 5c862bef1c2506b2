"""Orders: a bijection for every length, uniform over seeds, different in each epoch."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.utils.data import DataLoader

from dataporter import (
    ConfigurationError,
    Order,
    ResumableDataLoader,
    SequentialOrder,
    ShuffledOrder,
    TorchOrder,
)
from dataporter.orders.permutation import SORTED_LENGTH

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10_000)


def permutation(order: Order, length: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return order.indices(np.arange(length), seed=seed, epoch=epoch, dataset_length=length)


class Faulty:
    """A custom order that returns ``answer``."""

    name, version = "faulty", 1

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def epoch_length(self, dataset_length: int) -> int:
        return dataset_length

    def indices(self, positions: np.ndarray, *, seed: int, epoch: int, dataset_length: int) -> Any:
        return self.answer(positions)


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (lambda positions: positions.tolist(), "a list"),
        (lambda positions: positions[:, :1], r"shape \(1, 1\)"),
        (lambda positions: positions.astype(float), "float64"),
        (lambda positions: positions + 3, "from 3 to 5"),
        (lambda positions: positions - 1, "from -1 to 1"),
    ],
)
def test_an_order_that_returns_no_indices_of_the_dataset_is_an_error(
    answer: Any, named: str
) -> None:
    loader = ResumableDataLoader(range(5), 3, order=Faulty(answer))
    with pytest.raises(ConfigurationError, match=f"'faulty' gave .*{named}"):
        next(iter(loader))


def test_an_order_may_have_a_different_length_than_the_dataset() -> None:
    class Twice(Faulty):
        def epoch_length(self, dataset_length: int) -> int:
            return 2 * dataset_length

    loader = ResumableDataLoader(range(5), 4, order=Twice(lambda positions: positions % 5))
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    rest = [batch.tolist() for batch in batches]
    assert rest == [[4, 0, 1, 2], [3, 4]]
    loader.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == rest


@pytest.mark.parametrize("order", [ShuffledOrder(), SequentialOrder(), TorchOrder()])
def test_orders_keep_the_protocol(order: Order) -> None:
    assert isinstance(order, Order)
    assert order.epoch_length(7) == 7
    assert permutation(order, 0).shape == (0,)


def test_shuffled_is_a_bijection_for_every_small_length() -> None:
    for length in range(1, 400):
        indices = permutation(ShuffledOrder(), length, seed=length)
        assert np.array_equal(np.sort(indices), np.arange(length))


@given(
    length=st.one_of(st.integers(SORTED_LENGTH - 3, SORTED_LENGTH + 300), st.integers(1, 300_000)),
    seed=SEEDS,
    epoch=EPOCHS,
)
def test_shuffled_is_a_bijection_for_sampled_lengths(length: int, seed: int, epoch: int) -> None:
    indices = permutation(ShuffledOrder(), length, seed, epoch)
    assert np.array_equal(np.sort(indices), np.arange(length))


@given(length=st.integers(10**6, 2**62), seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_shuffled_gives_different_indices_at_different_positions_of_huge_lengths(
    length: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, length - 1))
    positions = np.arange(start, min(start + 5000, length))
    indices = ShuffledOrder().indices(positions, seed=seed, epoch=epoch, dataset_length=length)
    assert indices.dtype == np.int64
    assert ((indices >= 0) & (indices < length)).all()
    assert len(np.unique(indices)) == len(positions)


@given(length=st.integers(1, 20_000), seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_shuffled_gives_each_position_the_same_index_however_it_is_requested(
    length: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    whole = permutation(ShuffledOrder(), length, seed, epoch)
    positions = np.array(
        data.draw(st.lists(st.integers(0, length - 1), max_size=20)), dtype=np.int64
    )
    asked = ShuffledOrder().indices(positions, seed=seed, epoch=epoch, dataset_length=length)
    assert (asked == whole[positions]).all()
    square = ShuffledOrder().indices(
        np.resize(positions, (3, 4)) if len(positions) else np.zeros((3, 4), np.int64),
        seed=seed,
        epoch=epoch,
        dataset_length=length,
    )
    assert square.shape == (3, 4)


# At a significance of 1e-5 a sound order fails one of these twelve once in 8,000 sets of seeds,
# and the seeds are fixed; an order that prefers an index by a tenth always fails.
UNLIKELY = 1e-5
LENGTHS = [16, 100, SORTED_LENGTH, SORTED_LENGTH + 1, 10_007, 1_000_003]


def p_value(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


@pytest.mark.parametrize("length", LENGTHS)
def test_shuffled_puts_each_position_everywhere_equally_often(length: int) -> None:
    positions = np.array([0, 1, length // 3, length - 1])
    buckets = 16
    counts = np.zeros((len(positions), buckets))
    for seed in range(4000):
        indices = ShuffledOrder().indices(positions, seed=seed, epoch=0, dataset_length=length)
        counts[np.arange(len(positions)), fractions(indices, length, buckets)] += 1
    assert all(p_value(row * length_correction(length, buckets)) > UNLIKELY for row in counts)


@pytest.mark.parametrize("length", LENGTHS[2:])
def test_shuffled_puts_neighbours_into_every_pair_of_buckets_equally_often(length: int) -> None:
    positions = np.array([0, 1, length // 2, length // 2 + 1, length - 2, length - 1])
    buckets = 12
    counts = np.zeros((buckets, buckets))
    for seed in range(4000):
        indices = ShuffledOrder().indices(positions, seed=seed, epoch=1, dataset_length=length)
        found = fractions(indices, length, buckets)
        np.add.at(counts, (found[::2], found[1::2]), 1)
    assert p_value(counts) > UNLIKELY


@pytest.mark.parametrize("length", LENGTHS[2:])
def test_epochs_and_seeds_are_independent_of_each_other(length: int) -> None:
    """With ``seed + epoch`` as the key, seed 1 in epoch 0 would be seed 0 in epoch 1."""
    positions = np.arange(40)
    buckets = 12
    by_epoch, by_seed = np.zeros((buckets, buckets)), np.zeros((buckets, buckets))
    for seed in range(500):
        first, next_epoch, next_seed = (
            fractions(
                ShuffledOrder().indices(positions, seed=s, epoch=e, dataset_length=length),
                length,
                buckets,
            )
            for s, e in ((seed, 0), (seed, 1), (seed + 1, 0))
        )
        np.add.at(by_epoch, (first, next_epoch), 1)
        np.add.at(by_seed, (next_epoch, next_seed), 1)
    assert p_value(by_epoch) > UNLIKELY
    assert p_value(by_seed) > UNLIKELY


def fractions(indices: np.ndarray, length: int, buckets: int) -> np.ndarray:
    return indices * buckets // length


def length_correction(length: int, buckets: int) -> np.ndarray:
    """Corrects for buckets of unequal size, if their number does not divide the length."""
    sizes = np.bincount(fractions(np.arange(length), length, buckets), minlength=buckets)
    return sizes.mean() / sizes


def test_epochs_differ() -> None:
    for length in (30, 5000):
        orders = [permutation(ShuffledOrder(), length, 3, epoch).tolist() for epoch in range(20)]
        assert len({tuple(order) for order in orders}) == 20


def test_shuffled_needs_no_memory_for_the_dataset() -> None:
    positions = np.arange(10**12 - 8192, 10**12)
    tracemalloc.start()
    ShuffledOrder().indices(positions, seed=1, epoch=1, dataset_length=10**12)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_shuffled_never_changes_under_its_version() -> None:
    """Saved states rely on it. A deliberate change of the order must increase its version."""
    assert ShuffledOrder.version == 1
    small = permutation(ShuffledOrder(), 10, seed=42, epoch=3)
    large = ShuffledOrder().indices(
        np.array([0, 1, 2, 10**12 - 1]), seed=42, epoch=3, dataset_length=10**12
    )
    assert small.tolist() == [1, 4, 7, 9, 5, 3, 2, 6, 8, 0]
    assert large.tolist() == [376961017922, 607249525732, 130317898499, 885586787146]


@given(length=st.integers(1, 200), seed=st.integers(0, 2**63 - 1))
def test_torch_order_is_the_order_of_torchs_loader_in_every_epoch(length: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(range(length), batch_size=None, shuffle=True, generator=generator)
    passes = [[int(index) for index in loader] for _ in range(4)]
    for epoch in (2, 0, 3, 1):
        assert permutation(TorchOrder(), length, seed, epoch).tolist() == passes[epoch]
