"""The memory report: correct for the batch, the dataset, and the processes that run."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dataporter import (
    ConfigurationError,
    LossyConversionError,
    MemoryReport,
    ResumableDataLoader,
    SharedSequence,
    UnsupportedDatasetError,
    memory_report,
)

RULES = {"image": "float16", "label": "int32", "mask": "uint8"}


class Samples(Dataset[Any]):
    """Draws random numbers, so that reading a sample by the way would show."""

    def __init__(self, records: Any = ()) -> None:
        self.records = records
        self.table = torch.zeros(1000)

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Any:
        return {
            "image": torch.rand(3, 8, 8) + random.random() * 0,
            "label": index,
            "mask": torch.ones(16, dtype=torch.int64),
            "array": np.zeros(2),
            "name": f"{index}",
        }


def loader(**arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Samples(), 10, shuffle=True, seed=1, converter=RULES, **arguments)


def held(report: MemoryReport) -> dict[str, tuple[int, int]]:
    return {each.what: (each.now, each.without) for each in report.held}


def test_the_bytes_by_path_are_those_of_the_delivered_batch() -> None:
    report = memory_report(loader())
    batch = next(iter(loader()))
    plain = next(iter(ResumableDataLoader(Samples(), 10, shuffle=True, seed=1)))
    assert report.batch_size == 10
    assert [leaf.path for leaf in report.leaves] == ["image", "label", "mask", "array"]
    for leaf in report.leaves:
        assert leaf.before == plain[leaf.path].nbytes
        assert leaf.after == batch[leaf.path].nbytes
        assert leaf.dtype == str(plain[leaf.path].dtype).removeprefix("torch.")
        assert leaf.converted == str(batch[leaf.path].dtype).removeprefix("torch.")
    assert report.before == 10 * (3 * 64 * 4 + 8 + 16 * 8 + 16)
    assert report.after == 10 * (3 * 64 * 2 + 4 + 16 + 16)


def test_a_report_moves_no_position_and_draws_no_random_number() -> None:
    reading = loader()
    batches = iter(reading)
    next(batches)
    state, drawn = reading.state_dict(), torch.get_rng_state()
    before = random.getstate()
    memory_report(reading)
    assert reading.state_dict() == state
    assert torch.equal(torch.get_rng_state(), drawn)
    assert random.getstate() == before
    untouched = loader()
    untouched.load_state_dict(state)
    assert torch.equal(next(batches)["image"], next(iter(untouched))["image"])


def test_the_batches_held_follow_from_the_loaders_arguments() -> None:
    report = memory_report(loader(num_workers=2, prefetch_factor=3))
    whole = held(report)
    assert whole["6 batches ahead"] == (6 * report.after, 6 * report.before)
    assert whole["the batch in use"] == (report.after, report.before)
    # Two workers make one unconverted batch each.
    assert whole["batches being made"] == (2 * report.before, 2 * report.before)
    assert report.now == sum(now for now, _ in whole.values())
    assert report.without == sum(without for _, without in whole.values())
    unconverted = memory_report(ResumableDataLoader(Samples(), 10, num_workers=2))
    assert held(unconverted)["batches being made"][0] == 0


def test_the_parts_of_a_dataset_are_reported_by_kind_and_counted_once() -> None:
    records = [{"path": f"images/{number:08}.jpg", "label": number} for number in range(20_000)]
    table = torch.zeros(1000)

    class Twice(Samples):
        def __init__(self, records: Any) -> None:
            super().__init__(records)
            self.table = table
            self.same = table.view(10, 100)
            self.array = np.ones(500)

    lists = held(memory_report(DataLoader(Twice(records), num_workers=2)))
    assert lists["the dataset's arrays"] == (8000, 8000)
    objects, _ = lists["the dataset's objects"]
    # A dict of two, a string, an integer: 184 + 69 + 28, and 8 for the pointer in the list.
    assert 20_000 * 250 < objects < 20_000 * 350
    assert lists["copies of objects in workers"] == (2 * objects, 2 * objects)
    sequence = SharedSequence(records)
    shared = held(memory_report(DataLoader(Twice(sequence), num_workers=2)))
    now, without = shared["the dataset's SharedSequences"]
    assert now == sequence.nbytes
    assert 0.8 * objects < without < 1.2 * objects
    copies_now, copies_without = shared["copies of objects in workers"]
    assert copies_now < 20_000
    assert 1.6 * objects < copies_without < 2.4 * objects


def test_a_mapped_file_is_not_held(tmp_path: Any) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((100, 1000)))
    rows = np.load(path, mmap_mode="r")
    assert "the dataset's arrays" not in held(memory_report(ResumableDataLoader(rows, 10)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PSS is Linux's")
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize(
    ("made", "before", "after"),
    [
        (lambda: torch.eye(4).to_sparse(), 64 + 16, 64 + 8),
        (lambda: torch.eye(4).to_sparse_csr(), 40 + 32 + 16, 40 + 32 + 8),
        (lambda: torch.eye(4).to_sparse_csc(), 40 + 32 + 16, 40 + 32 + 8),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), 20, 10),
        (lambda: torch.nested.nested_tensor([torch.ones(5)], layout=torch.jagged), 20, 10),
    ],
    ids=["coo", "csr", "csc", "nested", "jagged"],
)
def test_sparse_and_nested_tensors_are_counted_by_their_parts(
    made: Any, before: int, after: int
) -> None:
    leaf = made()
    dataset = Samples([leaf])
    loader = ResumableDataLoader(
        dataset, 2, collate_fn=lambda samples: {"x": leaf}, converter={"x": "float16"}
    )
    report = memory_report(loader)
    assert (report.before, report.after) == (before, after)
    assert held(report)["the dataset's arrays"][0] >= before


class OnDisk(Mapping[int, Any]):
    """A mapping that reads a value from disk when asked for it."""

    def __init__(self) -> None:
        self.table = {"indices": torch.zeros(1000)}

    def __getitem__(self, key: int) -> Any:
        raise AssertionError("was read")

    def __iter__(self) -> Any:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


def test_a_mapping_is_not_asked_for_values_it_would_read() -> None:
    arrays = held(memory_report(ResumableDataLoader(Samples([OnDisk()]), 10)))
    assert arrays["the dataset's arrays"] == (8000, 8000)


def test_running_processes_are_measured() -> None:
    reading = loader(num_workers=2)
    assert set(memory_report(reading).measured) == {"training"}
    batches = iter(reading)
    batch = next(batches)
    measured = memory_report(reading).measured
    assert set(measured) == {"training", "workers", "slots"}
    assert measured["training"] > 10_000_000
    assert measured["workers"] > 1_000_000
    assert measured["slots"] >= batch["image"].nbytes
    del batches, batch
    assert set(memory_report(reading).measured) == {"training"}


def test_the_report_prints_as_tables_and_converts_to_json() -> None:
    report = memory_report(loader(num_workers=2))
    text = str(report)
    for word in ("'image'", "float32", "float16", "50.0%", "87.5%", "without DataPorter", "ahead"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100
    found = json.loads(json.dumps(report.to_dict()))
    assert found["batch"]["after"] == report.after
    assert found["total"] == {"now": report.now, "without": report.without}
    assert found["batch"]["leaves"][0]["path"] == "image"


class Closed:
    """Like a library's object that was closed, or belongs to another process."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("closed")


