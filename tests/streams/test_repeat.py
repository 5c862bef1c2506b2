"""StreamRepeat: a stream that begins again at its end, exact at a resume (C2, C10)."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from budgets import slow
from datasets import Dataset as Table
from example_streams import KINDS, Sharded, loader_of, numbers, rest, taken, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from subjects import digest
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset
from worlds import ranks_of

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    ShuffledStream,
    StateMismatchError,
    StreamRepeat,
    UnifiedHFDatasetWrapper,
    UnsupportedDatasetError,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:the stream has no exact state", "ignore:this pass has no batch"
)
LENGTH = 31


class Shuffling(IterableDataset[int]):
    """Shuffles all of its samples before it yields the first, by Python's global generator."""

    drawn_at_the_end = 3

    def __init__(self, own: bool = False) -> None:
        self.read = 0
        self.generator = random.Random() if own else random
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(range(LENGTH))
        self.generator.shuffle(order)
        return self._samples(order)

    def _samples(self, order: list[int]) -> Iterator[int]:
        for number in order:
            self.read += 1
            yield number
        for _ in range(self.drawn_at_the_end):
            random.random()


class Noisy(Shuffling):
    """Each sample draws from the global generator."""

    def _samples(self, order: list[int]) -> Iterator[Any]:
        for number in super()._samples(order):
            yield number, random.random()


REPEATED: dict[str, Any] = {
    **{name: lambda kind=kind: StreamRepeat(kind(LENGTH)) for name, kind in KINDS.items()},
    "shuffling": lambda: StreamRepeat(Shuffling()),
    "noisy": lambda: StreamRepeat(Noisy()),
    "repeated twice": lambda: StreamRepeat(StreamRepeat(Noisy(), passes=2)),
    "windows of repeated shards": lambda: ShuffledStream(StreamRepeat(Sharded(LENGTH)), window=5),
}
each_kind = pytest.mark.parametrize("kind", REPEATED)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, *slow(2)])
def test_each_pass_has_all_samples(kind: str, workers: int) -> None:
    stream = StreamRepeat(KINDS[kind](LENGTH), passes=3)
    found = Counter(numbers(list(loader_of(stream, workers))))
    assert found == dict.fromkeys(range(LENGTH), 3)
    by_itself = Counter(sample["index"] for sample in StreamRepeat(KINDS[kind](LENGTH), passes=2))
    assert by_itself == dict.fromkeys(range(LENGTH), 2)


