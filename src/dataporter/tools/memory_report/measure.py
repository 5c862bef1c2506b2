"""`memory_report`: the memory of batches, workers and dataset, with DataPorter and without."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from dataporter.convert import KeyBasedDtypeConverter, leaves_of
from dataporter.datasets.rows import length_of, rows_of
from dataporter.engines import Usage
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.fetch.fetch import fetch_for
from dataporter.loader.loader import ResumableDataLoader
from dataporter.schedule.request import Request
from dataporter.tools.memory_report.dataset import bytes_of, dataset_memory
from dataporter.tools.memory_report.report import Held, LeafMemory, MemoryReport

__all__ = ["memory_report"]


def memory_report(loader: DataLoader[Any]) -> MemoryReport:
    """Measure one batch, and compute the memory a training needs with and without DataPorter.

    Reads the samples of the next batch (of a plain ``DataLoader``, the first rows) in this process.
    The loader's position and the global random generators stay as they are.

    The dataset's memory is an estimate: of a long sequence, about a thousand elements stand for
    all, and the walk over its objects ends after a hundred thousand.

    The memory without DataPorter is computed. Each of torch's workers prefetches
    ``prefetch_factor`` unconverted batches, and copies the dataset's Python objects page by page,
    since reading an object writes its reference count
    (https://github.com/pytorch/pytorch/issues/13246).

    Args:
        loader: a :class:`~dataporter.ResumableDataLoader` or a ``torch.utils.data.DataLoader``.

    Returns:
        The report: ``print`` it, or call ``to_dict()``.

    Raises:
        UnsupportedDatasetError: (a ``TypeError``) the dataset is an ``IterableDataset``, and
            reading a batch from it would move it.
        LossyConversionError: (a ``ValueError``) the loader's converter would change a value.
        ConfigurationError: (a ``ValueError``) the loader has no batches.

    Example:
        >>> labels = torch.arange(1000)
        >>> loader = ResumableDataLoader({"label": labels}, 100, converter={"label": "int16"})
        >>> report = memory_report(loader)
        >>> report.before, report.after
        (800, 200)
    """
    if isinstance(loader.dataset, IterableDataset):
        raise UnsupportedDatasetError(
            f"a {type(loader.dataset).__name__} is an IterableDataset, and reading a batch from it "
            "would move it: expected a map-style dataset; for a stream, compare a batch before and "
            "after KeyBasedDtypeConverter.convert_batch"
        )
    batch, samples = _next_batch(loader)
    converter = getattr(loader, "converter", None)
    narrow = batch if converter is None else converter.conversion.batch(batch).batch
    leaves = tuple(
        LeafMemory(path, _dtype(wide), _dtype(small), bytes_of(wide), bytes_of(small))
        for (path, wide), (_, small) in zip(leaves_of(batch), leaves_of(narrow), strict=True)
    )
    before, after = sum(leaf.before for leaf in leaves), sum(leaf.after for leaf in leaves)
    held = [*_batches_held(loader, before, after, converter), *_dataset_held(loader)]
    return MemoryReport(samples, leaves, tuple(held), _measured(loader))


def _next_batch(loader: DataLoader[Any]) -> tuple[Any, int]:
    rows = rows_of(loader.dataset)
    batched = loader.batch_sampler is not None
    if isinstance(loader, ResumableDataLoader):
        steps, setup = len(loader), loader.setup
        indices: Any = ()
        if steps and setup.is_mixed:
            rows = setup.rows
            indices = setup.lookup.samples_at(setup.beginning(0), 0, loader.seed)
        elif steps:
            indices = loader.samples_at(loader.epoch, min(loader.step, steps - 1))
    else:
        # Not the sampler's: it may draw from a generator before it gives its first index.
        indices = np.arange(min((loader.batch_size or 1) if batched else 1, length_of(rows)))
    if not len(indices):
        raise ConfigurationError(
            f"the loader makes no batch of its dataset of {length_of(rows):,} samples: give it "
            "more samples, a smaller batch_size, or drop_last=False"
        )
    positions = np.arange(len(indices))
    fetch = fetch_for(
        rows, loader.collate_fn, batched=batched, seeds_each="sample", on_error="raise"
    )
    return fetch(Request(0, 0, 0, positions, indices)).batch, len(indices)


def _batches_held(
    loader: DataLoader[Any], before: int, after: int, converter: KeyBasedDtypeConverter | None
) -> Iterator[Held]:
    workers = loader.num_workers
    if workers:
        ahead = workers * (loader.prefetch_factor or 2)
        yield Held(f"{ahead} batches ahead", ahead * after, ahead * before)
        # Ours collate straight into shared memory, unless a converter reads the batch first.
        making = 0 if converter is None else workers * before
        yield Held("batches being made", making, workers * before)
    yield Held("the batch in use", after, before)
    if loader.pin_memory and torch.accelerator.is_available():
        yield Held("pinned memory", after, before)


def _dataset_held(loader: DataLoader[Any]) -> Iterator[Held]:
    memory = dataset_memory(loader.dataset)
    forks = getattr(loader, "worker_kind", "process") == "process"
    copies = loader.num_workers if forks else 0
    if memory.arrays:
        yield Held("the dataset's arrays", memory.arrays, memory.arrays)
    if memory.shared:
        yield Held("the dataset's SharedSequences", memory.shared, memory.unshared)
    if memory.objects:
        yield Held("the dataset's objects", memory.objects, memory.objects)
    if copies and (memory.objects or memory.unshared):
        now = copies * memory.objects
        yield Held("copies of objects in workers", now, now + copies * memory.unshared)


def _measured(loader: DataLoader[Any]) -> dict[str, int]:
    usage = loader.usage() if isinstance(loader, ResumableDataLoader) else Usage()
    measured = {}
    training = _proportional_set_size(os.getpid())
    if training is not None:
        measured["training"] = training
    workers = [_proportional_set_size(pid) for pid in usage.workers]
    if workers and None not in workers:
        measured["workers"] = sum(size or 0 for size in workers)
    if usage.workers:
        measured["slots"] = usage.slots
    return measured


def _proportional_set_size(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            lines = [line for line in file if line.startswith("Pss:")]
    except OSError:
        return None
    return int(lines[0].split()[1]) * 1024 if lines else None


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype).removeprefix("torch.")
