"""The subject of all trainings: digits with noise, a small model, and the three loaders."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

__all__ = [
    "BATCH_SIZE",
    "EPOCHS",
    "LENGTH",
    "LOADERS",
    "SEED",
    "Digits",
    "build_loader",
    "build_loader_of_rank",
    "build_model",
    "set_epoch_of",
]

LENGTH, BATCH_SIZE, EPOCHS = 90, 8, 3  # 12 batches an epoch, of which the last has 2 samples
LOADERS = ("dataporter", "torch", "torchdata")
SEED = 5


class Digits(Dataset[dict[str, Any]]):
    """Handwritten digits, augmented with noise from torch's default generator."""

    def __init__(self) -> None:
        rows = read_digits()
        self.pixels = torch.tensor(rows[:, :-1] / 16, dtype=torch.float32)
        self.labels = torch.tensor(rows[:, -1].astype(np.int64))

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = torch.randn(64) / 10
        return {"id": index, "pixels": self.pixels[index] + noise, "label": self.labels[index]}


def read_digits() -> Any:
    """scikit-learn's first digits, float64 of (LENGTH, 64 + 1): pixels of 0..16 and the label.

    Reads its file: importing the library takes seconds, and hundreds of programs start with this.
    """
    found = find_spec("sklearn")
    assert found is not None
    assert found.submodule_search_locations is not None
    (folder,) = found.submodule_search_locations
    with gzip.open(Path(folder, "datasets", "data", "digits.csv.gz")) as file:
        return np.loadtxt(file, delimiter=",", max_rows=LENGTH)


def build_loader(kind: str, **arguments: Any) -> DataLoader[Any]:
    """A loader of a kind, as its users build one.

    Args:
        kind: one of ``LOADERS``.
        **arguments: of ``torch.utils.data.DataLoader``.
    """
    arguments = {"batch_size": BATCH_SIZE, "shuffle": True, **arguments}
    if kind == "dataporter":
        from dataporter import ResumableDataLoader

        return ResumableDataLoader(Digits(), seed=SEED, **arguments)
    # Careful users of the other loaders seed the order as well.
    arguments["generator"] = torch.Generator().manual_seed(SEED)
    if kind == "torchdata":
        from torchdata.stateful_dataloader import StatefulDataLoader

        return StatefulDataLoader(Digits(), **arguments)
    return DataLoader(Digits(), **arguments)


def build_loader_of_rank(
    kind: str, rank: int, world_size: int, **arguments: Any
) -> DataLoader[Any]:
    """A loader of one rank, sharded as its users do where no framework does.

    Args:
        kind: one of ``LOADERS``. ``"dataporter"`` finds its world itself.
        **arguments: of ``torch.utils.data.DataLoader``.
    """
    if kind == "dataporter" or world_size == 1:
        return build_loader(kind, **arguments)
    sampler_of: Any = DistributedSampler
    if kind == "torchdata":
        from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

        sampler_of = StatefulDistributedSampler
    sampler = sampler_of(Digits(), world_size, rank, shuffle=True, seed=SEED)
    return build_loader(kind, shuffle=False, sampler=sampler, **arguments)


def set_epoch_of(loader: Any, epoch: int) -> None:
    """Set a distributed sampler's epoch, as torch's documentation asks; others need none."""
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch)


def build_model() -> nn.Module:
    """The same weights each time; (batch, 64) to (batch, 10)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
