"""`memory_report`: what batches, workers and dataset hold, with DataPorter and without."""

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
from dataporter.fetch.fetch import fetch_for, undisturbing
from dataporter.loader.loader import ResumableDataLoader
from dataporter.schedule.request import Request
from dataporter.tools.memory_report.dataset import bytes_of, found_in
from dataporter.tools.memory_report.report import Held, LeafMemory, MemoryReport

__all__ = ["memory_report"]


def memory_report(loader: DataLoader[Any]) -> MemoryReport:
    """Look at a batch, and say what the loader holds with it and without DataPorter.

    Reads the samples of the batch that comes next (of a plain ``DataLoader`` the first rows) in
    this process; the loader's position and the global random generators stay as they are.

    What a dataset holds is estimated: of long sequences about a thousand elements are looked at and
    stand for the others, and of all objects the first hundred thousand that are found.

    What is held without DataPorter is computed: torch's workers prefetch ``prefetch_factor``
    batches each, unconverted, and Python objects of a dataset end up in each of them, since reading
    an object writes its reference count (https://github.com/pytorch/pytorch/issues/13246).

    Args:
        loader: a :class:`~dataporter.ResumableDataLoader`, or one of torch's.

    Returns:
        The report: ``print`` it, or ask for ``to_dict()``.

    Raises:
        UnsupportedDatasetError: (a ``TypeError``) the dataset is an ``IterableDataset``, from which
            nothing can be read without moving it.
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
            f"dataset of type {type(loader.dataset).__name__} is an IterableDataset: no batch "
            "can be read from it without moving it; convert one batch of yours and compare"
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
        steps = len(loader)
        indices: Any = ()
        if steps:
            indices = loader.samples_at(loader.epoch, min(loader.step, steps - 1))
    else:
        # A sampler may have drawn from a generator before it gives its first index.
        indices = np.arange(min((loader.batch_size or 1) if batched else 1, length_of(rows)))
    if not len(indices):
        raise ConfigurationError(
            f"the loader makes no batch of its dataset of {length_of(rows):,} samples, so "
            "there is none to look at; give it more, a smaller batch_size, or drop_last=False"
        )
    positions = np.arange(len(indices))
    fetch = undisturbing(
        fetch_for(rows, loader.collate_fn, batched=batched, seeds_each="nothing", on_error="raise")
    )
    return fetch(Request(0, 0, 0, positions, indices)).batch, len(indices)


def _batches_held(
    loader: DataLoader[Any], before: int, after: int, converter: KeyBasedDtypeConverter | None
) -> Iterator[Held]:
    workers = loader.num_workers
    if workers:
        ahead = workers * (loader.prefetch_factor or 2)
        yield Held(f"{ahead} batches ahead", ahead * after, ahead * before)
        # Collated where it is sent from, but for one that is converted on its way there.
        making = 0 if converter is None else workers * before
        yield Held("batches being made", making, workers * before)
    yield Held("the batch in use", after, before)
    if loader.pin_memory and torch.accelerator.is_available():
        yield Held("pinned memory", after, before)


def _dataset_held(loader: DataLoader[Any]) -> Iterator[Held]:
    found = found_in(loader.dataset)
    forks = getattr(loader, "worker_kind", "process") == "process"
    copies = loader.num_workers if forks else 0
    if found.arrays:
        yield Held("the dataset's arrays", found.arrays, found.arrays)
    if found.shared:
        yield Held("the dataset's SharedSequences", found.shared, found.unshared)
    if found.objects:
        yield Held("the dataset's objects", found.objects, found.objects)
    if copies and (found.objects or found.unshared):
        now = copies * found.objects
        yield Held("copies of objects in workers", now, now + copies * found.unshared)


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
