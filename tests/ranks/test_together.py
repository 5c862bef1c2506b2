"""stop_together: all ranks end an epoch at the same step, also where their data do not (C2, C7)."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from budgets import slow
from subjects import Indices
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset
from worlds import outcome, ranks_of

from dataporter import ConfigurationError, RankMismatchError, ResumableDataLoader

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")
# Of each shard: rank 0 reads shards 0 and 2, rank 1 shards 1 and 3.
SIZES = (9, 4, 7, 3)


class Unequal(IterableDataset[torch.Tensor]):
    """Shards of unequal lengths; the samples are 100 * shard + place."""

    def __init__(self, sizes: tuple[int, ...] = SIZES, fails_at: int | None = None) -> None:
        self.sizes, self.fails_at = sizes, fails_at

    @property
    def num_shards(self) -> int:
        return len(self.sizes)

    def shard(self, num_shards: int, index: int) -> Iterator[torch.Tensor]:
        for place in range(self.sizes[index]):
            if 100 * index + place == self.fails_at:
                raise OSError(f"sample {self.fails_at} is broken")
            yield torch.tensor(100.0 * index + place)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)


class Broken(Indices):
    """Sample 9 fails."""

    def __getitem__(self, index: int) -> Any:
        if index == 9:
            raise OSError("sample 9 is broken")
        return super().__getitem__(index)


def loader_of(kind: str, workers: int = 0, **arguments: Any) -> ResumableDataLoader[Any]:
    if kind == "stream":
        return ResumableDataLoader(
            Unequal(), 2, num_workers=workers, seed=3, stop_together=True, **arguments
        )
    return ResumableDataLoader(
        Indices(13),
        2,
        num_workers=workers,
        seed=3,
        shuffle=True,
        tail="uneven",
        stop_together=True,
        **arguments,
    )


def listed(batches: Any) -> list[list[float]]:
    return [batch.tolist() for batch in batches]


def ending_rank(kind: str, workers: int, epochs: int) -> Any:
    """The batches of some epochs; and what each state within them resumes with."""
    rank = dist.get_rank()
    loader = loader_of(kind, workers + rank)  # ranks may have other numbers of workers
    whole, states = [], []
    for epoch in loader.epochs(epochs):
        for batch in loader:
            whole.append((epoch, batch.tolist()))
            states.append(loader.state_dict())
        states.append(loader.state_dict())
    resumed = []
    for state in states:
        other = loader_of(kind, workers)
        other.load_state_dict(state)
        rest = [(epoch, batch.tolist()) for epoch in other.epochs(epochs) for batch in other]
        resumed.append(rest)
    return whole, [(state["epoch"], state["step"]) for state in states], resumed


@pytest.mark.parametrize(
    ("kind", "workers"), [("stream", 0), ("map-style", 0), *slow(("stream", 2), ("map-style", 1))]
)
def test_all_ranks_end_at_the_step_of_the_first_and_each_state_resumes_there(
    kind: str, workers: int
) -> None:
    ranks = ranks_of(2, ending_rank, kind, workers, 2)
    steps = {"stream": 4, "map-style": 3}[kind]
    for whole, places, resumed in ranks:
        assert [epoch for epoch, _ in whole] == [0] * steps + [1] * steps
        # One state after each batch, and one after each pass, which is of the next epoch.
        of_epoch = [*range(1, steps + 1), 0]
        assert places == [(epoch + (step == 0), step) for epoch in range(2) for step in of_epoch]
        after = 0
        for (_, step), rest in zip(places, resumed):
            after += step > 0
            assert rest == whole[after:]
    first, second = ([batch for _, batch in whole[:steps]] for whole, *_ in ranks)
    assert not {*itertools.chain(*first)} & {*itertools.chain(*second)}


def uneven_steps() -> list[int]:
    found = []
    for kind in ("stream", "map-style"):
        for arguments in ({}, {"steps_per_epoch": 2}):
            found.append(len(list(loader_of(kind, **arguments))))
    single = ResumableDataLoader(Unequal(), 2, process_group=None, seed=3)
    found.append(len(list(single)))
    return found


def test_without_it_the_ranks_end_apart_and_a_limit_of_steps_counts_first() -> None:
    ranks = ranks_of(2, uneven_steps)
    assert [rank[:4] for rank in ranks] == [[4, 2, 3, 2]] * 2
    assert ranks[0][4] > ranks[1][4]


def training_rank() -> tuple[int, list[float]]:
    """A DDP model, whose gradients all ranks reduce in each step."""
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    loader = ResumableDataLoader(Unequal(), 2, seed=3, stop_together=True)
    steps = 0
    for _ in loader.epochs(2):
        for batch in loader:
            optimiser.zero_grad()
            model(batch[:, None]).mean().backward()
            optimiser.step()
            steps += 1
    return steps, [float(value) for one in model.parameters() for value in one.flatten()]


def test_a_ddp_model_trains_on_a_stream_whose_ranks_end_at_different_steps() -> None:
    (steps, weights), (others_steps, others_weights) = ranks_of(2, training_rank)
    assert steps == others_steps == 8
    assert weights == others_weights


def failing_rank() -> Any:
    """One rank fails to read its second or third batch."""
    found = []
    for dataset in (Unequal(fails_at=300), Broken(12)):
        loader = ResumableDataLoader(dataset, 2, seed=3, stop_together=True)
        seen: list[Any] = []
        raised = outcome(lambda loader=loader, seen=seen: seen.extend(loader))
        state = loader.state_dict()
        found.append((raised[:2], len(seen), state["step"]))
    # One that fails beyond the common end fails nobody.
    late = ResumableDataLoader(
        Unequal((9, 4)), 2, seed=3, stop_together=True, on_error="skip", max_failures=5
    )
    found.append(len(list(late)))
    return found


def test_a_rank_that_fails_makes_all_ranks_raise_at_the_same_step() -> None:
    first, second = ranks_of(2, failing_rank)
    for one, other in zip(first[:2], second[:2]):
        raised = dict([one[0], other[0]])
        assert set(raised) == {"OSError", "RankMismatchError"}
        assert "rank of the process group failed to read its next" in raised["RankMismatchError"]
        assert one[1:] == other[1:]
        assert one[1] == one[2] > 0
    assert first[2] == second[2] == 2


def skipping_rank() -> list[list[float]]:
    """A loop that asks for the next batch after a failure."""
    batches = iter(ResumableDataLoader(Broken(16), 2, seed=3, stop_together=True))
    found = []
    while True:
        try:
            found.append(next(batches).tolist())
        except StopIteration:
            return found
        except (OSError, RankMismatchError):
            found.append([])


def test_all_ranks_pass_a_step_over_that_one_of_them_failed_to_read() -> None:
    first, second = ranks_of(2, skipping_rank)
    assert [bool(batch) for batch in first] == [bool(batch) for batch in second]
    assert [bool(batch) for batch in first].count(False) == 1
    assert len(first) == 4


def lawful_rank(seed: int) -> list[Any]:
    """For random data: the batches of two epochs, those after a resume, and those of each alone."""
    rank, size = dist.get_rank(), dist.get_world_size()
    draw = random.Random(seed)
    found = []
    for _ in range(8):
        sizes = tuple(draw.randrange(1, 12) for _ in range(size * draw.randrange(1, 3)))
        batch_size, drop_last = draw.randrange(1, 4), draw.random() < 0.3
        limit = draw.choice([None, None, 2, 5])
        arguments = {"seed": 3, "drop_last": drop_last}

        def build(sizes: Any = sizes, batch_size: Any = batch_size, **more: Any) -> Any:
            return ResumableDataLoader(Unequal(sizes), batch_size, **more)

        together = {**arguments, "stop_together": True, "steps_per_epoch": limit}
        alone = len(list(build(**arguments, rank=rank, world_size=size)))
        loader = build(**together)
        whole = [listed(loader) for _ in range(2)]
        interrupted, stop = build(**together), draw.randrange(8)
        seen = listed(itertools.islice(interrupted, stop))
        resumed = build(**together)
        resumed.load_state_dict(interrupted.state_dict(gather=True))
        found.append((alone, limit, whole, stop, [*seen, *listed(resumed)]))
    return found


@pytest.mark.parametrize(("world", "seed"), [(2, 1), *slow((3, 2), (2, 3))])
def test_the_fewest_batches_of_a_rank_are_the_steps_of_all(world: int, seed: int) -> None:
    ranks = ranks_of(world, lawful_rank, seed)
    for cases in zip(*ranks):
        fewest = min(alone for alone, *_ in cases)
        for _, limit, whole, stop, found in cases:
            assert len(whole[0]) == (fewest if limit is None else min(fewest, limit))
            assert len({len(epochs[1]) for _, _, epochs, *_ in cases}) == 1
            if limit is None:
                assert whole[1] == whole[0]
            # A loop that has seen the end of the epoch resumes with the next one.
            assert found == [*whole[0], *(whole[1] if stop > len(whole[0]) else [])]


def dying(place: str, rank: int) -> None:
    """Rank 1 kills itself in mid-epoch; rank 0 writes what it raises and where."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
    )
    loader = ResumableDataLoader(Unequal(), 2, seed=3, stop_together=True)
    batches = iter(loader)
    next(batches)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    raised = outcome(lambda: next(batches))
    Path(place, "found").write_text(f"{raised[0]} {loader.step}")
    os._exit(0)  # destroying the group would wait for the other rank


