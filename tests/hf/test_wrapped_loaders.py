"""Wrapped datasets in loaders: the same batches however they are read, and a fingerprint."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from budgets import slow
from datasets import (
    Dataset,
)
from example_tables import mixed, plain, saved
from subjects import digest
from torch.utils.data import DataLoader, Subset

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    StateMismatchError,
    UnifiedHFDatasetWrapper,
    memory_report,
)

# ---- in loaders


def drawing(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "draw": torch.rand(2), "python": random.random(), "numpy": np.random.rand()}


def drawing_once(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "draw": torch.rand(len(batch["label"]))}


def as_it_is(samples: list[Any]) -> list[Any]:
    return samples


@pytest.mark.parametrize("context", ["fork", *slow("spawn")])
def test_workers_give_the_same_batches(tmp_path: Path, context: str) -> None:
    dataset = saved(mixed(150), tmp_path / "data").shuffle(seed=1)
    wrapper = UnifiedHFDatasetWrapper(dataset, {"inner.x": "float16"})
    size = len(pickle.dumps(wrapper))
    assert size < 20_000, "a mapped file travels by its path"
    inline = [digest(batch) for batch in ResumableDataLoader(wrapper, 8, shuffle=True, seed=3)]
    loader = ResumableDataLoader(
        wrapper, 8, shuffle=True, seed=3, num_workers=2, multiprocessing_context=context
    )
    assert [digest(batch) for batch in loader] == inline
    threads = ResumableDataLoader(
        wrapper, 8, shuffle=True, seed=3, num_workers=2, worker_kind="thread"
    )
    assert [digest(batch) for batch in threads] == inline


def test_the_batch_is_the_same_however_the_loader_reads() -> None:
    wrapper = UnifiedHFDatasetWrapper(mixed(40), columns=["ids", "inner", "text", "label"])
    batches = [digest(batch) for batch in ResumableDataLoader(wrapper, 8)]
    ways = {
        "torch": DataLoader(wrapper, 8),
        "torch, workers": DataLoader(wrapper, 8, num_workers=2),
        "skip": ResumableDataLoader(wrapper, 8, on_error="skip"),
        "sampler": ResumableDataLoader(wrapper, 8, sampler=range(40)),
        "subset": ResumableDataLoader(Subset(wrapper, list(range(40))), 8),
        "subset of a subset": ResumableDataLoader(
            Subset(Subset(wrapper, range(40)), torch.arange(40)), 8
        ),
        "transform": ResumableDataLoader(
            UnifiedHFDatasetWrapper(wrapper.hf_dataset, columns=wrapper.columns, transform=dict), 8
        ),
        "batched": ResumableDataLoader(
            UnifiedHFDatasetWrapper(
                wrapper.hf_dataset, columns=wrapper.columns, transform=dict, batched=True
            ),
            8,
        ),
    }
    for name, loader in ways.items():
        assert [digest(batch) for batch in loader] == batches, name
    own = ResumableDataLoader(wrapper, 8, collate_fn=as_it_is)
    assert [digest(wrapper.collate(samples)) for samples in own] == batches
    single = ResumableDataLoader(wrapper, batch_size=None)
    assert [digest(sample) for sample in single] == [digest(wrapper[n]) for n in range(40)]


def test_a_memory_report_counts_the_data_once() -> None:
    dataset = mixed(1000)
    report = memory_report(ResumableDataLoader(UnifiedHFDatasetWrapper(dataset), 8))
    (arrays,) = (held for held in report.held if held.what == "the dataset's arrays")
    assert arrays.now == dataset.data.table.nbytes


def test_a_batch_that_torch_cannot_collate_is_the_same_however_it_is_made() -> None:
    dataset = Dataset.from_dict({"n": [1, None, 3, 4], "ragged": [[1], [2, 3], [], [4]]})
    wrapper = UnifiedHFDatasetWrapper(dataset)
    batches = [digest(batch) for batch in ResumableDataLoader(wrapper, 2)]
    for loader in (
        ResumableDataLoader(wrapper, 2, on_error="skip"),
        ResumableDataLoader(Subset(wrapper, range(4)), 2),
        ResumableDataLoader(wrapper, 2, num_workers=1),
        DataLoader(wrapper, 2, collate_fn=wrapper.collate),
    ):
        assert [digest(batch) for batch in loader] == batches


@pytest.mark.parametrize("batched", [False, True])
def test_random_transforms_are_exact(batched: bool) -> None:
    wrapper = UnifiedHFDatasetWrapper(
        mixed(60), transform=drawing_once if batched else drawing, batched=batched
    )

    def loader(num_workers: int = 0) -> ResumableDataLoader[Any]:
        return ResumableDataLoader(wrapper, 8, shuffle=True, seed=5, num_workers=num_workers)

    torch.manual_seed(1)
    whole = [digest(batch) for batch in loader()]
    drawn = torch.rand(1)
    torch.manual_seed(1)
    list(DataLoader(range(60), 8, shuffle=True))
    assert torch.equal(torch.rand(1), drawn), "the training's generator moves as with torch"
    assert len(set(whole)) == len(whole)
    begun = loader(2)
    batches = iter(begun)
    start = [digest(next(batches)) for _ in range(3)]
    resumed = loader(1)
    resumed.load_state_dict(begun.state_dict())
    assert start + [digest(batch) for batch in resumed] == whole
    if not batched:  # a sample's draw does not depend on the batch
        other = ResumableDataLoader(wrapper, 20, shuffle=True, seed=5)
        draws = [torch.cat([batch["draw"] for batch in each]) for each in (loader(), other)]
        assert torch.equal(*draws)


def test_a_transform_of_a_batch_must_keep_its_samples() -> None:
    wrapper = UnifiedHFDatasetWrapper(
        mixed(), transform=lambda batch: {"label": batch["label"][:1]}, batched=True
    )
    with pytest.raises(ConfigurationError, match="one value per sample"):
        wrapper.__getitems__([1, 2, 3])


def upper(batch: dict[str, Any]) -> dict[str, Any]:
    return {"TEXT": [text.upper() for text in batch["text"]], "draw": [torch.rand(1)]}


def test_the_with_transform_of_a_dataset_is_still_called() -> None:
    wrapper = UnifiedHFDatasetWrapper(
        mixed(30).with_transform(upper), {"draw": "float16"}, transform=lambda row: {**row, "t": 1}
    )
    loader = ResumableDataLoader(wrapper, 4, shuffle=True, seed=1)
    batches = list(loader)
    assert set(batches[0]) == {"TEXT", "draw", "t"}
    assert batches[0]["TEXT"][0].startswith("TEXT ")
    assert batches[0]["draw"].dtype is torch.float16
    workers = ResumableDataLoader(
        UnifiedHFDatasetWrapper(mixed(30).with_transform(upper), {"draw": "float16"}),
        4,
        shuffle=True,
        seed=1,
        num_workers=2,
    )
    assert [plain(batch["draw"]) for batch in workers] == [plain(b["draw"]) for b in batches]
    with pytest.raises(ConfigurationError, match="with_transform"):
        UnifiedHFDatasetWrapper(mixed().with_transform(upper), pad={"ids": 0})


# ---- the fingerprint


def test_a_state_belongs_to_the_data_it_was_taken_from(tmp_path: Path) -> None:
    dataset = saved(mixed(40), tmp_path / "data")

    def state_of(wrapper: Any) -> Any:
        loader = ResumableDataLoader(wrapper, 4, shuffle=True, seed=1)
        next(iter(loader))
        return loader.state_dict()

    state = state_of(UnifiedHFDatasetWrapper(dataset))
    same = ResumableDataLoader(
        UnifiedHFDatasetWrapper(hf.load_from_disk(tmp_path / "data"), {"ids": "int16"}),
        4,
        shuffle=True,
    )
    same.load_state_dict(state)
    for other in (
        UnifiedHFDatasetWrapper(dataset.map(lambda row: {"label": 1 - row["label"]})),
        UnifiedHFDatasetWrapper(dataset.shuffle(seed=2)),
        UnifiedHFDatasetWrapper(dataset, columns=["ids"]),
        UnifiedHFDatasetWrapper(dataset, pad={"ids": 0}),
        UnifiedHFDatasetWrapper(dataset, image_mode="L"),
    ):
        changed = ResumableDataLoader(other, 4, shuffle=True)
        with pytest.raises(StateMismatchError, match="fingerprint"):
            changed.load_state_dict(state)


FINGERPRINT = """
import sys; sys.path[:0] = {paths!r}
import example_tables
from dataporter import UnifiedHFDatasetWrapper
print(UnifiedHFDatasetWrapper(example_tables.mixed(30).shuffle(seed=1)).fingerprint)
"""


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    """Also for data made in memory, which datasets hashes."""
    code = FINGERPRINT.format(paths=[str(folder) for folder in Path(__file__).parents[:2]])
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    here = UnifiedHFDatasetWrapper(mixed(30).shuffle(seed=1)).fingerprint
    assert ran.stdout.split()[-1] == here
