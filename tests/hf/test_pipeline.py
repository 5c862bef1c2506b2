"""Which steps of a streamed dataset a split would change, and where that is documented."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import datasets
import datasets.iterable_dataset as theirs
import pytest
from datasets import Dataset, Features, Value
from datasets.distributed import split_dataset_by_node

from dataporter.hf.contents import contents_of
from dataporter.hf.pipeline import STEPS, Node, alone, node_of, unsplittable, without_node
from dataporter.hf.snapshots import snapshots_are_exact

DOCS = Path(__file__).parents[2] / "docs" / "streams.md"
# With the parent class, which does nothing.
CLASSES = {
    name
    for name, kind in vars(theirs).items()
    if inspect.isclass(kind) and issubclass(kind, theirs._BaseExamplesIterable)
} - {"_BaseExamplesIterable"}
# The methods of a stream that neither make one of other samples nor one at all.
OTHERS = {
    *("column_names", "dataset_size", "epoch", "features", "info", "iter", "load_state_dict"),
    *("n_shards", "num_columns", "num_shards", "push_to_hub", "set_epoch", "split", "state_dict"),
    *("builder_name", "citation", "config_name", "description", "download_checksums"),
    *("download_size", "homepage", "license", "size_in_bytes", "supervised_keys", "version"),
}


def rows(shards: int = 4) -> Any:
    return Dataset.from_dict({"n": list(range(12))}).to_iterable_dataset(num_shards=shards)


def test_every_class_of_the_library_is_known() -> None:
    # A new one counts as unknown, and its streams as unsplittable, until it is read.
    assert set(STEPS) >= CLASSES
    # Spark's lies elsewhere, and the sources of a shuffle were classes of their own in 4.0.
    others = {name for name in set(STEPS) - CLASSES if "ShuffledDataSources" not in name}
    assert others == {"SparkExamplesIterable"}


def test_every_public_step_is_in_the_table() -> None:
    table = DOCS.read_text().split("## Which Hugging Face streams are split")[1].split("\n## ")[0]
    public = {name for name in dir(datasets.IterableDataset) if not name.startswith("_")}
    steps = {name for name in public - OTHERS if not name.startswith(("to_", "from_"))}
    # Those that the table names by another name of the same step.
    steps -= {"cast_column", "rename_columns", "reduce"}
    assert {name for name in steps if f"`{name}" not in table} == set()


@pytest.mark.parametrize(
    ("documented", "stream"),
    [
        ("`map`", lambda: rows().map(dict)),
        ("`map`", lambda: rows().map(dict, batched=True, batch_size=1)),
        ("`filter`", lambda: rows().filter(bool)),
        ("`rename_column`", lambda: rows().rename_column("n", "m")),
        ("`remove_columns`", lambda: rows().map(lambda row: {"m": 1}).remove_columns("m")),
        ("`select_columns`", lambda: rows().select_columns(["n"])),
        ("`cast`", lambda: rows().cast(Features({"n": Value("int32")}))),
        ("`decode`", lambda: rows().decode(False)),
        ("`with_format`", lambda: rows().with_format("torch")),
        ("`shuffle`", lambda: rows().shuffle(seed=1)),
        (
            "`concatenate_datasets`, `repeat",
            lambda: datasets.concatenate_datasets([rows(), rows()]),
        ),
        ("`repeat(3)`", lambda: rows().repeat(3)),
        ("`shard`", lambda: rows().shard(2, 0)),
        ("`reshard`", lambda: rows().reshard()),
        ("without_replacement", lambda: interleaved("all_exhausted_without_replacement")),
        ("`take`", lambda: rows().take(3)),
        ("`skip`", lambda: rows().skip(3)),
        ("`map(with_indices", lambda: rows().map(lambda row, n: row, with_indices=True)),
        ("`filter(with_indices", lambda: rows().filter(lambda row, n: True, with_indices=True)),
        ("`add_column`", lambda: rows().add_column("m", list(range(12)))),
        ("`map(batched=True", lambda: rows().map(dict, batched=True)),
        ("`filter(batched=True", lambda: rows().filter(lambda row: [True] * 12, batched=True)),
        ("`batch`", lambda: rows().batch(2)),
        ("`batch`", lambda: rows().batch(by_column="n")),
        ("`batch`", lambda: rows().with_format("numpy").batch(2)),
        ("with another strategy", lambda: interleaved("first_exhausted")),
        ("with another strategy", lambda: interleaved("all_exhausted")),
        ("`repeat(None)`", lambda: rows().repeat(None)),
        ("some of which have features", lambda: partly_typed()),
        ("of tables and of streams", lambda: with_function().with_format("torch")),
        ("`concatenate_datasets`, `repeat", lambda: with_function()),
        ("`load_state_dict` before", lambda: begun()),
        ("is not in this table", lambda: datasets.IterableDataset(Unheard(rows()._ex_iterable))),
    ],
)
def test_the_table_and_the_code_agree(documented: str, stream: Any) -> None:
    (line,) = [
        line
        for line in DOCS.read_text().splitlines()
        if line.startswith("| ")
        and documented in line.split(" | ")[0]
        and line.split(" | ")[1] in ("split", "read as a whole")
    ]
    assert (unsplittable(stream()) is None) == (line.split(" | ")[1] == "split")


@pytest.mark.parametrize(
    "stream",
    [
        lambda: rows(1).take(3).map(dict, batched=True),
        lambda: datasets.concatenate_datasets([rows(1).take(3), rows(4)]),
        lambda: datasets.concatenate_datasets([rows(4), rows(4).rename_column("n", "m")], axis=1),
    ],
)
def test_a_step_on_one_data_source_forbids_nothing(stream: Any) -> None:
    assert unsplittable(stream()) is None


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda stream: stream.shuffle(seed=1, buffer_size=3),
        lambda stream: stream.map(dict),
        lambda stream: stream.repeat(2),
        lambda stream: stream.select_columns(["n"]),
        lambda stream: stream.with_format("torch").map(dict),
        lambda stream: datasets.concatenate_datasets([rows(), stream]),
        lambda stream: datasets.interleave_datasets([rows(), stream]),
    ],
)
def test_a_step_under_others_is_found(wrapped: Any) -> None:
    assert "take(3)" in str(unsplittable(wrapped(rows().take(3))))


def test_the_steps_are_named_in_the_order_of_the_pipeline() -> None:
    stream = rows().skip(1).map(dict, batched=True).take(5).skip(1)
    assert unsplittable(stream) == "skip(1) and map(batched=True) and take(5)"


def test_a_twin_has_a_position_of_its_own() -> None:
    stream = rows().map(dict).shuffle(seed=2, buffer_size=1).take(9)
    twin = alone(stream)
    stream.set_epoch(3)
    assert twin.epoch == 0
    assert len(list(twin)) == 9
    before = stream.state_dict()
    next(iter(twin))
    assert stream.state_dict() == before
    twin.load_state_dict(twin.state_dict())
    assert stream._starting_state_dict is None


def test_a_stream_without_its_node_leaves_the_other_one_as_it_was() -> None:
    stream = split_dataset_by_node(rows(), 1, 2)
    whole = without_node(stream)
    assert (node_of(whole), node_of(stream)) == (None, Node(1, 2))
    assert (len(list(whole)), len(list(stream))) == (12, 6)


def test_equal_data_have_equal_contents_and_other_data_others(tmp_path: Path) -> None:
    def files(folder: str, *names: str) -> Any:
        (tmp_path / folder).mkdir(exist_ok=True)
        paths = [tmp_path / folder / f"{name}.jsonl" for name in names]
        for path in paths:
            path.write_text('{"n": 1}\n')
        return datasets.load_dataset(
            "json", data_files=[str(path) for path in paths], split="train", streaming=True
        )

    def parts(*numbers: int) -> Any:
        return datasets.IterableDataset.from_generator(
            lambda numbers: iter(()), gen_kwargs={"numbers": list(numbers)}
        )

    alike = [
        (rows(), rows().map(dict)),
        (files("one", "a", "b"), files("two", "a", "b")),
        (parts(1, 2), parts(1, 2)),
        (rows().shuffle(seed=3), rows().shuffle(seed=3)),
    ]
    others = [
        (rows(), rows(3)),
        (rows().shard(2, 0), rows().shard(2, 1)),
        (files("one", "a", "b"), files("one", "a", "c")),
        (parts(1, 2), parts(1, 3)),
        (rows().shuffle(), rows().shuffle()),
        (rows().shuffle(seed=3), rows().shuffle(seed=4)),
    ]
    assert all(contents_of(one) == contents_of(other) != [] for one, other in alike)
    assert all(contents_of(one) != contents_of(other) for one, other in others)


def test_only_a_shuffle_with_a_seed_has_states_for_another_process() -> None:
    assert snapshots_are_exact(rows().shuffle(seed=2**40, buffer_size=1))
    assert not snapshots_are_exact(rows().shuffle(buffer_size=1))


class Unheard(theirs.SelectColumnsIterable):
    """A step that no release knows."""

    def __init__(self, ex_iterable: Any) -> None:
        super().__init__(ex_iterable, ["n"])


def interleaved(strategy: str) -> Any:
    return datasets.interleave_datasets([rows(), rows()], stopping_strategy=strategy)


def partly_typed() -> Any:
    features = Features({"n": Value("int64")})
    return datasets.concatenate_datasets([rows().map(dict, features=features), rows()])


def with_function() -> Any:
    return datasets.concatenate_datasets([rows().map(dict), rows()])


def begun() -> Any:
    stream = rows()
    next(iter(stream))
    stream.load_state_dict(stream.state_dict())
    return stream
