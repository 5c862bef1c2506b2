"""The datasets of the benchmarks: the same rows in the forms that users have them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

__all__ = ["LENGTH", "BatchedDicts", "Dicts", "Indices", "NumpyDicts", "NumpyPairs", "pairs"]

LENGTH = 200_000
FEATURES = 64


def _columns(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(length, FEATURES, generator=generator)
    return features, torch.randint(0, 10, (length,), generator=generator)


def pairs(length: int = LENGTH) -> TensorDataset:
    """Rows as (64 float32, int64), in torch's ``TensorDataset``."""
    return TensorDataset(*_columns(length))


class Dicts:
    """Rows as dicts, one ``__getitem__`` each: the form of most users' datasets."""

    def __init__(self, length: int = LENGTH) -> None:
        self.features, self.labels = _columns(length)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.features[index], "label": int(self.labels[index])}


class BatchedDicts(Dicts):
    """The same rows, which can also be read a batch at a time."""

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        rows = torch.as_tensor(indices)
        features, labels = self.features[rows], self.labels[rows].tolist()
        return [{"x": x, "label": label} for x, label in zip(features, labels, strict=True)]


class NumpyPairs:
    """Rows as pairs of NumPy values, which Grain reads best, because it batches with NumPy."""

    def __init__(self, length: int = LENGTH) -> None:
        features, labels = _columns(length)
        self.features, self.labels = features.numpy(), labels.numpy()

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Any:
        return self.features[index], self.labels[index]


class NumpyDicts(NumpyPairs):
    """Rows as dicts of NumPy values, for Grain."""

    def __getitem__(self, index: int) -> Any:
        return {"x": self.features[index], "label": int(self.labels[index])}


class Indices:
    """A dataset of any length that holds nothing: each sample is its own index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return index


class NumpyIndices(Indices):
    """The same for Grain."""

    def __getitem__(self, index: int) -> Any:
        return np.int64(super().__getitem__(index))
