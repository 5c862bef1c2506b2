"""Which rank a loader has, which ranks it communicates with, and when."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from subjects import Indices, ids
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.data import DistributedSampler
from worlds import outcome, ranks_of, standing_alone

from dataporter import ConfigurationError, DistributedResumptionStrategy, ResumableDataLoader


def loader_of(**arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(40), 2, **{"shuffle": True, "seed": 3, **arguments})


def world_of(loader: ResumableDataLoader[Any]) -> tuple[str, int, int]:
    return loader.strategy.name, loader.rank, loader.world_size


# ---- the source of the world


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")


@pytest.mark.usefixtures("torchrun")
def test_arguments_come_before_a_group_a_group_before_torchrun_and_torchrun_before_one_rank() -> (
    None
):
    explicit = {"strategy": "distributed", "rank": 2, "world_size": 4}
    assert world_of(loader_of()) == ("advanced", 0, 1), "torchrun counts only if requested"
    assert world_of(loader_of(strategy="distributed")) == ("distributed", 1, 3)
    assert world_of(loader_of(strategy=DistributedResumptionStrategy())) == ("distributed", 1, 3)
    assert world_of(loader_of(**explicit)) == ("distributed", 2, 4)
    with standing_alone():
        assert world_of(loader_of(strategy="distributed")) == ("distributed", 0, 1)
        assert world_of(loader_of(process_group=dist.group.WORLD)) == ("distributed", 0, 1)
        assert world_of(loader_of(**explicit)) == ("distributed", 2, 4)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"RANK": "0"}, ("RANK='0'", "WORLD_SIZE=None", "torchrun")),
        ({"WORLD_SIZE": "2"}, ("RANK=None", "WORLD_SIZE='2'")),
        ({"RANK": "one", "WORLD_SIZE": "2"}, ("RANK='one'", "whole numbers")),
        ({"RANK": "2", "WORLD_SIZE": "2"}, ("RANK=2", "world of 2", "0..1")),
    ],
)
def test_a_torchrun_environment_that_makes_no_sense_is_an_error(
    environment: dict[str, str], names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as raised:
        # Without RANK a process group may still be initialised, until the first batch.
        next(iter(loader_of(strategy="distributed")))
    assert [name for name in names if name not in str(raised.value)] == []
    assert loader_of().world_size == 1


def test_anything_but_a_process_group_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match=r"expected a torch\.distributed ProcessGroup"):
        loader_of(process_group="dp")
    with standing_alone():
        with pytest.raises(ConfigurationError, match="leave rank= and world_size= out"):
            loader_of(rank=0, world_size=1, process_group=dist.group.WORLD)
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
        with pytest.raises(ConfigurationError, match=r"2 dimensions \('dp', 'tp'\).*new_group"):
            loader_of(process_group=mesh)
        assert world_of(loader_of(process_group=mesh["dp"])) == ("distributed", 0, 1)


def test_without_a_group_several_ranks_need_one_seed() -> None:
    with pytest.raises(ConfigurationError, match=r"2 ranks that no process group joins needs seed"):
        ResumableDataLoader(range(8), 2, rank=0, world_size=2)


def test_copies_keep_their_ranks_and_pickles_do_not() -> None:
    with standing_alone():
        loader = loader_of()
        for other in (copy.copy(loader), copy.deepcopy(loader)):
            assert other.setup.ranks.group is loader.setup.ranks.group
        assert pickle.loads(pickle.dumps(loader)).setup.ranks.group is None


# ---- real ranks


def meshed_rank() -> dict[str, Any]:
    """Two data-parallel ranks of two tensor-parallel ranks each, in one world of four."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    loader = loader_of(process_group=mesh["dp"], seed=None)
    seen = [index for batch in loader for index in ids(batch)]
    evens = dist.new_group([0, 2])
    evens_mesh = DeviceMesh("cpu", [0, 2])
    return {
        "world": world_of(loader),
        "dp rank": mesh.get_local_rank("dp"),
        "seen": seen,
        "seed": loader.seed,
        "evens": [
            outcome(lambda group=group: world_of(loader_of(process_group=group)))
            for group in (evens, evens_mesh)
        ],
    }


