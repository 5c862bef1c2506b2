"""The plan: every position once, on any number of ranks, through any chain of changes (C7)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler

from dataporter.plan import Plan
from dataporter.request import Delivered, Progress, Request

LENGTHS = st.integers(0, 300)
BATCH_SIZES = st.integers(1, 40)
WORLDS = st.integers(1, 9)


def global_batch(plan: Plan, step: int) -> list[np.ndarray]:
    return [plan.positions(step, rank) for rank in range(plan.world_size)]


def steps(plan: Plan) -> range:
    return range(plan.first_step, plan.last_step)


@given(length=LENGTHS, batch_size=BATCH_SIZES, world_size=WORLDS, drop_last=st.booleans())
def test_every_position_comes_once_and_padding_is_the_least_that_evens_the_ranks(
    length: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    plan = Plan(length, batch_size, world_size, drop_last)
    batches = [global_batch(plan, step) for step in steps(plan)]
    counts = Counter(int(p) for batch in batches for share in batch for p in share)
    repeats = sum(counts.values()) - len(counts)
    if drop_last:
        assert repeats == 0
        assert len(counts) == length - length % plan.global_batch_size
    else:
        assert set(counts) == set(range(length))
        assert repeats == -length % world_size
    for batch in batches:
        assert len({share.shape for share in batch}) == 1, "ranks get equally many samples"
    assert plan.rank_length == sum(batch[0].size for batch in batches)


@given(
    length=st.integers(1, 300), batch_size=BATCH_SIZES, world_size=WORLDS, drop_last=st.booleans()
)
def test_steps_and_shapes_are_those_of_distributed_sampler(
    length: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    plan = Plan(length, batch_size, world_size, drop_last)
    for rank in {0, world_size - 1}:
        theirs = DistributedSampler(
            range(length), world_size, rank, shuffle=False, drop_last=drop_last
        )
        batches = list(BatchSampler(theirs, batch_size, drop_last))
        ours = [plan.positions(step, rank).size for step in steps(plan)]
        assert ours == [len(batch) for batch in batches]


@given(length=LENGTHS, per_rank=st.integers(1, 8), data=st.data())
def test_the_same_global_batch_size_gives_the_same_sets_for_every_world(
    length: int, per_rank: int, data: st.DataObject
) -> None:
    size = 12 * per_rank
    sets = []
    for world_size in (1, 2, 3, 4, 6, 12):
        plan = Plan(length, size // world_size, world_size, drop_last=True)
        batches = [np.concatenate(global_batch(plan, step)).tolist() for step in steps(plan)]
        sets.append(batches)
    assert all(batches == sets[0] for batches in sets), "even in the same sequence over the ranks"


@given(
    length=LENGTHS,
    first=st.tuples(BATCH_SIZES, WORLDS),
    chain=st.lists(st.tuples(BATCH_SIZES, WORLDS, st.integers(0, 12)), max_size=6),
)
@example(length=300, first=(8, 4), chain=[(8, 2, 3), (11, 3, 2), (4, 8, 1), (40, 1, 2)])
def test_elastic_chains_deliver_every_position_once(
    length: int, first: tuple[int, int], chain: list[tuple[int, int, int]]
) -> None:
    """Stops and changes of batch size and world, several within one epoch; then to the end."""
    plan, seen = Plan(length, *first), []
    progress = Progress()
    for batch_size, world_size, batches in [*chain, (*first, length + 1)]:
        for step in range(progress.step, min(progress.step + batches, plan.last_step)):
            shares = np.concatenate(global_batch(plan, step))
            last = step + 1 == plan.last_step
            seen.append(shares[: plan.left - (step - plan.first_step) * plan.global_batch_size])
            assert last or len(shares) == plan.global_batch_size
            progress = progress.after(request(plan, step))
        plan = Plan(length, batch_size, world_size).resumed(
            progress.step, progress.position, progress.done
        )
    while progress.step < plan.last_step:
        seen.append(plan_share(plan, progress.step))
        progress = progress.after(request(plan, progress.step))
    delivered = np.concatenate(seen) if seen else np.array([], dtype=np.int64)
    assert np.array_equal(np.sort(delivered), np.arange(length))
    assert progress.position == length
    assert progress.early == ()


@given(length=LENGTHS, batch_size=BATCH_SIZES, other=BATCH_SIZES, data=st.data())
def test_batches_delivered_ahead_of_their_turn_are_neither_lost_nor_repeated(
    length: int, batch_size: int, other: int, data: st.DataObject
) -> None:
    """``in_order=False``: any batches in any sequence, then a resume with any batch size."""
    plan = Plan(length, batch_size)
    sequence = data.draw(st.permutations(range(plan.last_step)))
    taken = sequence[: data.draw(st.integers(0, len(sequence)))]
    progress = Progress()
    for step in taken:
        progress = progress.after(request(plan, step))
    seen = [plan.positions(step, 0) for step in taken]
    assert progress.delivered == sum(map(len, seen))
    assert progress.step == len(taken)

    resumed = Plan(length, other).resumed(progress.step, progress.position, progress.done)
    for step in range(progress.step, resumed.last_step):
        seen.append(resumed.positions(step, 0))
        progress = progress.after(request(resumed, step))
    delivered = np.concatenate(seen) if seen else np.array([], dtype=np.int64)
    assert np.array_equal(np.sort(delivered), np.arange(length))
    assert (progress.position, progress.early) == (length, ())


@given(
    length=LENGTHS,
    batch_size=BATCH_SIZES,
    world_size=WORLDS,
    drop_last=st.booleans(),
    block=st.integers(1, 100),
    data=st.data(),
)
def test_blocks_are_the_batches_one_by_one(
    length: int, batch_size: int, world_size: int, drop_last: bool, block: int, data: st.DataObject
) -> None:
    plan = Plan(length, batch_size, world_size, drop_last)
    rank = data.draw(st.integers(0, world_size - 1))
    begin = data.draw(st.integers(0, plan.last_step))
    found = {}
    for first, positions in plan.blocks(rank, begin, block):
        found.update({first + place: row.tolist() for place, row in enumerate(positions)})
    assert found == {
        step: plan.positions(step, rank).tolist() for step in range(begin, plan.last_step)
    }


def test_plans_of_ten_billion_samples_are_free() -> None:
    plan = Plan(10**10, 32, 16_384).resumed(7, 12_345_678_901 // 3)
    assert plan.positions(plan.last_step - 1, 16_383).size > 0


def request(plan: Plan, step: int) -> Request:
    delivers = tuple(Delivered(*stretch) for stretch in plan.stretches(step))
    return Request(0, 0, step, np.zeros(0, np.int64), np.zeros(0, np.int64), delivers)


def plan_share(plan: Plan, step: int) -> np.ndarray:
    """A global batch without its padding."""
    shares = np.concatenate(global_batch(plan, step))
    return shares[: plan.left - (step - plan.first_step) * plan.global_batch_size]
