"""States that earlier code has saved resume as it would have, batch for batch (C2, C6).

`saved_states.json` was written before the package was laid out in rooms: the states, and the
batches that the loader which saved them delivered after them. It is never written again: where a
state can no longer be loaded, the schema's version has to say why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, RandomSampler

from dataporter import ResumableDataLoader

SAVED: dict[str, Any] = json.loads((Path(__file__).parent / "saved_states.json").read_text())


class Augmented(Dataset[Any]):
    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> Any:
        return index, float(torch.rand(())), float(np.random.random())


class Walk:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]

    def __iter__(self) -> Iterator[Any]:
        while self.at < len(self.text):
            self.at += 1
            yield ord(self.text[self.at - 1]), float(torch.rand(()))


class Texts(IterableDataset[Any]):
    texts = ("alphabet", "soup", "resumes", "exactly")

    @property
    def num_shards(self) -> int:
        return len(self.texts)

    def shard(self, num_shards: int, index: int) -> Walk:
        return Walk("".join(self.texts[index::num_shards]))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.shard(1, 0))


def rest(loader: ResumableDataLoader[Any], state: dict[str, Any]) -> list[Any]:
    loader.load_state_dict(state)
    again = loader.state_dict()
    assert again.pop("dataporter") == 3
    # Schema 2 names the settings of a custom sampler as well.
    again["order"] = again["order"].split("(")[0] if "order" in again else None
    # Later releases have more fields of a shard.
    again["shards"] = [shard[:6] for shard in again.get("shards", ())]
    kept = [name for name in state if name not in ("dataporter", "order")]
    assert [again[name] for name in kept] == [state[name] for name in kept]
    assert again["order"] == state.get("order")
    return [[part.tolist() for part in batch] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_by_index(workers: int) -> None:
    saved = SAVED["by_index"]
    loader = ResumableDataLoader(Augmented(), 4, shuffle=True, num_workers=workers)
    assert rest(loader, saved["state"]) == saved["rest"]


@pytest.mark.parametrize(("world_size", "batch_size", "name"), [(2, 3, "rest"), (3, 2, "on_three")])
def test_of_two_ranks_on_two_and_on_three(world_size: int, batch_size: int, name: str) -> None:
    saved = SAVED["two_ranks"]
    for rank, expected in enumerate(saved[name]):
        loader = ResumableDataLoader(
            Augmented(), batch_size, order="blocks", seed=5, rank=rank, world_size=world_size
        )
        loader.load_state_dict(saved["state"])
        assert [[part.tolist() for part in batch] for batch in loader] == expected


def samples_of(batches: list[Any]) -> list[Any]:
    return sorted(sample for batch in batches for sample in zip(*batch))


@pytest.mark.parametrize("workers", [0, 2])
def test_of_a_stream(workers: int) -> None:
    saved = SAVED["stream"]
    loader = ResumableDataLoader(Texts(), 3, num_workers=workers)
    found = rest(loader, saved["state"])
    # Later releases join the last samples of the shards into whole batches.
    assert [len(letters) for letters, _ in found] == [3, 3, 3, 2]
    assert samples_of(found) == samples_of(saved["rest"])


def test_of_a_custom_sampler() -> None:
    saved = SAVED["sampler"]
    loader = ResumableDataLoader(Augmented(), 4, sampler=RandomSampler(range(23)))
    assert rest(loader, saved["state"]) == saved["rest"]
