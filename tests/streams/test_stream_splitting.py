"""A stream is split only where that leaves its samples as they are (C10, C12)."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from example_streams import through_a_file
from torch.utils.data import IterableDataset, get_worker_info

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    ShuffledStream,
    StateMismatchError,
    UnifiedHFDatasetWrapper,
)

datasets = pytest.importorskip("datasets")
split_dataset_by_node = pytest.importorskip("datasets.distributed").split_dataset_by_node

WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda stream: stream,
    "wrapped": UnifiedHFDatasetWrapper,
    "in shuffled windows": lambda stream: ShuffledStream(stream, window=3),
    "wrapped, in shuffled windows": lambda stream: ShuffledStream(
        UnifiedHFDatasetWrapper(stream), window=3
    ),
}


def rows(length: int = 40, shards: int = 4, first: int = 0) -> Any:
    numbers = list(range(first, first + length))
    return datasets.Dataset.from_dict({"a": numbers}).to_iterable_dataset(num_shards=shards)


def unequal() -> Any:
    return datasets.concatenate_datasets([rows(2, 1), rows(30, 2, 2)])


def numbered(example: dict[str, Any], index: int) -> dict[str, Any]:
    return {"a": example["a"], "index": index}


def summed(batch: dict[str, Any]) -> dict[str, Any]:
    return {"a": [min(batch["a"])], "sum": [sum(batch["a"])]}


def odd_places(example: dict[str, Any], index: int) -> bool:
    return bool(index % 2)


def mixed(**arguments: Any) -> Any:
    return datasets.interleave_datasets([rows(20, 2), rows(9, 3, 100)], **arguments)


STEPS: dict[str, tuple[Callable[[], Any], str]] = {
    "take": (lambda: rows().take(5), "take(5)"),
    "skip": (lambda: rows().skip(8), "skip(8)"),
    "take of unequal shards": (lambda: unequal().take(6), "take(6)"),
    "map with indices": (
        lambda: rows().map(numbered, with_indices=True),
        "map(with_indices=True)",
    ),
    "filter with indices": (
        lambda: rows().filter(odd_places, with_indices=True),
        "filter(with_indices=True)",
    ),
    "groups": (
        lambda: rows(42).map(summed, batched=True, batch_size=4, remove_columns=["a"]),
        "map(batched=True)",
    ),
    "batches": (lambda: rows(42).batch(4), "batch(4)"),
    "a new column": (lambda: rows().add_column("b", list(range(40))), "add_column('b')"),
    "shuffle, then take": (lambda: rows().shuffle(seed=1, buffer_size=8).take(9), "take(9)"),
    "take, then shuffle": (lambda: rows().take(9).shuffle(seed=1, buffer_size=8), "take(9)"),
    "interleaved": (
        lambda: mixed(stopping_strategy="all_exhausted"),
        "interleave_datasets(stopping_strategy='all_exhausted')",
    ),
    "interleaved by chance": (
        lambda: mixed(probabilities=[0.3, 0.7], seed=4),
        "interleave_datasets(stopping_strategy='first_exhausted')",
    ),
    "one of several": (
        lambda: datasets.concatenate_datasets([rows(), rows(20, 2, 100).take(3)]),
        "take(3)",
    ),
    "several steps": (
        lambda: rows().map(summed, batched=True, remove_columns=["a"]).skip(1),
        "map(batched=True) and skip(1)",
    ),
}


def samples(batches: Any) -> list[str]:
    return sorted(repr(sample) for batch in batches for sample in batch)


def loader_of(stream: Any, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(stream, 3, seed=5, collate_fn=list, **arguments)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", STEPS)
def test_a_stream_that_a_split_would_change_is_read_as_a_whole(name: str, wrapper: str) -> None:
    build, _ = STEPS[name]
    expected = samples([WRAPPERS[wrapper](build())])
    loader = loader_of(WRAPPERS[wrapper](build()))
    assert samples(loader) == expected
    begun = loader_of(WRAPPERS[wrapper](build()))
    seen = list(itertools.islice(begun, 1))
    resumed = loader_of(WRAPPERS[wrapper](build()))
    resumed.load_state_dict(through_a_file(begun.state_dict()))
    assert samples([*seen, *resumed]) == expected


def test_the_samples_of_take_are_those_of_the_stream_and_none_of_skip() -> None:
    taken = [sample["a"] for batch in loader_of(rows().take(5)) for sample in batch]
    assert taken == [0, 1, 2, 3, 4]
    both = [
        {sample["a"] for batch in loader_of(part) for sample in batch}
        for part in (rows().take(8), rows().skip(8))
    ]
    assert both == [set(range(8)), set(range(8, 40))]


def test_streams_of_one_another_are_read_at_the_same_time() -> None:
    whole = rows()
    training, validation = loader_of(whole.skip(8)), loader_of(whole.take(8))
    batches = iter(training)
    seen = [next(batches), next(batches)]
    assert samples(validation) == samples([[{"a": number} for number in range(8)]])
    seen.append(next(batches))
    resumed = loader_of(whole.skip(8))
    resumed.load_state_dict(training.state_dict())
    read = [sample["a"] for batch in [*seen, *resumed] for sample in batch]
    assert read == list(range(8, 40))
    assert [sample["a"] for sample in whole.skip(8)] == list(range(8, 40))


@pytest.mark.parametrize("name", STEPS)
def test_several_ranks_are_refused_with_the_line_to_write(name: str) -> None:
    build, step = STEPS[name]
    with pytest.raises(ConfigurationError) as refused:
        loader_of(build(), rank=0, world_size=2)
    text = str(refused.value)
    assert f"2 ranks cannot share this stream: {step} would give other samples" in text
    assert f"num_shards={min(build().num_shards, 64)} to split it anyway" in text
    loader_of(build(), rank=0, world_size=2, num_shards=2)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_one_of_several_workers_reads_it_and_a_warning_says_so(wrapper: str) -> None:
    build, step = STEPS["take"]
    with pytest.warns(RuntimeWarning, match="one of 2 workers reads this stream") as caught:
        loader = loader_of(WRAPPERS[wrapper](build()), num_workers=2)
    (message,) = {str(warning.message) for warning in caught}
    assert step in message
    assert "write num_shards=4" in message
    assert samples(loader) == samples([WRAPPERS[wrapper](build())])


@pytest.mark.parametrize("arguments", [{"num_shards": 4}, {"num_shards": 1}, {"num_workers": 1}])
def test_a_number_of_shards_or_one_worker_needs_no_warning(arguments: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader_of(rows().take(5), **{"num_workers": 2, **arguments})


def test_num_shards_splits_it_all_the_same() -> None:
    loader = loader_of(rows().take(5), num_shards=4)
    assert sorted(sample["a"] for batch in loader for sample in batch) == [0, 1, 10, 20, 30]


def test_a_state_of_another_number_of_shards_names_the_line_to_write() -> None:
    split = loader_of(rows().take(9), num_shards=4)
    seen = list(itertools.islice(split, 2))
    state = split.state_dict()
    with pytest.raises(StateMismatchError, match=r"4, this loader has 1 \(write num_shards=4"):
        loader_of(rows().take(9)).load_state_dict(state)
    resumed = loader_of(rows().take(9), num_shards=4)
    resumed.load_state_dict(state)
    assert samples([*seen, *resumed]) == samples(loader_of(rows().take(9), num_shards=4))


def test_a_stream_with_a_loaded_state_is_read_from_there() -> None:
    begun = rows()
    next(iterator := iter(begun))
    next(iterator)
    rest = rows()
    rest.load_state_dict(begun.state_dict())
    loader = loader_of(rest)
    assert [sample["a"] for batch in loader for sample in batch] == list(range(2, 40))


def test_a_subclass_of_a_stream_is_read_as_a_whole() -> None:
    class Doubled(datasets.IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            for example in super().__iter__():
                yield {"a": 2 * example["a"]}

    loader = loader_of(Doubled(rows(8)._ex_iterable))
    assert [sample["a"] for batch in loader for sample in batch] == list(range(0, 16, 2))


class FirstOnes(IterableDataset[int]):
    """Declares that it cannot be split, and looks at the workers when it is iterated."""

    num_shards = 4
    unsplittable = "the limit of 6 samples"

    def shard(self, num_shards: int, index: int) -> Any:
        return range(index, 40, num_shards)[:6]

    def __iter__(self) -> Iterator[int]:
        assert get_worker_info() is None
        return iter(range(6))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:one of 2 workers")
def test_a_custom_stream_declares_it(workers: int) -> None:
    loader = ResumableDataLoader(FirstOnes(), 4, num_workers=workers)
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5]]
    with pytest.raises(ConfigurationError, match="the limit of 6 samples would give other samples"):
        ResumableDataLoader(FirstOnes(), 4, seed=1, rank=1, world_size=2)


# ---- streams that were split by node before


def by_node(rank: int, world_size: int, **arguments: Any) -> Any:
    return split_dataset_by_node(rows(), rank, world_size, **arguments)


def of_ranks(build: Callable[[int], Any], world_size: int) -> list[str]:
    loaders = [
        loader_of(build(rank), rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    return sorted(itertools.chain.from_iterable(map(samples, loaders)))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_stream_of_this_rank_s_node_is_shared_once(world_size: int, wrapper: str) -> None:
    expected = samples([WRAPPERS[wrapper](rows())])
    assert expected == of_ranks(
        lambda rank: WRAPPERS[wrapper](by_node(rank, world_size)), world_size
    )


def test_its_state_resumes_on_another_number_of_ranks() -> None:
    begun = [loader_of(by_node(rank, 2), rank=rank, world_size=2) for rank in range(2)]
    seen = [batch for loader in begun for batch in itertools.islice(loader, 2)]
    state = begun[0].setup.format.join([loader.state_dict() for loader in begun])
    for rank in range(4):
        resumed = loader_of(by_node(rank, 4), rank=rank, world_size=4)
        resumed.load_state_dict(state)
        seen += list(resumed)
    assert samples(seen) == samples([rows()])


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("strategy", ["auto", "shards", "examples"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_in_a_world_of_one_the_node_s_part_is_read(
    strategy: str, world_size: int, wrapper: str
) -> None:
    for rank in range(world_size):
        stream = by_node(rank, world_size, strategy=strategy)
        assert samples(loader_of(WRAPPERS[wrapper](stream))) == samples([WRAPPERS[wrapper](stream)])
    whole = loader_of(WRAPPERS[wrapper](by_node(0, 1)))
    assert samples(whole) == samples([WRAPPERS[wrapper](rows())])


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("rank", "world_size"), [(1, 2), (0, 3)])
def test_the_part_of_another_node_is_refused(rank: int, world_size: int, wrapper: str) -> None:
    stream = WRAPPERS[wrapper](by_node(rank, world_size))
    with pytest.raises(ConfigurationError, match="leave split_dataset_by_node out") as refused:
        loader_of(stream, rank=0, world_size=2)
    assert f"split_dataset_by_node(rank={rank}, world_size={world_size})" in str(refused.value)


def test_a_node_s_part_is_not_split_further() -> None:
    with pytest.raises(ConfigurationError, match="leave num_shards= out"):
        loader_of(by_node(0, 2), num_shards=2)
    with pytest.warns(RuntimeWarning, match="leave split_dataset_by_node out"):
        loader_of(by_node(0, 2), num_workers=2)


def test_without_shards_each_rank_reads_what_its_stream_gives() -> None:
    loaders = [
        loader_of(by_node(rank, 2), rank=rank, world_size=2, num_shards=False) for rank in range(2)
    ]
    assert sorted(itertools.chain.from_iterable(map(samples, loaders))) == samples([rows()])


@pytest.mark.parametrize("buffer_size", [1, 5])
@pytest.mark.filterwarnings("ignore:the stream has no exact state")
def test_a_shuffle_without_a_seed_is_not_resumed_in_another_order(buffer_size: int) -> None:
    # So many shards that two orders of them are hardly ever the same.
    begun = loader_of(rows(shards=8).shuffle(buffer_size=buffer_size))
    for _ in itertools.islice(begun, 8):
        pass
    resumed = loader_of(rows(shards=8).shuffle(buffer_size=buffer_size))
    resumed.load_state_dict(begun.state_dict())
    with pytest.raises(StateMismatchError, match="does not repeat its samples"):
        list(resumed)
