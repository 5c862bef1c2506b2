"""The contestants: the same shuffled batches from each library, in its default setting."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from dataporter import ResumableDataLoader, create_resumable_dataloader

# On import, Grain looks for jax and logs that it is missing.
logging.getLogger("absl").setLevel(logging.ERROR)
import grain  # noqa: E402  # once its log is quiet

# At each start, SPDL logs the version of its pipeline.
logging.getLogger("spdl").setLevel(logging.ERROR)
import spdl.dataloader  # noqa: E402  # once its log is quiet

# With every loader, torchdata 0.11 calls a function that torch 2.13 has deprecated.
warnings.filterwarnings("ignore", message="'set_vital' is deprecated")

__all__ = [
    "BATCH_SIZE",
    "GRAIN",
    "OURS",
    "SPDL",
    "TORCH",
    "TORCHDATA",
    "grain_loader",
    "our_loader",
    "spdl_loader",
    "spdl_threads",
    "torch_loader",
    "torchdata_loader",
]

OURS = "DataPorter"
TORCH = "torch DataLoader"
TORCHDATA = "torchdata StatefulDataLoader"
GRAIN = "Grain"
SPDL = "SPDL"

BATCH_SIZE = 256
# Grain and SPDL have no random seed: they take one, or a generator.
_SEED = 1


def our_loader(
    dataset: Any, batch_size: int = BATCH_SIZE, **arguments: Any
) -> ResumableDataLoader[Any]:
    """The line that people write first. ``arguments`` are what all contestants are given."""
    return create_resumable_dataloader(dataset, batch_size=batch_size, shuffle=True, **arguments)


def torch_loader(dataset: Any, batch_size: int = BATCH_SIZE, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, **arguments)


def torchdata_loader(
    dataset: Any, batch_size: int = BATCH_SIZE, **arguments: Any
) -> StatefulDataLoader[Any]:
    return StatefulDataLoader(dataset, batch_size=batch_size, shuffle=True, **arguments)


def grain_loader(source: Any, batch_size: int = BATCH_SIZE, *, num_workers: int = 0) -> Any:
    """Grain's dataset pipeline: source, shuffle, batch; it never ends, epoch follows epoch.

    Without workers its reader threads are off: no other loader reads beside the training there,
    and they would read ahead while the others have their turn.
    """
    options = grain.ReadOptions() if num_workers else grain.ReadOptions(num_threads=0)
    batches = (
        grain.MapDataset.source(source)
        .seed(_SEED)
        .shuffle()
        .repeat()
        .batch(batch_size)
        .to_iter_dataset(options)
    )
    if num_workers == 0:
        return batches
    return batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))


def spdl_loader(
    dataset: Any, batch_size: int = BATCH_SIZE, *, num_workers: int, **arguments: Any
) -> Iterable[Any]:
    """SPDL's loader for map-style datasets, with worker processes, in the sampler's order."""
    return spdl.dataloader.get_pytorch_dataloader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=num_workers,
        in_order=True,
        generator=torch.Generator().manual_seed(_SEED),
        **arguments,
    )


def spdl_threads(dataset: Any, batch_size: int, *, num_threads: int) -> Iterable[Any]:
    """SPDL's own pipeline: threads that read samples, in the sampler's order, and stack them."""
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(_SEED))
    return spdl.dataloader.DataLoader(
        sampler,
        preprocessor=dataset.__getitem__,
        batch_size=batch_size,
        drop_last=True,
        aggregator=torch.stack,
        num_threads=num_threads,
        output_order="input",
    )
