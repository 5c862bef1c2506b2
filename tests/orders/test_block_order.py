"""The block order: a bijection of whole blocks, window by window, uniform, from any position."""

from __future__ import annotations

import copy
import pickle
import tracemalloc
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from budgets import cases, slow
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from subjects import Indices

from dataporter import (
    BlockShuffledOrder,
    ConfigurationError,
    Order,
    ResumableDataLoader,
    StateMismatchError,
)
from dataporter.orders.permutation import SORTED_LENGTH, distinct, permute, permute_each
from dataporter.seeding.hashing import fold, fold_each

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10_000)
ORDERS = st.builds(
    BlockShuffledOrder,
    st.one_of(st.integers(1, 12), st.integers(1, 5000), st.integers(1, 2**70)),
    st.one_of(st.integers(1, 5), st.integers(1, 200), st.integers(1, 2**70)),
)
LENGTHS = st.one_of(st.integers(1, 60), st.integers(1, 20_000))
# The significance of test_orders.py, for the same reasons.
UNLIKELY = 1e-5


def indices(
    order: Order, positions: Any, length: int, seed: int = 0, epoch: int = 0
) -> np.ndarray[Any, Any]:
    asked = np.asarray(positions, dtype=np.int64)
    return order.indices(asked, seed=seed, epoch=epoch, dataset_length=length)


def whole(order: Order, length: int, seed: int = 0, epoch: int = 0) -> np.ndarray[Any, Any]:
    return indices(order, np.arange(length), length, seed, epoch)


def p_value(counts: np.ndarray[Any, Any], shares: np.ndarray[Any, Any] | float = 1.0) -> float:
    expected = np.broadcast_to(shares, counts.shape)
    expected = expected * (counts.sum() / expected.sum())
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


# ---- the samples of an epoch


@given(order=ORDERS, length=LENGTHS, seed=SEEDS, epoch=EPOCHS)
@settings(max_examples=cases(300))
def test_an_epoch_has_each_sample_once(
    order: BlockShuffledOrder, length: int, seed: int, epoch: int
) -> None:
    assert np.array_equal(np.sort(whole(order, length, seed, epoch)), np.arange(length))


@pytest.mark.parametrize("block", [1, 2, 3, 5, 8, 40])
@pytest.mark.parametrize("buffer", [1, 2, 3, 50])
def test_an_epoch_of_every_small_length_has_each_sample_once(block: int, buffer: int) -> None:
    for length in range(45):
        for seed in range(5):
            epoch = whole(BlockShuffledOrder(block, buffer), length, seed)
            assert np.array_equal(np.sort(epoch), np.arange(length))


@given(order=ORDERS, length=LENGTHS, seed=SEEDS)
@example(order=BlockShuffledOrder(2, 2049), length=8200, seed=3)
@settings(max_examples=cases(300))
def test_each_window_is_whole_blocks_and_never_more_than_its_share(
    order: BlockShuffledOrder, length: int, seed: int
) -> None:
    """In the sequence of first appearances, ``buffer`` blocks are finished before others start."""
    blocks = whole(order, length, seed) // min(order.block, length)
    _, first_positions, which = np.unique(blocks, return_index=True, return_inverse=True)
    window_of_block = np.argsort(np.argsort(first_positions)) // min(order.buffer, length)
    windows = window_of_block[which]
    assert (np.diff(windows) >= 0).all()