def test_the_ranks_of_a_mesh_dimension_divide_the_data() -> None:
    ranks = ranks_of(4, meshed_rank)
    assert [rank["world"] for rank in ranks] == [("distributed", rank // 2, 2) for rank in range(4)]
    for column in (0, 1):
        first, second = ranks[column], ranks[2 + column]
        assert first["seed"] == second["seed"]
        assert sorted(first["seen"] + second["seen"]) == list(range(40))
        assert (first["dp rank"], second["dp rank"]) == (0, 1)
    for rank in (1, 3):
        group, mesh = ranks[rank]["evens"]
        assert (group[0], mesh[0]) == ("ConfigurationError",) * 2
        assert "member" in group[1]
        assert "not part of" in mesh[1]
    for rank in (0, 2):
        assert ranks[rank]["evens"] == [("distributed", rank // 2, 2)] * 2


class Striped:
    """A sampler that knows its share and has no seed."""

    def __init__(self, rank: int) -> None:
        self.rank, self.num_replicas = rank, 3

    def __iter__(self) -> Any:
        return iter(range(self.rank, 40, 3))


def unseeded_rank() -> dict[str, Any]:
    rank = dist.get_rank()
    torch.manual_seed(100 + rank)
    own = torch.Generator().manual_seed(200 + rank)
    default, from_generator = loader_of(seed=None), loader_of(seed=None, generator=own)
    found = {"seeds": [default.seed, from_generator.seed], "second": loader_of(seed=None).seed}
    found["next"] = int(torch.empty((), dtype=torch.int64).random_())
    state = {**default.state_dict(), "seed": 77}
    default.load_state_dict(state)
    found["taken over"] = default.seed
    sampler = DistributedSampler(Indices(40), shuffle=True, seed=8)
    followed = ResumableDataLoader(Indices(40), 2, sampler=sampler)
    found["followed"] = (*world_of(followed), followed.seed)
    striped = ResumableDataLoader(Indices(40), 2, sampler=Striped(rank))
    found["striped"] = (*world_of(striped), striped.seed)
    found["odd sampler"] = outcome(
        lambda: ResumableDataLoader(
            Indices(40), 2, sampler=DistributedSampler(Indices(40), seed=8 + rank % 2)
        )
    )
    # Only this rank does the following: any communication would wait for the others and fail.
    if rank == 1:
        next(iter(default))
        found["step"] = default.state_dict()["step"]
        default.set_epoch(4)
        default.seek(step=2)
        default.samples_at(0, 1)
        default.padding(6)
        lonely = loader_of(rank=0, world_size=1)
        lonely.load_state_dict(lonely.state_dict())
        copy.deepcopy(default)
        list(ResumableDataLoader(torch.utils.data.ChainDataset([]), rank=0, world_size=1))
    return found


def test_all_ranks_use_the_first_ranks_seed_and_only_construction_and_loading_communicate() -> None:
    ranks = ranks_of(3, unseeded_rank)
    torch.manual_seed(100)
    default = int(torch.empty((), dtype=torch.int64).random_())
    own = torch.Generator().manual_seed(200)
    from_generator = int(torch.empty((), dtype=torch.int64).random_(generator=own))
    for number, rank in enumerate(ranks):
        assert rank["seeds"] == [default, from_generator]
        assert rank["taken over"] == 77, "without an explicit seed, a load takes the state's"
        assert rank["followed"] == ("simple", number, 3, 8)
        assert rank["striped"] == ("simple", number, 3, ranks[0]["striped"][3])
        assert "seed: 8 on ranks 0, 2; 9 on rank 1" in rank["odd sampler"][1]
        torch.manual_seed(100 + number)
        assert rank["next"] == int(torch.empty((), dtype=torch.int64).random_()), "no rank draws"
        assert rank["second"] == ranks[0]["second"] != default, "two loaders have two seeds"
    assert ranks[1]["step"] == 1


def streaming_rank(steps: int, state: dict[str, Any] | None) -> dict[str, Any]:
    loader = loader_of()
    if state is not None:
        loader.load_state_dict(state)
    seen = [index for _, batch in zip(range(steps), loader) for index in ids(batch)]
    return {"seen": seen, "state": loader.state_dict(), "world": world_of(loader)}


def test_ranks_detect_their_world_and_one_state_serves_another_world() -> None:
    two = ranks_of(2, streaming_rank, 4, None)
    assert [rank["world"] for rank in two] == [("distributed", 0, 2), ("distributed", 1, 2)]
    assert two[0]["state"] == two[1]["state"]
    three = ranks_of(3, streaming_rank, 99, two[0]["state"])
    seen = [index for rank in [*two, *three] for index in rank["seen"]]
    assert sorted(seen) == list(range(40)), "three ranks share the remaining 24 without a repeat"


# ---- a process group that is initialised after the loader


def built_before_the_group(meeting: str) -> Any:
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    older = ResumableDataLoader(Indices(40), 2, shuffle=True)
    explicit = loader_of(rank=0, world_size=1)
    left, resumed = loader_of(), loader_of()
    next(iter(left))
    resumed.load_state_dict(left.state_dict())
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    length, sampler_length = len(older), len(older.sampler)
    first = [index for batch in older for index in ids(batch)]
    alone = [index for batch in explicit for index in ids(batch)]
    following = [(left.epoch, index) for batch in left for index in ids(batch)]
    rest = [index for batch in resumed for index in ids(batch)]
    shown = (length, sampler_length, world_of(older), older.sampler.num_replicas, older.seed)
    return shown, first, alone, following, rest


def test_a_loader_joins_a_later_process_group_on_its_next_use(tmp_path: Path) -> None:
    ranks = ranks_of(2, built_before_the_group, f"file://{tmp_path}/meeting")
    (shown_0, first_0, alone_0, *_), (shown_1, first_1, alone_1, *_) = ranks
    assert shown_0[:4] == (10, 20, ("distributed", 0, 2), 2)
    assert shown_1[:4] == (10, 20, ("distributed", 1, 2), 2)
    assert shown_0[4] == shown_1[4], "they share the first rank's seed"
    assert sorted(first_0 + first_1) == list(range(40))
    assert alone_0 == alone_1
    assert sorted(alone_0) == list(range(40)), "an explicit world stays"
    following = [delivered for rank in ranks for delivered in rank[3]]
    assert sorted(following) == [(1, index) for index in range(40)], "an abandoned pass is over"
    batch_size = loader_of().batch_size
    assert len({index for rank in ranks for index in rank[4]}) == 40 - batch_size
    assert sum(len(rank[4]) for rank in ranks) == 40 - batch_size, "both resume from a state"


def asked_before_the_first_pass(meeting: str) -> Any:
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    loader = ResumableDataLoader(Indices(40), 2, shuffle=True, seed=3)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    calls: list[str] = []
    reduce, dist.all_reduce = dist.all_reduce, lambda *_, **__: calls.append("all_reduce")
    answers = None
    if rank == 0:  # on one rank alone: a collective would wait for the other one
        before = loader.sampler, loader.batch_sampler
        samples = loader.samples_at(0, 1).tolist()
        answers = (len(loader), loader.remaining, len(loader.sampler), samples)
        assert loader.padding(1).sum() == 0
        assert (loader.sampler, loader.batch_sampler) == before
    dist.all_reduce = reduce
    seen = [ids(batch) for batch in loader]
    return calls, answers, seen


def test_a_length_or_a_look_up_neither_communicates_nor_joins(tmp_path: Path) -> None:
    one, two = ranks_of(2, asked_before_the_first_pass, f"file://{tmp_path}/meeting")
    assert one[0] == two[0] == []
    length, remaining, samples, second = one[1]
    assert (length, remaining, samples) == (10, 10, 20)
    assert one[2][1] == second
    assert sorted(index for rank in (one, two) for batch in rank[2] for index in batch) == list(
        range(40)
    )


def alone_before_the_group(meeting: str) -> Any:
    dist.destroy_process_group()
    loader = loader_of()
    unread, batches = iter(loader_of()), iter(loader)
    next(batches)
    dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    steps = [loader.state_dict()["step"] for _ in batches]
    return steps, loader.epoch, len(list(unread))


def test_a_group_of_one_rank_that_is_initialised_mid_pass_changes_nothing(tmp_path: Path) -> None:
    (counted,) = ranks_of(1, alone_before_the_group, f"file://{tmp_path}/meeting")
    length = len(loader_of())
    assert counted == (list(range(2, length + 1)), 1, length)


def asked_in_mid_epoch(meeting: str) -> Any:
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    loader = loader_of()
    next(iter(loader))
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    before = (loader.samples_at(0, 1).tolist(), loader.padding(1).tolist(), loader.remaining)
    loader.state_dict()  # joins
    after = (loader.samples_at(0, 1).tolist(), loader.padding(1).tolist(), loader.remaining)
    return before, after


def test_look_ups_in_mid_epoch_are_the_same_before_and_after_the_join(tmp_path: Path) -> None:
    for before, after in ranks_of(2, asked_in_mid_epoch, f"file://{tmp_path}/meeting"):
        assert before == after