class Remote:
    def __init__(self) -> None:
        self.table = torch.zeros(1000)

    @property
    def nbytes(self) -> int:
        raise OSError("out of reach")


def test_objects_whose_attributes_raise_do_not_end_the_report() -> None:
    arrays = held(memory_report(ResumableDataLoader(Samples([Closed(), Remote()]), 10)))
    assert arrays["the dataset's arrays"] == (4000, 4000)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


def test_a_loader_without_a_readable_batch_is_refused() -> None:
    with pytest.raises(UnsupportedDatasetError, match="Stream is an IterableDataset"):
        memory_report(ResumableDataLoader(Stream()))
    for empty in (
        ResumableDataLoader([], 4),
        ResumableDataLoader(Samples(), 101, drop_last=True),
        DataLoader([], 4),
    ):
        with pytest.raises(ConfigurationError, match=r"makes no batch.*drop_last"):
            memory_report(empty)
    with pytest.raises(LossyConversionError):
        memory_report(ResumableDataLoader({"x": torch.tensor([300])}, converter={"x": "uint8"}))


def test_brackets_in_the_users_names_are_not_markup() -> None:
    loader = ResumableDataLoader({"[bold]x": torch.arange(8.0)}, 4)
    report = memory_report(loader)
    assert repr(report.leaves[0].path) in str(report)