@pytest.mark.slow
def test_a_rank_that_is_killed_makes_the_others_raise(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=dying, args=(str(tmp_path), rank)) for rank in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(60)
        assert one.exitcode is not None
    assert [one.exitcode for one in ranks] == [0, -signal.SIGKILL]
    assert (tmp_path / "found").read_text() == "RuntimeError 1"


def odd_rank() -> Any:
    together = dist.get_rank() == 0
    differs = outcome(lambda: ResumableDataLoader(Unequal(), 2, stop_together=together))
    steps = outcome(lambda: ResumableDataLoader(Unequal(), 2, steps_per_epoch=2 + together))
    loader = loader_of("stream")
    if together:
        peeked = loader.peek().tolist()  # on one rank: it asks nobody
        assert next(iter(loader)).tolist() == peeked
        return differs, steps
    next(iter(loader))
    return differs, steps


def test_ranks_that_stop_otherwise_are_found_out_and_one_rank_may_peek() -> None:
    for differs, steps in ranks_of(2, odd_rank):
        assert differs[0] == steps[0] == "RankMismatchError"
        assert "stop_together: True on rank 0; False on rank 1" in differs[1]
        assert "steps_per_epoch: 3 on rank 0; 2 on rank 1" in steps[1]


def dying_rank() -> Any:
    group = dist.new_group(timeout=timedelta(seconds=2))
    loader = ResumableDataLoader(Unequal(), 2, seed=3, stop_together=True, process_group=group)
    batches = iter(loader)
    next(batches)
    if dist.get_rank() == 1:
        dist.barrier()  # it never asks again
        return None
    raised = outcome(lambda: next(batches))
    place = loader.step
    dist.barrier()
    return raised[0], place


def test_a_rank_that_stops_asking_makes_the_others_raise_after_the_groups_timeout() -> None:
    raised, none = ranks_of(2, dying_rank)
    assert none is None
    assert raised == ("RuntimeError", 1)


def test_it_needs_a_process_group_and_costs_nothing_alone() -> None:
    alone = [ResumableDataLoader(Unequal(), 2, stop_together=stop) for stop in (True, False)]
    assert listed(alone[0]) == listed(alone[1])
    for arguments in ({"rank": 0, "world_size": 1}, {"rank": 1, "world_size": 2}):
        with pytest.raises(ConfigurationError, match="without a process group"):
            ResumableDataLoader(Unequal(), 2, seed=3, stop_together=True, **arguments)
    with pytest.raises(ConfigurationError, match="stop_together="):
        ResumableDataLoader(Unequal(), 2, stop_together="no")  # type: ignore[arg-type]
