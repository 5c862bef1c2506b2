"""The plan: every position once, on any number of ranks, through any chain of changes (C7)."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from budgets import cases
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DistributedSampler

from dataporter.schedule.plan import Plan, Tail
from dataporter.schedule.progress import Delivered, Progress

LENGTHS = st.integers(0, 300)
BATCH_SIZES = st.integers(1, 40)
WORLDS = st.integers(1, 9)
TAILS: st.SearchStrategy[Tail] = st.sampled_from(["pad", "drop", "uneven"])


def global_batch(plan: Plan, step: int) -> list[np.ndarray]:
    """The shares of the ranks that have one."""
    return [plan.positions(step, rank) for rank in range(plan.world_size) if step < plan.end(rank)]


def steps(plan: Plan) -> range:
    return range(plan.first_step, plan.last_step)


@given(length=LENGTHS, batch_size=BATCH_SIZES, world_size=WORLDS, tail=TAILS)
def test_every_position_comes_once_and_padding_is_the_least_that_evens_the_ranks(
    length: int, batch_size: int, world_size: int, tail: Tail
) -> None:
    plan = Plan(length, batch_size, world_size, tail)
    batches = [global_batch(plan, step) for step in steps(plan)]
    counts = Counter(int(p) for batch in batches for share in batch for p in share)
    repeats = sum(counts.values()) - len(counts)
    if tail == "drop":
        assert repeats == 0
        assert len(counts) == length - length % plan.global_batch_size
    else:
        assert set(counts) == set(range(length))
        assert repeats == (-length % world_size if tail == "pad" else 0)
    for batch in batches[:-1] if tail == "uneven" else batches:
        assert [share.size for share in batch] == [batch[0].size] * world_size
    for rank in range(world_size):
        shares = [plan.positions(step, rank).size for step in range(plan.end(rank))]
        assert plan.rank_length(rank) == sum(shares)
        assert 0 not in shares
    assert plan.total_length == sum(map(plan.rank_length, range(world_size)))


@given(length=LENGTHS, batch_size=BATCH_SIZES, world_size=WORLDS)
def test_an_uneven_tail_is_shared_as_evenly_as_can_be_lower_ranks_first(
    length: int, batch_size: int, world_size: int
) -> None:
    plan = Plan(length, batch_size, world_size, "uneven")
    lengths = [plan.rank_length(rank) for rank in range(world_size)]
    assert sum(lengths) == length
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1
    ends = [plan.end(rank) for rank in range(world_size)]
    assert set(ends) <= {plan.last_step, plan.last_step - 1}
    assert ends == sorted(ends, reverse=True)
    alone = Plan(length, batch_size, 1, "uneven")
    padded = Plan(length, batch_size, 1, "pad")
    assert [alone.positions(step, 0).tolist() for step in steps(alone)] == [
        padded.positions(step, 0).tolist() for step in steps(padded)
    ], "one rank alone has nothing to even out"


@given(
    length=st.integers(1, 300), batch_size=BATCH_SIZES, world_size=WORLDS, drop_last=st.booleans()
)
def test_steps_and_shapes_are_those_of_distributed_sampler(
    length: int, batch_size: int, world_size: int, drop_last: bool
) -> None:
    plan = Plan(length, batch_size, world_size, "drop" if drop_last else "pad")
    for rank in {0, world_size - 1}:
        theirs = DistributedSampler(
            range(length), world_size, rank, shuffle=False, drop_last=drop_last
        )
        batches = list(BatchSampler(theirs, batch_size, drop_last))
        ours = [plan.positions(step, rank).size for step in steps(plan)]
        assert ours == [len(batch) for batch in batches]


# ---- elastic chains

# (batch size, world size, steps until the stop)
LINKS = st.tuples(BATCH_SIZES, WORLDS, st.integers(0, 12))


def run_chain(
    length: int, tail: Tail, chain: list[tuple[int, int, int]]
) -> tuple[list[np.ndarray], list[np.ndarray], Progress, Plan]:
    """What all ranks are given, without the padding and the padding alone, until the last stop."""
    progress, seen, repeated = Progress(), [], []
    for batch_size, world_size, stop in chain:
        plan = Plan(length, batch_size, world_size, tail).resumed(
            progress.step, progress.position, progress.done
        )
        for step in range(progress.step, min(progress.step + stop, plan.last_step)):
            for rank in range(world_size):
                if step < plan.end(rank):
                    positions, padding = plan.positions(step, rank), plan.padding(step, rank)
                    assert padding.shape == positions.shape
                    assert padding.dtype == bool
                    seen.append(positions[~padding])
                    repeated.append(positions[padding])
            progress = progress.after(delivered_by(plan, step))
    return seen, repeated, progress, plan


def joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *parts])


@given(length=LENGTHS, chain=st.lists(LINKS, max_size=6), last=LINKS, tail=TAILS)
@example(300, [(8, 4, 2), (8, 2, 3), (11, 3, 2), (4, 8, 1)], (40, 1, 2), "pad")
@example(37, [(2, 4, 1), (2, 2, 1), (3, 3, 1), (1, 8, 1)], (5, 1, 0), "uneven")
@settings(max_examples=cases(3000))
def test_chains_of_stops_and_other_worlds_deliver_every_position_once(
    length: int, chain: list[tuple[int, int, int]], last: tuple[int, int, int], tail: Tail
) -> None:
    """Several stops within one epoch, each into another batch size and world; then to the end."""
    seen, repeated, progress, plan = run_chain(length, tail, [*chain, (*last[:2], length + 1)])
    padding = joined(repeated)
    if tail == "drop":
        # The tail is that of the world which came to the end of the epoch.
        left_out = length - progress.position
        assert np.array_equal(np.sort(joined(seen)), np.arange(progress.position))
        assert left_out < plan.global_batch_size
    else:
        assert np.array_equal(np.sort(joined(seen)), np.arange(length))
        assert progress.position == length
    assert progress.early == ()
    # The only repeats are those that padding() names, and they are the fewest: none where the
    # world that came to the end divides what it had left, and else less than one for each rank.
    ended = [world_size for _, world_size, _ in [*chain, last]]
    assert padding.size < max(ended) if tail == "pad" else padding.size == 0


@given(length=LENGTHS, chain=st.lists(LINKS, max_size=4), tail=TAILS, per_rank=st.integers(1, 4))
@settings(max_examples=cases(500))
def test_also_after_a_resume_the_same_global_batch_size_gives_the_same_sets_for_every_world(
    length: int, chain: list[tuple[int, int, int]], tail: Tail, per_rank: int
) -> None:
    _, _, progress, _ = run_chain(length, tail, chain) if chain else ([], [], Progress(), None)
    streams = []
    for world_size in (1, 2, 3, 4, 6, 12):
        plan = Plan(length, 12 * per_rank // world_size, world_size, tail).resumed(
            progress.step, progress.position, progress.done
        )
        stream = []
        for step in steps(plan):
            shares = [
                plan.positions(step, rank)[~plan.padding(step, rank)]
                for rank in range(world_size)
                if step < plan.end(rank)
            ]
            stream.append(joined(shares).tolist())
            assert stream[-1] == [p for run in plan.stretches(step) for p in range(*run)]
        streams.append(stream)
    assert all(stream == streams[0] for stream in streams), "even in the same sequence"


@given(length=LENGTHS, chain=st.lists(LINKS, min_size=1, max_size=5), tail=TAILS)
@settings(max_examples=cases(500))
def test_the_padding_is_the_fewest_repeats_that_give_the_ranks_equal_shares(
    length: int, chain: list[tuple[int, int, int]], tail: Tail
) -> None:
    _, _, _, plan = run_chain(length, tail, chain)
    repeats = sum(
        int(plan.padding(step, rank).sum())
        for step in steps(plan)
        for rank in range(plan.world_size)
        if step < plan.end(rank)
    )
    assert repeats == (-plan.left % plan.world_size if tail == "pad" else 0)


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
        progress = progress.after(delivered_by(plan, step))
    seen = [plan.positions(step, 0) for step in taken]
    assert progress.delivered == sum(map(len, seen))
    assert progress.step == len(taken)

    resumed = Plan(length, other).resumed(progress.step, progress.position, progress.done)
    for step in range(progress.step, resumed.last_step):
        seen.append(resumed.positions(step, 0))
        progress = progress.after(delivered_by(resumed, step))
    delivered = np.concatenate(seen) if seen else np.array([], dtype=np.int64)
    assert np.array_equal(np.sort(delivered), np.arange(length))
    assert (progress.position, progress.early) == (length, ())


@given(
    length=LENGTHS,
    batch_size=BATCH_SIZES,
    world_size=WORLDS,
    tail=TAILS,
    block=st.integers(1, 100),
    data=st.data(),
)
def test_blocks_are_the_batches_one_by_one(
    length: int, batch_size: int, world_size: int, tail: Tail, block: int, data: st.DataObject
) -> None:
    plan = Plan(length, batch_size, world_size, tail)
    rank = data.draw(st.integers(0, world_size - 1))
    begin = data.draw(st.integers(0, plan.last_step))
    found: dict[int, list[int]] = {}
    lengths: list[int] = []
    for first, positions in plan.blocks(rank, begin, block):
        found.update({first + place: row.tolist() for place, row in enumerate(positions)})
        lengths.append(len(positions))
    assert found == {
        step: plan.positions(step, rank).tolist() for step in range(begin, plan.end(rank))
    }
    assert lengths[:1] in ([], [1]), "the first batch waits for no other"
    for before, length in pairwise(lengths):
        assert length <= min(4 * before, max(1, block // batch_size))


def test_plans_of_ten_billion_samples_are_free() -> None:
    plan = Plan(10**10, 32, 16_384).resumed(7, 12_345_678_901 // 3)
    assert plan.positions(plan.last_step - 1, 16_383).size > 0


def delivered_by(plan: Plan, step: int) -> tuple[Delivered, ...]:
    return tuple(Delivered(*stretch) for stretch in plan.stretches(step))