@given(order=ORDERS, length=LENGTHS, seed=SEEDS, epoch=EPOCHS, data=st.data())
def test_each_position_has_the_same_index_however_it_is_requested(
    order: BlockShuffledOrder, length: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    epoch_indices = whole(order, length, seed, epoch)
    positions = data.draw(st.lists(st.integers(0, length - 1), max_size=20))
    asked = indices(order, positions, length, seed, epoch)
    assert asked.dtype == np.int64
    assert asked.tolist() == epoch_indices[positions].tolist()
    square = np.resize(np.array(positions or [0], dtype=np.int64), (3, 4))
    assert np.array_equal(indices(order, square, length, seed, epoch), epoch_indices[square])
    single = data.draw(st.integers(0, length - 1))
    assert indices(order, [single], length, seed, epoch).tolist() == [epoch_indices[single]]


@given(
    block=st.integers(1, 3000),
    buffer=st.integers(1, 40),
    length=st.integers(10**6, 2**63 - 1),
    seed=SEEDS,
    data=st.data(),
)
@example(block=7, buffer=3, length=2**63 - 1, seed=1, data=None)
@example(block=2**62 + 1, buffer=2, length=2**63 - 1, seed=1, data=None)
@example(block=2**31, buffer=2**31, length=2**63 - 1, seed=1, data=None)
def test_huge_lengths_keep_to_blocks_and_windows(
    block: int, buffer: int, length: int, seed: int, data: st.DataObject | None
) -> None:
    order = BlockShuffledOrder(block, buffer)
    for start in (0, length - 3000, data.draw(st.integers(0, length - 3000)) if data else 1):
        asked = np.arange(start, start + 3000)
        found = indices(order, asked, length, seed)
        assert ((found >= 0) & (found < length)).all()
        assert len(np.unique(found)) == 3000
        # 3,000 positions are in this many windows, one of which the last block may shorten.
        windows = 3000 // max(1, block * (buffer - 1)) + 3
        assert len(np.unique(found // block)) <= windows * buffer
        scattered = np.random.default_rng(seed).permutation(3000)
        assert np.array_equal(indices(order, asked[scattered], length, seed), found[scattered])


@pytest.mark.parametrize(("block", "buffer"), [(3, 2), (64, 40), (512, 8), (1024, 16)])
def test_scattered_positions_give_the_same_indices_as_each_alone(block: int, buffer: int) -> None:
    order, length = BlockShuffledOrder(block, buffer), 10**12 + 7
    positions = np.random.default_rng(0).integers(0, length, 300)
    together = indices(order, positions, length, 5, 2)
    assert [indices(order, [one], length, 5, 2)[0] for one in positions] == together.tolist()


def test_a_buffer_of_the_whole_dataset_is_a_full_shuffle() -> None:
    """No block stays together: neighbours share a block only as often as by chance."""
    blocks = whole(BlockShuffledOrder(block=10, buffer=10**9), 10_000) // 10
    together = (np.diff(blocks) == 0).sum()
    assert 0 < together < 40, "9 neighbours in 9,999 are expected"


# ---- how well it is mixed


@pytest.mark.parametrize(
    ("block", "buffer"),
    [(5, 4), (64, 16), *slow((1024, 4), (1024, 16), (4099, 3))],
)
def test_each_position_of_a_window_has_each_of_its_samples_equally_often(
    block: int, buffer: int
) -> None:
    order, window, buckets = BlockShuffledOrder(block, buffer), block * buffer, min(block, 12)
    positions = 7 * window + np.array([0, 1, window // 2, window - 1])
    counts, pairs = np.zeros((4, buckets)), np.zeros((buckets, buckets))
    for seed in range(4000):
        within = indices(order, positions, 20 * window, seed) % block * buckets // block
        counts[np.arange(4), within] += 1
        pairs[within[0], within[1]] += 1
    shares = np.bincount(np.arange(block) * buckets // block).astype(float)
    assert all(p_value(of_position, shares) > UNLIKELY for of_position in counts)
    if block > 5:  # with 5 x 4 samples, two different ones rarely share a bucket
        assert p_value(pairs, shares * shares[:, None]) > UNLIKELY


@pytest.mark.parametrize(("block", "buffer"), [(64, 16), *slow((1024, 16), (3000, 5))])
def test_neighbours_in_an_epoch_come_from_any_two_blocks_of_their_window(
    block: int, buffer: int
) -> None:
    order, length = BlockShuffledOrder(block, buffer), block * buffer
    counts = np.zeros((buffer, buffer))
    positions = np.array([0, 1, length // 2, length // 2 + 1, length - 2, length - 1])
    for seed in range(4000):
        blocks = indices(order, positions, length, seed) // block
        np.add.at(counts, (blocks[::2], blocks[1::2]), 1)
    # Within its own block a sample has one possible neighbour fewer.
    assert p_value(counts, block - np.eye(buffer)) > UNLIKELY


@pytest.mark.parametrize("length", [*slow(40), 33])
def test_every_order_of_the_blocks_is_equally_likely(length: int) -> None:
    """Also with the short last block of 33, wherever it lands."""
    orders = dict.fromkeys(permutations(range(4)), 0)
    for seed in range(6000):
        blocks = whole(BlockShuffledOrder(10, 1), length, seed) // 10
        orders[tuple(dict.fromkeys(blocks.tolist()))] += 1
    assert p_value(np.array(list(orders.values()), dtype=float)) > UNLIKELY


@pytest.mark.parametrize("count", [50, *slow(SORTED_LENGTH + 50)])
def test_the_last_block_comes_anywhere(count: int) -> None:
    order, length, tenths = BlockShuffledOrder(10, 1), count * 10 - 7, np.zeros(10)
    for seed in range(2000 if count < 100 else 300):
        last = np.flatnonzero(whole(order, length, seed) >= (count - 1) * 10)
        assert np.array_equal(last, last[0] + np.arange(3))
        tenths[last[0] * 10 // length] += 1
    assert p_value(tenths) > UNLIKELY


@pytest.mark.parametrize(("block", "buffer"), [(60, 8), *slow((600, 10))])
def test_windows_epochs_and_seeds_are_independent_of_each_other(block: int, buffer: int) -> None:
    order, window, buckets = BlockShuffledOrder(block, buffer), block * buffer, 12
    counts = np.zeros((4, buckets, buckets))
    positions = np.array([0, window // 3, window - 1])
    for seed in range(1500):
        first, other_window, other_epoch, other_seed = (
            indices(order, positions + shift, window * 9, s, epoch) % block * buckets // block
            for shift, s, epoch in (
                (0, seed, 0),
                (window, seed, 0),
                (0, seed, 1),
                (0, seed + 1, 0),
            )
        )
        for number, other in enumerate((other_window, other_epoch, other_seed)):
            np.add.at(counts[number], (first, other), 1)
        np.add.at(counts[3], (other_epoch, other_seed), 1)
    assert all(p_value(table) > UNLIKELY for table in counts)


# ---- the parts


@given(
    keys=st.lists(SEEDS, min_size=1, max_size=5),
    words=st.lists(st.integers(0, 2**64 - 1), min_size=5, max_size=5),
)
def test_fold_each_is_fold_of_each_pair(keys: list[int], words: list[int]) -> None:
    pairs = list(zip(keys, words))
    found = fold_each(*(np.array(numbers, dtype=np.uint64) for numbers in zip(*pairs)))
    assert found.tolist() == [fold(key, word) for key, word in pairs]


@given(
    length=st.one_of(st.integers(1, 300), st.integers(SORTED_LENGTH - 2, 9000)),
    owners=st.lists(st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1)), min_size=1),
    key=SEEDS,
)
def test_permute_each_is_permute_by_the_key_of_each_owner(
    length: int, owners: list[int], key: int
) -> None:
    values = np.arange(len(owners), dtype=np.uint64) * np.uint64(7) % np.uint64(length)
    found = permute_each(values, np.array(owners, dtype=np.uint64), length, key)
    for value, owner, image in zip(values, owners, found):
        assert permute(np.array([value]), length, fold(key, owner)) == [image]


@given(values=st.lists(st.one_of(st.integers(0, 30), st.integers(0, 2**64 - 1)), min_size=1))
def test_distinct_holds_all_values_and_not_many_more(values: list[int]) -> None:
    given_values = np.array(values, dtype=np.uint64)
    some, which = distinct(given_values)
    assert some[which].tolist() == values
    assert len(np.unique(some)) == len(some) <= len(values)


# ---- as an order of a loader


def loader_of(length: int, batch_size: int, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"seed": 3, "order": BlockShuffledOrder(4, 3), **arguments}
    return ResumableDataLoader(Indices(length), batch_size, **arguments)


@given(
    length=st.integers(1, 90),
    chain=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(0, 4)), max_size=3),
)
@settings(max_examples=cases(60))
def test_a_chain_of_worlds_gives_each_sample_once_in_the_order_of_the_epoch(
    length: int, chain: list[tuple[int, int, int]]
) -> None:
    expected = whole(BlockShuffledOrder(4, 3), length, seed=3).tolist()
    seen: list[int] = []
    state = None
    for batch_size, world_size, steps in [*chain, (3, 2, length)]:
        ranks = [
            loader_of(
                length,
                batch_size,
                rank=rank,
                world_size=world_size,
                tail="uneven",
                strategy="distributed",
            )
            for rank in range(world_size)
        ]
        if state is not None:
            for loader in ranks:
                loader.load_state_dict(state)
        passes = [iter(loader) for loader in ranks]
        for _ in range(min(steps, ranks[0].remaining)):
            for batches in passes:
                seen += next(batches, np.array([], dtype=int)).tolist()
        state = ranks[0].state_dict()
        assert seen == expected[: len(seen)]
    assert seen == expected


def test_blocks_by_name_is_the_order_with_its_defaults() -> None:
    loader = ResumableDataLoader(Indices(50_000), 100, order="blocks", seed=1)
    assert loader.order == BlockShuffledOrder(block=1024, buffer=16)
    expected = whole(BlockShuffledOrder(), 50_000, seed=1, epoch=4)
    assert np.array_equal(loader.samples_at(epoch=4, step=77), expected[7700:7800])
    loader.seek(epoch=4, step=499)
    assert [batch.tolist() for batch in loader] == [expected[49_900:].tolist()]
    assert ResumableDataLoader(Indices(9), shuffle=True, order="blocks").order == loader.order
    with pytest.raises(ConfigurationError, match="'blocks' and shuffle=False contradict"):
        ResumableDataLoader(Indices(9), shuffle=False, order="blocks")


def test_any_step_of_an_epoch_of_a_trillion_is_found_at_once_and_in_little_memory() -> None:
    loader = ResumableDataLoader(range(10**12), 256, order="blocks", seed=1)
    steps = len(loader)
    tracemalloc.start()
    found = [loader.samples_at(epoch=2, step=step) for step in (0, steps // 2, steps - 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert all(len(np.unique(np.asarray(batch) // 1024)) <= 16 for batch in found)


@pytest.mark.parametrize("order", [BlockShuffledOrder(4, 2), BlockShuffledOrder(5, 3)])
def test_a_state_with_different_blocks_is_refused(order: BlockShuffledOrder) -> None:
    state = loader_of(40, 4).state_dict()
    assert state["order"] == "blocks(block=4, buffer=3)"
    with pytest.raises(StateMismatchError, match=r"blocks\(block=4, buffer=3\)"):
        loader_of(40, 4, order=order).load_state_dict(state)


@pytest.mark.parametrize("wrong", [0, -3, 2.0, True, "16", None, np.float64(3)])
@pytest.mark.parametrize("name", ["block", "buffer"])
def test_wrong_parameters_are_named(name: str, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}=.*: expected a whole number of 1 or"):
        BlockShuffledOrder(**{name: wrong})


def test_the_order_is_a_value() -> None:
    order = BlockShuffledOrder(np.int32(8), np.uint8(2))  # type: ignore[arg-type]
    assert isinstance(order, Order)
    assert order == BlockShuffledOrder(8, 2) == pickle.loads(pickle.dumps(order))
    assert hash(order) == hash(copy.deepcopy(order))
    assert order.name == "blocks(block=8, buffer=2)"
    assert order != BlockShuffledOrder(8, 3)
    assert order.epoch_length(7) == 7
    assert whole(order, 0).shape == (0,)


def test_the_order_never_changes_under_its_version() -> None:
    """Saved states rely on it. A deliberate change of the order must increase its version."""
    assert BlockShuffledOrder.version == 1
    small = whole(BlockShuffledOrder(3, 2), 11, seed=42, epoch=3)
    large = indices(BlockShuffledOrder(), [0, 1, 16384, 10**12 - 1], 10**12, seed=42, epoch=3)
    assert small.tolist() == [4, 9, 5, 10, 3, 1, 8, 2, 0, 7, 6]
    assert large.tolist() == [253620475269, 871855641380, 352607030083, 337893629545]
