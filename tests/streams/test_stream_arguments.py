"""Arguments of a loader over a stream: accepted and refused ones (C10, C13)."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from example_streams import (
    Generated,
    Sharded,
    loader_of,
    numbers,
    rest,
    taken,
    through_a_file,
)
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    ShuffledStream,
    UnsupportedDatasetError,
)

pytestmark = pytest.mark.filterwarnings("ignore:the stream has no exact state")


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_without_batches(workers: int) -> None:
    loader = loader_of(Sharded(11), workers, batch_size=None)
    batches = iter(loader)
    seen = [int(next(batches)["index"]) for _ in range(4)]
    resumed = loader_of(Sharded(11), workers, batch_size=None)
    resumed.load_state_dict(loader.state_dict())
    seen += [int(item["index"]) for item in resumed]
    assert sorted(seen) == list(range(11))


def test_persistent_workers_start_anew_after_an_abandoned_pass() -> None:
    loader = loader_of(Sharded(40), 2, persistent_workers=True)
    expected = rest(loader_of(Sharded(40)))
    assert taken(loader, 3) == expected[:3]
    state = loader.state_dict()
    assert rest(loader) != expected  # epoch 1
    loader.load_state_dict(state)
    assert rest(loader) == expected[3:]


def test_batches_out_of_turn_are_counted_by_shard() -> None:
    stopped = loader_of(Sharded(60), 3, in_order=False)
    seen = list(itertools.islice(stopped, 7))
    resumed = loader_of(Sharded(60), 2, in_order=False)
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    assert sorted(numbers([*seen, *resumed])) == list(range(60))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_converter_runs_in_the_process_that_reads_the_stream(workers: int) -> None:
    class Where(Generated):
        def __iter__(self) -> Iterator[Any]:
            return iter([{"pixels": torch.full((2,), 0.5), "pid": os.getpid()}] * 4)

    loader = loader_of(Where(0), workers, converter={"pixels": "float16"})
    (batch, *_) = list(loader)
    assert batch["pixels"].dtype is torch.float16
    assert (int(batch["pid"][0]) == os.getpid()) == (workers == 0)


@pytest.mark.parametrize(
    ("dataset", "arguments", "message"),
    [
        (Generated(3), {"num_shards": 2}, "Generated cannot be split into shards"),
        (Sharded(3), {"num_shards": 5}, "1 to 4 shards"),
        (Sharded(3), {"num_shards": 0}, "1 to 4 shards"),
        (Sharded(3), {"rank": 0, "world_size": 5, "seed": 1}, "5 ranks"),
        (Sharded(3), {"order": "shuffled"}, "no indices to order"),
        (Sharded(3), {"tail": "pad"}, "cannot be made equal"),
        (Sharded(3), {"worker_kind": "thread", "num_workers": 2}, "one after the other"),
        (Sharded(3), {"snapshot_every": 0}, "snapshot_every=0"),
        ([1, 2], {"num_shards": 2}, "read by index"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_does_not_apply_is_refused(
    dataset: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ResumableDataLoader(dataset, **arguments)


def test_a_stream_has_no_position_to_jump_to() -> None:
    loader = loader_of(Sharded(9))
    for act in (
        lambda: loader.seek(step=1),
        lambda: loader.samples_at(0, 0),
        lambda: loader.padding(0),
        lambda: loader.remaining,
    ):
        with pytest.raises(UnsupportedDatasetError, match="Sharded is an IterableDataset"):
            act()


def test_the_remaining_batches_are_known_if_the_length_is() -> None:
    class Sized(Generated):
        def __len__(self) -> int:
            return self.length

    loader = loader_of(Sized(10))
    assert (len(loader), loader.remaining) == (4, 4)
    batches = iter(loader)
    next(batches)
    assert (len(loader), loader.remaining, loader.position) == (4, 3, 3)
    larger = ResumableDataLoader(loader.dataset, batch_size=6, strategy="advanced")
    larger.load_state_dict({**loader.state_dict(), "strategy": "advanced"})
    assert (len(larger), larger.remaining) == (2, len(list(larger)))


def test_a_rank_whose_shards_have_ended_has_no_remaining_batches() -> None:
    class Sized(Sharded):
        def __len__(self) -> int:
            return self.length

    def ranks() -> list[Any]:
        return [
            loader_of(Sized(16, 2), batch_size=2, rank=rank, world_size=2, strategy="distributed")
            for rank in range(2)
        ]

    begun = ranks()
    for loader in begun:
        batches = iter(loader)
        for _ in range(3):  # the first one has two
            next(batches, None)
    whole = begun[0].setup.format.join([loader.state_dict() for loader in begun])
    for loader in (resumed := ranks()):
        loader.load_state_dict(whole)
    assert [loader.remaining for loader in resumed] == [0, 1]


class Split(IterableDataset[int]):
    """A stream of 6 numbers in up to 3 shards."""

    num_shards: Any = 3

    def __iter__(self) -> Iterator[int]:
        return iter(range(6))


class ByPosition(Split):
    def shard(self, n: int, i: int) -> Any:
        return range(6)[i::n]


class TheOtherWayRound(Split):
    def shard(self, index: int, num_shards: int) -> Any:
        return range(6)[index::num_shards]


class WithOthers(Split):
    def shard(self, num_shards: int, index: int, contiguous: bool = True, **others: Any) -> Any:
        return range(6)[index::num_shards]


class WithAnother(Split):
    def shard(self, num_shards: int, index: int, key: str) -> Any:
        return range(6)[index::num_shards]


class AMethod(WithOthers):
    def num_shards(self) -> int:
        return 3


class NoNumber(WithOthers):
    num_shards = "3"


CALLED = "is called as shard(num_shards=..., index=...), and cannot be"
WRITE = ": write def shard(self, num_shards, index), where index counts from 0"
OTHERWISE = (
    "; if these members mean something else, pass num_shards=False, so that the stream is not split"
)
MEMBERS = [
    (
        ByPosition,
        f"ByPosition.shard(n: 'int', i: 'int') -> 'Any' {CALLED} (missing a required argument: 'n')"
        f"{WRITE}",
    ),
    (
        WithAnother,
        "WithAnother.shard(num_shards: 'int', index: 'int', key: 'str') -> 'Any' "
        f"{CALLED} (missing a required argument: 'key'){WRITE}",
    ),
    (AMethod, "AMethod.num_shards is a method: make it a property (@property above its def)"),
    (NoNumber, "NoNumber.num_shards='3': expected a whole number of 1 or more"),
]


@pytest.mark.parametrize(("kind", "text"), MEMBERS)
@pytest.mark.parametrize("build", [ResumableDataLoader, ShuffledStream])
def test_members_that_cannot_be_called_are_refused(kind: Any, text: str, build: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        build(kind())
    assert str(refused.value) == text + (OTHERWISE if build is ResumableDataLoader else "")


@pytest.mark.parametrize("kind", [TheOtherWayRound, WithOthers])
@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_shards_are_called_by_name(kind: Any, num_shards: int) -> None:
    loader = ResumableDataLoader(kind(), batch_size=2, num_shards=num_shards)
    assert sorted(sample for batch in loader for sample in batch.tolist()) == list(range(6))


class PathOfOneShard(Split):
    def shard(self, path: str) -> Any:
        return path


class NumberOfThisShard(Split):
    shard = 2


class NamesOfShards(Split):
    num_shards = ("a", "b")

    def shard(self, name: str, mode: str) -> Any:
        return name, mode


class MethodOfOthers(Split):
    def num_shards(self, kind: str) -> int:
        return len(kind)

    def shard(self, path: str) -> Any:
        return path


class OnlyShards(Split):
    num_shards = None

    def shard(self, num_shards: int, index: int) -> Any:
        return num_shards, index


OTHERS = [PathOfOneShard, NumberOfThisShard, NamesOfShards, MethodOfOthers, OnlyShards]


@pytest.mark.parametrize("kind", OTHERS)
def test_members_that_mean_something_else_are_left_alone(kind: Any) -> None:
    loader = ResumableDataLoader(kind(), batch_size=4)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5]]
    assert loader.state_dict()["num_workers"] == 1
    with pytest.raises(UnsupportedDatasetError, match="expects a stream that can be split"):
        ShuffledStream(kind())


@pytest.mark.parametrize("kind", [ByPosition, AMethod, NoNumber, WithOthers])
def test_a_stream_is_not_split_if_the_caller_says_so(kind: Any) -> None:
    loader = ResumableDataLoader(kind(), batch_size=4, num_shards=False)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5]]
    assert loader.state_dict()["num_shards"] is None
    with pytest.raises(ConfigurationError, match="num_shards=True: expected a number of shards"):
        ResumableDataLoader(kind(), batch_size=4, num_shards=True)


def test_without_a_split_each_worker_iterates_over_the_stream_as_in_torch() -> None:
    loader = ResumableDataLoader(WithOthers(), batch_size=6, num_shards=False, num_workers=2)
    assert [batch.tolist() for batch in loader] == [list(range(6))] * 2


class Moving(IterableDataset[int]):
    """Its shards are the dataset itself."""

    def __init__(self) -> None:
        self.files = [0, 1, 2]

    @property
    def num_shards(self) -> int:
        return len(self.files)

    def shard(self, num_shards: int, index: int) -> Moving:
        self.files = self.files[index::num_shards]
        return self

    def __iter__(self) -> Iterator[int]:
        return iter(self.files)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_is_not_the_dataset_itself(workers: int) -> None:
    with pytest.raises(ConfigurationError, match="returned the dataset itself"):
        list(ResumableDataLoader(Moving(), 2, num_workers=workers))
    assert len(list(ResumableDataLoader(Moving(), 3, num_shards=1))) == 1


class Undivided(IterableDataset[int]):
    def __init__(self, divided: bool) -> None:
        self.divided = divided

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info() if self.divided else None
        return iter(range(9) if info is None else range(info.id, 9, info.num_workers))


def test_a_warning_says_that_workers_read_the_same() -> None:
    with pytest.warns(RuntimeWarning, match="worker 1 has delivered the same samples as worker 0"):
        assert len(list(ResumableDataLoader(Undivided(False), 3, num_workers=2))) == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(ResumableDataLoader(Undivided(False), 3, num_workers=1))) == 3
        assert len(list(ResumableDataLoader(Undivided(True), 3, num_workers=2))) == 4
