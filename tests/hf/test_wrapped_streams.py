"""Wrapped streams: the samples of the table, with shards and states; and no datasets at all."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import datasets as hf
import numpy as np
import pytest
import torch
from datasets import (
    Dataset,
)
from example_tables import TEXTS, mixed
from subjects import digest
from torch.utils.data import DataLoader

from dataporter import (
    ConfigurationError,
    ResumableDataLoader,
    UnifiedHFDatasetWrapper,
)
from dataporter.hf import snapshots_are_exact

# ---- streams


def streamed(length: int = 24, shards: int = 4) -> Any:
    return mixed(length).to_iterable_dataset(num_shards=shards)


def doubled(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: values * 2 for name, values in batch.items()}


def labelled(row: dict[str, Any]) -> dict[str, Any]:
    return {"label": 1 - row["label"]}


PIPELINES = {
    "plain": lambda: streamed(),
    "mapped": lambda: streamed().map(labelled),
    "mapped in batches": lambda: streamed().map(doubled, batched=True, batch_size=5),
    "filtered": lambda: streamed().filter(lambda row: row["label"] == 1),
    "shards shuffled": lambda: streamed().shuffle(seed=1, buffer_size=1),
    "skipped": lambda: streamed().skip(3).take(15),
    "interleaved": lambda: hf.interleave_datasets([streamed(), streamed(12)], [0.7, 0.3], seed=2),
    "one after the other": lambda: hf.concatenate_datasets([streamed(), streamed(12)]),
    "repeated": lambda: streamed(8).repeat(2),
    "shuffled": lambda: streamed().shuffle(seed=1, buffer_size=7),
    "shuffled, then mapped": lambda: streamed().shuffle(seed=1, buffer_size=7).map(labelled),
    "tables, then batches": lambda: (
        streamed().with_format("arrow").map(lambda table: table, batched=True, batch_size=5)
    ),
}


INEXACT = {"shuffled", "shuffled, then mapped", "tables, then batches"}


@pytest.mark.parametrize("name", PIPELINES)
def test_snapshots_that_are_called_exact_are(name: str) -> None:
    make = PIPELINES[name]
    assert snapshots_are_exact(make()) == (name not in INEXACT)
    wrapper = UnifiedHFDatasetWrapper(make())
    assert wrapper.snapshots_are_exact == (name not in INEXACT)
    whole, states = [], []
    for sample in wrapper:
        whole.append(digest(sample))
        states.append(wrapper.state_dict())
    if name in INEXACT:
        return
    for step in range(0, len(whole), 3):
        resumed = UnifiedHFDatasetWrapper(make())
        resumed.load_state_dict(states[step])
        assert [digest(sample) for sample in resumed] == whole[step + 1 :]


def test_a_shuffle_buffer_really_loses_samples() -> None:
    """Why such snapshots are called inexact; if this fails, they may be loaded."""
    whole = []
    wrapper = UnifiedHFDatasetWrapper(PIPELINES["shuffled"]())
    for sample in wrapper:
        whole.append(digest(sample))
        if len(whole) == 12:
            state = wrapper.state_dict()
    resumed = UnifiedHFDatasetWrapper(PIPELINES["shuffled"]())
    resumed.load_state_dict(state)
    assert [digest(sample) for sample in resumed] != whole[12:]


def test_shards_together_are_the_stream_and_have_states() -> None:
    rules = {"label": "int8"}
    wrapper = UnifiedHFDatasetWrapper(streamed(), rules, columns=["label", "ids"], transform=dict)
    assert wrapper.num_shards == 4
    whole = [digest(sample) for sample in wrapper]
    shards = [wrapper.shard(4, index) for index in range(4)]
    assert [digest(sample) for shard in shards for sample in shard] == whole
    assert {shard.num_shards for shard in shards} == {1}
    batches = iter(shards[1])
    seen = [digest(next(batches)) for _ in range(2)]
    again = wrapper.shard(4, 1)
    again.load_state_dict(shards[1].state_dict())
    assert seen + [digest(sample) for sample in again] == whole[6:12]


def test_each_epoch_shuffles_a_stream_differently() -> None:
    wrapper = UnifiedHFDatasetWrapper(streamed().shuffle(seed=1, buffer_size=5))
    first = [digest(sample) for sample in wrapper]
    wrapper.set_epoch(1)
    second = [digest(sample) for sample in wrapper]
    assert first != second
    assert sorted(first) == sorted(second)
    assert wrapper.shard(2, 0)._stream.epoch == 1


def test_torchs_workers_split_a_stream_but_not_a_shard_of_it() -> None:
    wrapper = UnifiedHFDatasetWrapper(streamed(), columns=["label", "text"])
    texts = sorted(sample["text"] for sample in wrapper)
    loader = DataLoader(wrapper, None, num_workers=2)
    assert sorted(sample["text"] for sample in loader) == texts
    shard = wrapper.shard(4, 0)
    twice = DataLoader(shard, None, num_workers=2)
    assert sorted(sample["text"] for sample in twice) == sorted(2 * [s["text"] for s in shard])


def test_a_stream_of_unknown_features_has_64_bits_and_one_with_a_format_stored_dtypes() -> None:
    def rows() -> Any:
        for n in range(3):
            yield {"n": n, "x": n / 2, "l": [n, n], "s": str(n), "a": np.arange(2, dtype=np.int8)}

    generated = hf.IterableDataset.from_generator(rows)
    sample = list(UnifiedHFDatasetWrapper(generated))[2]
    assert (sample["n"].dtype, sample["x"].dtype) == (torch.int64, torch.float64)
    assert torch.equal(sample["l"], torch.tensor([2, 2]))
    expected = [digest(sample) for sample in UnifiedHFDatasetWrapper(streamed())]
    formatted = UnifiedHFDatasetWrapper(streamed().with_format("torch"))
    assert [digest(sample) for sample in formatted] == expected
    with pytest.raises(ConfigurationError, match="one by one"):
        UnifiedHFDatasetWrapper(streamed(), transform=dict, batched=True)
    with pytest.raises(ConfigurationError, match="tokens"):
        UnifiedHFDatasetWrapper(streamed(), columns=["tokens"])


def test_samples_of_a_stream_are_padded_when_they_are_collated() -> None:
    stream = UnifiedHFDatasetWrapper(
        Dataset.from_dict(TEXTS).to_iterable_dataset(), pad={"input_ids": 0, "labels": -100}
    )
    rows = UnifiedHFDatasetWrapper(Dataset.from_dict(TEXTS), pad={"input_ids": 0, "labels": -100})
    batch = next(iter(DataLoader(stream, 3, collate_fn=stream.collate)))
    assert digest(batch) == digest(rows.__getbatch__(np.arange(3)))


@pytest.mark.parametrize("name", ["plain", "shuffled", "mapped in batches"])
def test_the_loader_resumes_a_stream_with_its_conversions_and_padding(name: str) -> None:
    def loader(num_workers: int) -> ResumableDataLoader[Any]:
        stream = UnifiedHFDatasetWrapper(PIPELINES[name](), {"ids": "int16"}, pad={"ids": 0})
        return ResumableDataLoader(stream, 4, num_workers=num_workers)

    whole = [digest(batch) for batch in loader(2)]
    begun = loader(2)
    batches = iter(begun)
    first = next(batches)
    assert first["ids"].dtype is torch.int16
    assert first["ids_mask"].shape == first["ids"].shape
    start = [digest(first), digest(next(batches))]
    resumed = loader(2)
    resumed.load_state_dict(begun.state_dict())
    assert start + [digest(batch) for batch in resumed] == whole


# ---- without the libraries


def test_without_datasets_the_error_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "sys.modules['datasets'] = None\n"
        "from dataporter import MissingLibraryError, UnifiedHFDatasetWrapper\n"
        "assert not {'pyarrow', 'PIL'} & set(sys.modules)\n"
        "try:\n"
        "    UnifiedHFDatasetWrapper([])\n"
        "except ImportError as error:\n"
        "    assert type(error) is MissingLibraryError\n"
        "    print(error)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=True
    )
    assert "pip install datasets" in ran.stdout