@each_kind
@pytest.mark.parametrize("strategy", ["advanced", "simple"])
def test_a_state_of_any_step_resumes_in_a_new_loader(kind: str, strategy: str) -> None:
    def build() -> ResumableDataLoader[Any]:
        return loader_of(REPEATED[kind](), strategy=strategy)

    loader = build()
    whole, states = [], [loader.state_dict()]
    for batch in itertools.islice(loader, 26):
        whole.append(digest(batch))
        states.append(loader.state_dict())
    for step in (*range(9, 14), 20, 22, 25):
        resumed = build()
        resumed.load_state_dict(through_a_file(states[step]))
        assert taken(resumed, 26 - step) == whole[step:], step


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(REPEATED)),
    limit=st.integers(1, 9),
    stop=st.integers(0, 30),
    snapshot_every=st.integers(1, 4),
)
def test_epochs_of_so_many_steps_are_one_long_pass_and_resume(
    kind: str, limit: int, stop: int, snapshot_every: int
) -> None:
    long = taken(loader_of(REPEATED[kind]()), 36)

    def programme(loader: Any) -> Iterator[tuple[int, str]]:
        for epoch in loader.epochs(36 // limit):
            for batch in loader:
                yield epoch, digest(batch)

    def build() -> ResumableDataLoader[Any]:
        return loader_of(REPEATED[kind](), steps_per_epoch=limit, snapshot_every=snapshot_every)

    loader = build()
    seen = list(itertools.islice(programme(loader), stop))
    resumed = build()
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    found = [*seen, *programme(resumed)]
    steps = 36 // limit * limit
    assert found == [(step // limit, batch) for step, batch in enumerate(long[:steps])]


@pytest.mark.parametrize("kind", [*slow("shards"), *slow("replay"), *slow("dataset state")])
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_take_over(kind: str, persistent: bool) -> None:
    def build(workers: int, **arguments: Any) -> ResumableDataLoader[Any]:
        return loader_of(REPEATED[kind](), workers, steps_per_epoch=5, **arguments)

    workers = 2 if kind == "shards" else 1
    loader = build(0)
    expected = [batch for _ in range(4) for batch in rest(loader)]
    loader = build(workers, persistent_workers=persistent)
    found = rest(loader) + rest(loader) + taken(loader, 2)
    resumed = build(workers)
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    assert found + rest(resumed) + rest(resumed) == expected


def test_a_resume_rereads_the_present_pass_only() -> None:
    loader = loader_of(StreamRepeat(Shuffling()), 0)
    taken(loader, 28)  # 84 samples: 22 of the third pass
    stream = Shuffling()
    resumed = loader_of(StreamRepeat(stream))
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    taken(resumed, 1)
    assert stream.read == 22 + 3


def test_passes_differ_and_a_resume_that_does_not_repeat_them_is_found_out() -> None:
    batches = list(itertools.islice(loader_of(StreamRepeat(Shuffling()), batch_size=31), 3))
    assert len({tuple(batch.tolist()) for batch in batches}) == 3
    loader = loader_of(StreamRepeat(Shuffling(own=True)))
    taken(loader, 15)
    resumed = loader_of(StreamRepeat(Shuffling(own=True)))
    resumed.load_state_dict(through_a_file(loader.state_dict()))
    with pytest.raises(StateMismatchError, match="does not repeat its samples 31 to 44"):
        taken(resumed, 1)


@pytest.mark.parametrize(("passes", "expected"), [(None, [2, 3, 4]), (3, [6, 7, 8])])
def test_set_epoch_counts_the_passes(passes: int | None, expected: list[int]) -> None:
    stream = Shuffling()
    loader = loader_of(StreamRepeat(stream, passes))
    loader.set_epoch(2)
    taken(loader, LENGTH)  # of batches of 3
    assert list(dict.fromkeys(stream.epochs)) == expected
    if passes is None:
        assert stream.epochs[-1] == 4


def test_a_pass_that_is_left_leaves_nothing_behind() -> None:
    for kind in ("dataset state", "iterator state", "shards"):
        loader = loader_of(REPEATED[kind]())
        first = taken(loader, 4)
        assert len(first) == 4
        loader.set_epoch(0)
        assert taken(loader, 4) == first


def test_hugging_faces_streams_keep_their_state_and_a_wrapper_its_padding() -> None:
    table = Table.from_dict({"ids": [[1] * (number % 4 + 1) for number in range(LENGTH)]})
    rows = table.to_iterable_dataset(num_shards=3)

    def build() -> ResumableDataLoader[Any]:
        stream = StreamRepeat(UnifiedHFDatasetWrapper(rows, pad={"ids": 0}))
        return loader_of(stream, steps_per_epoch=7, batch_size=4)

    loader = build()
    expected = [digest(batch) for _ in range(4) for batch in loader]
    again = build()
    seen = rest(again) + rest(again) + taken(again, 3)
    state = through_a_file(again.state_dict())
    assert all(shard[5] is not None for shard in state["shards"])
    resumed = build()
    resumed.load_state_dict(state)
    assert seen + rest(resumed) + rest(resumed) == expected


def test_a_shuffle_buffer_is_reread_from_the_start_of_the_pass() -> None:
    def build() -> ResumableDataLoader[Any]:
        table = Table.from_dict({"n": list(range(LENGTH))})
        rows = table.to_iterable_dataset(num_shards=2).shuffle(seed=1, buffer_size=8)
        return loader_of(StreamRepeat(rows), batch_size=4)

    long = taken(build(), 24)
    loader = build()
    seen = taken(loader, 18)
    state = through_a_file(loader.state_dict())
    assert all(0 < shard[4] <= shard[2] for shard in state["shards"])
    resumed = build()
    resumed.load_state_dict(state)
    assert seen + taken(resumed, 6) == long


def test_any_number_of_ranks_has_equal_epochs_and_takes_the_shards_over() -> None:
    def of(rank: int, size: int) -> ResumableDataLoader[Any]:
        stream = StreamRepeat(Sharded(LENGTH))
        return loader_of(stream, rank=rank, world_size=size, steps_per_epoch=5)

    loaders = [of(rank, 2) for rank in range(2)]
    before = [numbers(list(loader)) for loader in loaders for _ in range(3)]
    assert {len(epoch) for epoch in before} == {15}
    state = loaders[0].setup.format.join([loader.state_dict() for loader in loaders])
    resumed = [of(rank, 4) for rank in range(4)]
    for loader in resumed:
        loader.load_state_dict(through_a_file(state))
    after = [numbers(list(loader)) for loader in resumed]
    assert {len(epoch) for epoch in after} == {15}
    # What was read of a shard is its samples in turn, over and over.
    found = Counter(itertools.chain(*before, *after))
    for shard in range(4):
        times = [found[sample["index"]] for sample in Sharded(LENGTH).shard(4, shard)]
        assert times == sorted(times, reverse=True)
        assert not times or times[0] - times[-1] <= 1


def training_rank() -> tuple[int, list[float]]:
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
    loader = ResumableDataLoader(StreamRepeat(Sharded(LENGTH)), 3, seed=3, steps_per_epoch=12)
    steps = 0
    for _ in loader.epochs(3):
        for batch in loader:
            optimiser.zero_grad()
            model(batch["index"][:, None].float()).mean().backward()
            optimiser.step()
            steps += 1
    return steps, [float(value) for one in model.parameters() for value in one.flatten()]


def test_a_ddp_model_trains_in_epochs_of_equal_steps() -> None:
    (steps, weights), others = ranks_of(2, training_rank)
    assert (steps, weights) == others
    assert steps == 36


def test_what_cannot_be_repeated_is_refused() -> None:
    with pytest.raises(UnsupportedDatasetError, match="expects an iterable dataset"):
        StreamRepeat(number for number in range(3))
    with pytest.raises(UnsupportedDatasetError, match="got a int"):
        StreamRepeat(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="passes=0"):
        StreamRepeat(Sharded(4), passes=0)
    assert list(loader_of(StreamRepeat(KINDS["replay"](0)))) == []


def test_it_has_the_streams_length_and_works_in_torchs_loader() -> None:
    class Sized(Shuffling):
        def __len__(self) -> int:
            return LENGTH

    assert len(StreamRepeat(Sized(), passes=2)) == 2 * LENGTH
    with pytest.raises(TypeError, match="without end"):
        len(StreamRepeat(Sized()))
    found = [
        number
        for batch in DataLoader(StreamRepeat(Shuffling(), passes=2), 4)
        for number in batch.tolist()
    ]
    assert Counter(found) == dict.fromkeys(range(LENGTH), 2)
