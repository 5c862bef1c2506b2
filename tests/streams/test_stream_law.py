"""The law of streams: an epoch has the samples that iterating over the stream gives (C10, C12).

Whatever the pipeline, its shards, the workers and the ranks; or the loader refuses before the first
batch, and says what to write.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from budgets import cases
from example_streams import through_a_file
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    ShuffledStream,
    UnifiedHFDatasetWrapper,
)

datasets = pytest.importorskip("datasets")
split_dataset_by_node = pytest.importorskip("datasets.distributed").split_dataset_by_node

pytestmark = [
    pytest.mark.filterwarnings("ignore:the stream has no exact state"),
    pytest.mark.filterwarnings("ignore:one of . workers reads"),
    pytest.mark.filterwarnings("ignore:this pass has no batch"),
    # To join a stream whose asynchronous map has run, datasets copies the event loop, in vain.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# No pipeline is longer; an endless one would be.
MOST = 400


# ---- pipelines


def generated(parts: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for first, length in parts:
        for number in range(first, first + length):
            yield {"a": number}


def first_of(example: Any) -> Any:
    return next(iter(example.values()))


def noted(example: Any) -> Any:
    return {"m": str(first_of(example))}


async def noted_later(example: Any) -> Any:
    return {"n": str(first_of(example))}


def numbered(example: Any, index: int) -> Any:
    return {"index": index}


def grouped(batch: Any) -> Any:
    return {"sum": [str(batch)] * len(first_of(batch))}


def merged(batch: Any) -> Any:
    return {"all": [str(batch)]}


def chosen(example: Any) -> bool:
    return len(str(example)) % 3 > 0


def chosen_by_place(example: Any, index: int) -> bool:
    return index % 3 > 0


def chosen_of_a_group(batch: Any) -> list[bool]:
    count = len(first_of(batch))
    return [place % 2 == 0 for place in range(count)]


def renamed(stream: Any) -> Any:
    name = next(iter(next(iter(stream))))
    return stream.rename_column(name, f"{name}_")


def of_one_column(stream: Any) -> Any:
    return stream.select_columns([next(iter(next(iter(stream))))])


def without_last_column(stream: Any) -> Any:
    *kept, last = next(iter(stream))
    return stream.remove_columns([last]) if kept else stream


def beside_itself(stream: Any, other: Any) -> Any:
    (column, *_) = next(iter(other))
    other = other.select_columns([column]).rename_column(column, "other")
    return datasets.concatenate_datasets([stream, other], axis=1)


Step = Callable[[Any], Any]
small, group = st.integers(0, 12), st.integers(1, 5)


def step(name: str, function: Callable[..., Any], *drawn: Any, **named: Any) -> Any:
    """A strategy of steps that show themselves in a falsifying example."""

    class Named:
        def __init__(self, values: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.values, self.options = values, options

        def __call__(self, stream: Any) -> Any:
            return function(stream, *self.values, **self.options)

        def __repr__(self) -> str:
            shown = [*map(repr, self.values), *(f"{k}={v}" for k, v in self.options.items())]
            return f"{name}({', '.join(shown)})"

    return st.builds(Named, st.tuples(*drawn), st.fixed_dictionaries(named))


ONE_BY_ONE = st.one_of(
    step("map", lambda s: s.map(noted)),
    step("async map", lambda s: s.map(noted_later)),
    step("filter", lambda s: s.filter(chosen)),
    step("map in ones", lambda s: s.map(grouped, batched=True, batch_size=1)),
    step("shuffle", lambda s, **o: s.shuffle(**o), seed=small, buffer_size=group),
    step("repeat", lambda s, n: s.repeat(n), st.integers(0, 3)),
    step("rename", renamed),
    step("select", of_one_column),
    step("remove", without_last_column),
    step("cast", lambda s: s.cast_column("a", datasets.Value("int16"))),
    step("with_format", lambda s, f: s.with_format(f), st.sampled_from(["torch", "numpy", None])),
    step("shard", lambda s, n: s.shard(min(n, s.num_shards), 0), st.integers(1, 2)),
    step("reshard", lambda s: s.reshard()),
)
TOGETHER = st.one_of(
    step("take", lambda s, n: s.take(n), small),
    step("skip", lambda s, n: s.skip(n), small),
    step("indices", lambda s: s.map(numbered, with_indices=True)),
    step("filter indices", lambda s: s.filter(chosen_by_place, with_indices=True)),
    step(
        "groups",
        lambda s, n, **o: s.map(grouped, batched=True, batch_size=n, **o),
        group,
        drop_last_batch=st.booleans(),
    ),
    step(
        "merge",
        lambda s, n: s.map(merged, batched=True, batch_size=n, remove_columns=list(next(iter(s)))),
        group,
    ),
    step(
        "filter groups",
        lambda s, n: s.filter(chosen_of_a_group, batched=True, batch_size=n),
        group,
    ),
    step("batch", lambda s, n, **o: s.batch(n, **o), group, drop_last_batch=st.booleans()),
    step("add_column", lambda s: s.add_column("new", list(range(MOST)))),
    step("endless", lambda s, n: s.repeat(None).take(n), small),
)


@st.composite
def sources(draw: Any) -> Step:
    first = draw(st.integers(0, 5)) * 1000
    if draw(st.booleans()):
        shards = draw(st.integers(1, 5))
        length = draw(st.integers(shards, 14))

        def table(_: Any) -> Any:
            column = {"a": list(range(first, first + length))}
            return datasets.Dataset.from_dict(column).to_iterable_dataset(num_shards=shards)

        return shown(table, f"table({length}, {shards} shards)")
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4))
    parts = [(first + 100 * place, length) for place, length in enumerate(lengths)]

    def generator(_: Any) -> Any:
        return datasets.IterableDataset.from_generator(generated, gen_kwargs={"parts": parts})

    return shown(generator, f"generator({lengths})")


def shown(function: Step, text: str) -> Step:
    class Shown:
        def __call__(self, stream: Any) -> Any:
            return function(stream)

        def __repr__(self) -> str:
            return text

    return Shown()


@st.composite
def joins(draw: Any) -> Step:
    other = draw(st.tuples(sources(), st.lists(ONE_BY_ONE | TOGETHER, max_size=1).map(tuple)))
    kind = draw(st.sampled_from(["rows", "columns", "turns", "chance"]))
    stop = draw(
        st.sampled_from(["first_exhausted", "all_exhausted", "all_exhausted_without_replacement"])
    )
    odds, seed = draw(st.floats(0.2, 0.8)), draw(small)

    def joined(stream: Any) -> Any:
        second = built((other[0], *other[1]))
        if kind == "rows":
            return datasets.concatenate_datasets([stream, second])
        if kind == "columns":
            return beside_itself(stream, second)
        by_chance = {} if kind == "turns" else {"probabilities": [odds, 1 - odds], "seed": seed}
        return datasets.interleave_datasets([stream, second], stopping_strategy=stop, **by_chance)

    return shown(joined, f"joined by {kind} with {other}, {stop}, {odds}, {seed}")


PIPELINES = st.tuples(
    sources(), st.lists(ONE_BY_ONE | TOGETHER | joins(), max_size=4).map(tuple)
).map(lambda parts: (parts[0], *parts[1]))


def built(pipeline: tuple[Step, ...]) -> Any:
    stream = None
    for each in pipeline:
        stream = each(stream)
    return stream


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda stream: stream,
    "wrapped": UnifiedHFDatasetWrapper,
    "in windows": lambda stream: ShuffledStream(stream, window=3),
    "wrapped, in windows": lambda stream: ShuffledStream(UnifiedHFDatasetWrapper(stream), window=3),
}


# ---- what is compared


def by_itself(build: Callable[[], Any], epoch: int) -> list[str] | None:
    """The samples that iterating over the stream gives; None if it raises, or has no end."""
    try:
        stream = build()
        stream.set_epoch(epoch)
        found = list(itertools.islice(map(repr, stream), MOST + 1))
    except Exception:
        return None
    return found if len(found) <= MOST else None


def loader_of(stream: Any, batch_size: int = 3, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(stream, batch_size, seed=5, collate_fn=list, **arguments)


def shared(streams: list[Any], batch_size: int) -> list[ResumableDataLoader[Any]] | str:
    """The loaders of all ranks, or the reason why there are none."""
    world_size = len(streams)
    try:
        return [
            loader_of(stream, batch_size, rank=rank, world_size=world_size)
            for rank, stream in enumerate(streams)
        ]
    except ConfigurationError as error:
        return str(error)


def read(loader: ResumableDataLoader[Any]) -> list[str]:
    return [text for batch in loader for text in map(repr, batch)]


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    cache = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = cache


# ---- the law


@settings(max_examples=cases(150))
@given(
    pipeline=PIPELINES,
    wrapper=st.sampled_from(sorted(WRAPPERS)),
    epoch=st.integers(0, 1),
    world_size=st.integers(1, 3),
    split=st.booleans(),
    batch_size=st.integers(1, 5),
)
def test_an_epoch_has_the_samples_that_iterating_gives(
    pipeline: Any, wrapper: str, epoch: int, world_size: int, split: bool, batch_size: int
) -> None:
    wrap = WRAPPERS[wrapper]
    inner = UnifiedHFDatasetWrapper if "wrapped" in wrapper else (lambda stream: stream)
    expected = by_itself(lambda: inner(built(pipeline)), epoch)
    assume(expected is not None)
    event(f"{world_size} ranks")
    streams = [built(pipeline) for _ in range(world_size)]
    if split and world_size > 1:
        streams = [
            split_dataset_by_node(stream, rank, world_size) for rank, stream in enumerate(streams)
        ]
    loaders = shared([*map(wrap, streams)], batch_size)
    if isinstance(loaders, str):
        event("refused")
        assert world_size > 1, loaders
        assert "num_shards=" in loaders
        return
    event("compared")
    found: list[str] = []
    for loader in loaders:
        loader.seek(epoch=epoch)
        found += read(loader)
    assert sorted(found) == sorted(expected or [])


@settings(max_examples=cases(150))
@given(
    pipeline=PIPELINES,
    wrapper=st.sampled_from(sorted(WRAPPERS)),
    epoch=st.integers(0, 1),
    stop=st.integers(0, 6),
)
def test_a_resumed_epoch_has_exactly_the_rest(
    pipeline: Any, wrapper: str, epoch: int, stop: int
) -> None:
    def loader() -> ResumableDataLoader[Any]:
        return loader_of(WRAPPERS[wrapper](built(pipeline)), 2)

    assume(by_itself(lambda: WRAPPERS[wrapper](built(pipeline)), epoch) is not None)
    whole = loader()
    whole.seek(epoch=epoch)
    expected = [[*map(repr, batch)] for batch in whole]
    begun = loader()
    begun.seek(epoch=epoch)
    # Not past the last batch: the loop would end the epoch.
    seen = [[*map(repr, batch)] for batch in itertools.islice(begun, min(stop, len(expected)))]
    resumed = loader()
    resumed.load_state_dict(through_a_file(begun.state_dict()))
    assert seen + [[*map(repr, batch)] for batch in resumed] == expected


@settings(max_examples=cases(40))
@given(pipeline=PIPELINES, rank=st.integers(0, 1), strategy=st.sampled_from(["auto", "examples"]))
def test_a_node_s_part_is_what_it_gives_itself(pipeline: Any, rank: int, strategy: str) -> None:
    def build() -> Any:
        return split_dataset_by_node(built(pipeline), rank, 2, strategy=strategy)

    expected = by_itself(build, 0)
    assume(expected is not None)
    assert sorted(read(loader_of(build()))) == sorted(expected or [])


@pytest.mark.slow
@settings(max_examples=cases(25))
@given(pipeline=PIPELINES, workers=st.integers(1, 2), wrapper=st.sampled_from(sorted(WRAPPERS)))
def test_workers_change_no_sample(pipeline: Any, workers: int, wrapper: str) -> None:
    inner = UnifiedHFDatasetWrapper if "wrapped" in wrapper else (lambda stream: stream)
    expected = by_itself(lambda: inner(built(pipeline)), 0)
    assume(expected is not None)
    loader = loader_of(WRAPPERS[wrapper](built(pipeline)), num_workers=workers)
    assert sorted(read(loader)) == sorted(expected or [])
