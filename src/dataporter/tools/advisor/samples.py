"""Samples: reads some samples of a dataset, or batches of a loader, without moving its position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import getitem
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from dataporter.datasets.rows import length_of, rows_of
from dataporter.errors import ConfigurationError, SampleError, UnsupportedDatasetError, add_note
from dataporter.fetch.failure import failure_of
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.orders import ShuffledOrder
from dataporter.seeding.generators import global_state, isolated_generators, seed_generators
from dataporter.seeding.hashing import fold

__all__ = ["Looked", "is_batched", "look"]

_INDICES_SHOWN = 8


@dataclass(slots=True)
class Looked:
    """A summary of the samples read.

    Attributes:
        length: samples in the dataset, or None if it has no length.
        samples: samples read.
        left_out: samples that raised an error and that the loader's ``on_error=`` leaves out or
            replaces by others.
        is_all: whether these were all samples of the dataset.
        draws: whether reading drew from a global random generator, so that samples may differ next
            time.
    """

    length: int | None
    samples: int = 0
    left_out: int = 0
    is_all: bool = False
    draws: bool = False


def look(source: Any, samples: int, *, seed: int, visit: Callable[[Any], None]) -> Looked:
    """Pass some samples of a dataset, or batches of a loader, to ``visit`` one by one.

    The global random generators are restored; a loader's samplers and generators are not used.

    Args:
        source: a dataset that can be indexed, an iterable one, or a ``DataLoader``.
        samples: the largest number of samples to read.
        seed: determines which ones, if there are more; an iterable dataset gives its first ones.
        visit: called with each sample, or with each batch of a loader, in the loader's batch size
            and before its ``converter``.

    Raises:
        UnsupportedDatasetError: the source is none of these, or has no length.
        ConfigurationError: there are no samples.
        SampleError: all samples failed, or one raised a ``StopIteration``.
        Exception: raised by a sample or the collate function, with a note that names the indices.
    """
    batches = _batches_of(source)
    rows = rows_of(source.dataset if isinstance(source, DataLoader) else source)
    with isolated_generators():
        seed_generators(fold(seed))
        before = global_state()
        if _is_iterable(rows):
            looked = _look_through(rows, samples, batches, visit)
        else:
            looked = _look_at(rows, samples, seed, batches, visit)
        looked.draws = global_state() != before
    if looked.left_out and not looked.samples:
        raise SampleError(
            f"on_error={batches.on_error!r} left no samples, since all {looked.left_out} samples "
            "read failed: correct the dataset, or pass on_error='raise' to see the error"
        )
    if not looked.samples:
        raise ConfigurationError(
            f"dataset of type {type(rows).__name__} has no samples: expected at least one"
        )
    return looked


def is_batched(source: Any) -> bool:
    """Whether the source is a loader that makes batches, rather than yield single samples."""
    return isinstance(source, DataLoader) and not (
        source.batch_size is None and source.batch_sampler is None
    )


def _is_iterable(rows: Any) -> bool:
    if isinstance(rows, IterableDataset):
        return True
    # Reading would move the position of a source with a state, such as a prefetcher.
    return (
        hasattr(rows, "__iter__")
        and not hasattr(rows, "__getitem__")
        and not hasattr(rows, "state_dict")
    )


@dataclass(frozen=True, slots=True)
class _Batches:
    """How a loader makes batches.

    Attributes:
        size: samples in a batch.
        collate: makes a batch of a list of samples.
        reads_together: whether ``__getitems__`` is called if the dataset has it.
        on_error: see :class:`~dataporter.ResumableDataLoader`.
    """

    size: int = 1
    collate: Callable[[Any], Any] = lambda samples: samples[0]
    reads_together: bool = False
    on_error: OnError = "raise"


def _batches_of(source: Any) -> _Batches:
    if not isinstance(source, DataLoader):
        if not _is_iterable(source) and not hasattr(source, "__getitem__"):
            raise UnsupportedDatasetError(
                f"{type(source).__name__}: expected a dataset with __len__ and __getitem__, a dict "
                "of arrays, an IterableDataset, or a DataLoader over one of them; instead of an "
                "object that wraps a loader, pass the loader"
            )
        return _Batches()
    on_error: OnError = getattr(source, "on_error", "raise")
    collate: Callable[[Any], Any] = source.collate_fn
    size = source.batch_size or getattr(source.batch_sampler, "batch_size", None)
    if not is_batched(source):
        return _Batches(1, lambda samples: collate(samples[0]), False, on_error)
    # If only a sampler knows the batch sizes, other samples may not collate with one another.
    return _Batches(size or 1, collate, on_error == "raise", on_error)


def _look_at(
    rows: Any, samples: int, seed: int, batches: _Batches, visit: Callable[[Any], None]
) -> Looked:
    length = length_of(rows)
    looked = Looked(length, is_all=length <= samples)
    chosen = np.arange(min(samples, length))
    if not looked.is_all:
        chosen = ShuffledOrder().indices(chosen, seed=seed, epoch=0, dataset_length=length)
    for start in range(0, len(chosen), batches.size):
        indices = chosen[start : start + batches.size].tolist()
        read = _read(rows, indices, batches)
        looked.left_out += len(indices) - len(read)
        if read:
            visit(_collated(read, batches, f"the samples with indices {_shown(indices)}"))
            looked.samples += len(read)
    looked.is_all = looked.is_all and not looked.left_out
    return looked


def _read(rows: Any, indices: list[int], batches: _Batches) -> list[Any]:
    if batches.reads_together and callable(getattr(rows, "__getitems__", None)):
        where = f"the samples with indices {_shown(indices)}"
        return list(_attempt(partial(rows.__getitems__, indices), where))
    read = []
    for index in indices:
        try:
            sample = _attempt(partial(getitem, rows, index), f"the sample with index {index}")
            read.append(sample)
        except Exception as error:
            if batches.on_error == "raise":
                raise
            if callable(batches.on_error):
                failure = failure_of(error, index, None, epoch=0, step=0, position=index)
                read.append(substitute_of(batches.on_error)(error, index, failure))
    return read


def _look_through(
    rows: Any, samples: int, batches: _Batches, visit: Callable[[Any], None]
) -> Looked:
    looked = Looked(None)
    stream = _attempt(partial(iter, rows), "the first sample")
    # Does not read one more sample to check for the end: that may take long.
    for read in _taken(stream, samples, batches.size):
        where = f"{len(read)} samples from number {looked.samples} on"
        visit(_collated(read, batches, where))
        looked.samples += len(read)
    looked.is_all = looked.samples < samples
    return looked


def _taken(stream: Iterator[Any], samples: int, size: int) -> Iterator[list[Any]]:
    taken = 0
    while taken < samples:
        read: list[Any] = []
        try:
            read.extend(islice(stream, min(size, samples - taken)))
        except Exception as error:
            add_note(error, f"while reading the sample after the first {taken + len(read)}")
            raise
        if not read:
            return
        taken += len(read)
        yield read


def _collated(read: list[Any], batches: _Batches, where: str) -> Any:
    try:
        return batches.collate(read)
    except Exception as error:
        add_note(error, f"while collating {where}")
        raise


def _attempt(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except StopIteration as error:
        raise SampleError(
            f"the dataset raised {error!r} for {where}, which would end an epoch silently: raise "
            "an IndexError or a RuntimeError there"
        ) from error
    except Exception as error:
        add_note(error, f"while reading {where}")
        raise


def _shown(indices: list[int]) -> str:
    more = ", ..." if len(indices) > _INDICES_SHOWN else ""
    return f"[{', '.join(map(str, indices[:_INDICES_SHOWN]))}{more}]"
