"""The data of a language model: source text of the standard library, cropped at random."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.frameworks.subject import LENGTH

__all__ = ["CropStream", "Crops", "build_language_model"]

TEXT = Path(textwrap.__file__).read_bytes()
WINDOW, CROP = 40, 24  # bytes


def build_language_model() -> Any:
    """A very small GPT-2 with dropout, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = GPT2Config(
            vocab_size=256, n_positions=CROP, n_embd=16, n_layer=1, n_head=2, use_cache=False
        )
        return GPT2LMHeadModel(config)


def crop(index: int) -> dict[str, Any]:
    """A random crop of the window of an index, in bytes."""
    start = index * (len(TEXT) - WINDOW) // LENGTH + int(torch.randint(WINDOW - CROP, ()))
    ids = torch.tensor(list(TEXT[start : start + CROP]))
    return {"id": index, "input_ids": ids, "labels": ids.clone()}


class Crops(Dataset[dict[str, Any]]):
    """The crops, by index."""

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= LENGTH:
            raise IndexError(index)  # some samplers iterate over it
        return crop(index)


class CropStream(IterableDataset[dict[str, Any]]):
    """The crops in sequence, as from a file, with a state."""

    def __init__(self) -> None:
        self._next = 0

    def __iter__(self) -> Any:
        while self._next < LENGTH:
            self._next += 1
            yield crop(self._next - 1)
        self._next = 0

    def state_dict(self) -> dict[str, int]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._next = state["next"]
