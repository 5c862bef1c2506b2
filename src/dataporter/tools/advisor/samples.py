"""Samples: reads some samples of a dataset, or batches of a loader, without moving its position."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from operator import getitem
from typing import Any

import numpy as np
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from dataporter._torch import index_sampler
from dataporter.datasets.rows import length_if_any, length_of, rows_of
from dataporter.errors import ConfigurationError, SampleError, UnsupportedDatasetError, add_note
from dataporter.fetch.collate import collate_of
from dataporter.fetch.failure import failure_of
from dataporter.fetch.on_error import OnError, substitute_of
from dataporter.loader.loader import ResumableDataLoader
from dataporter.orders import ShuffledOrder
from dataporter.schedule.sampler_parts import parts_of_sampler, shared_by
from dataporter.seeding.generators import isolated_generators, saved_generators, seed_generators
from dataporter.seeding.hashing import fold
from dataporter.seeding.samples import generators_handed_out
from dataporter.tools.advisor.streams import (
    Unmoved,
    batches_of_loader,
    batches_of_stream,
    unmoved,
)

__all__ = ["Looked", "is_batched", "look"]

_INDICES_SHOWN = 8
# Of a custom sampler, which may have no end.
_MOST_DRAWN = 4096


@dataclass(slots=True)
class Looked:
    """A summary of the samples read.

    Attributes:
        length: samples in the dataset, or None if it has no length.
        samples: samples read.
        left_out: samples that raised an error and that the loader's ``on_error=`` leaves out or
            replaces by others.
        is_all: whether these were all samples of the dataset.
        draws: whether reading drew random numbers, so that samples may differ next time.
        may_move: whether reading may have moved the dataset, which cannot be copied.
    """

    length: int | None
    samples: int = 0
    left_out: int = 0
    is_all: bool = False
    draws: bool = False
    may_move: bool = False


def look(
    source: Any, samples: int, *, seed: int, visit: Callable[[Any], None], moves: bool = False
) -> Looked:
    """Pass some samples of a dataset, or batches of a loader, to ``visit`` one by one.

    The global random generators are restored, and so is the state of a stream. The indices of a
    custom sampler come from a copy of it; a loader's other samplers and generators are not used.

    Args:
        source: a dataset that can be indexed, an iterable one, or a ``DataLoader``.
        samples: the largest number of samples to read.
        seed: determines which ones, if there are more; an iterable dataset gives its first ones.
        visit: called with each sample, or with each batch of a loader, in the loader's batch size
            and before its ``converter``.
        moves: whether reading may move a stream, since this process is not the user's.

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
        before = saved_generators(), generators_handed_out()
        if _is_iterable(rows):
            stream = nullcontext(Unmoved(rows, may_move=False)) if moves else unmoved(rows)
            with stream as read:
                looked = _look_through(source, read, samples, batches, visit)
        else:
            looked = _look_at(source, rows, samples, seed, batches, visit)
        looked.draws = (saved_generators(), generators_handed_out()) != before
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
    if isinstance(source, ResumableDataLoader) and collate is default_collate:
        collate = collate_of(source.dataset)
    # If only a sampler knows the batch sizes, other samples may not collate with one another.
    return _Batches(size or 1, collate, on_error == "raise", on_error)


def _look_at(
    source: Any,
    rows: Any,
    samples: int,
    seed: int,
    batches: _Batches,
    visit: Callable[[Any], None],
) -> Looked:
    drawn = _drawn(source, rows)
    if drawn is None:
        looked, chosen = _chosen(length_of(rows), samples, seed, batches.size)
    else:
        looked, chosen = _chosen_of(drawn, length_if_any(rows), samples, seed)
    for indices in chosen:
        read = _read(rows, indices, batches)
        looked.left_out += len(indices) - len(read)
        if read:
            visit(_collated(read, batches, f"the samples with indices {_shown(indices)}"))
            looked.samples += len(read)
    looked.is_all = looked.is_all and not looked.left_out
    return looked


def _chosen(length: int, samples: int, seed: int, size: int) -> tuple[Looked, Iterator[list[int]]]:
    """Batches of indices from the whole dataset, none of them twice."""
    is_all = length <= samples
    chosen = np.arange(min(samples, length))
    if not is_all:
        chosen = ShuffledOrder().indices(chosen, seed=seed, epoch=0, dataset_length=length)
    parts = (chosen[start : start + size].tolist() for start in range(0, len(chosen), size))
    return Looked(length, is_all=is_all), parts


def _chosen_of(
    drawn: list[list[Any]], length: int | None, samples: int, seed: int
) -> tuple[Looked, Iterator[list[Any]]]:
    """Some of the batches of indices that a custom sampler has given."""
    order = np.arange(len(drawn))
    if sum(map(len, drawn)) > samples:
        order = ShuffledOrder().indices(order, seed=seed, epoch=0, dataset_length=len(drawn))
    chosen, left = [], samples
    for number in order.tolist():
        if not left:
            break
        chosen.append(drawn[number][:left])
        left -= len(chosen[-1])
    # An epoch of the sampler is all there is only if no other epoch can have more.
    found = {index for part in chosen for index in part if isinstance(index, Hashable)}
    return Looked(length, is_all=len(found) == length), iter(chosen)


def _drawn(source: Any, rows: Any) -> list[list[Any]] | None:
    """The first batches of indices of a loader's custom sampler; None: it has none.

    The sampler may know what no length says: which samples to leave out, or keys of a dataset
    without a length. One that cannot be copied is not used.
    """
    if not isinstance(source, DataLoader) or not _has_custom_sampler(source):
        return None
    batched = is_batched(source)
    given = index_sampler(source) if batched else source.sampler
    # A copy shares the data and nothing else.
    shared = (source.dataset, rows, *shared_by(parts_of_sampler(given)))
    try:
        copied: Any = copy.deepcopy(given, {id(one): one for one in shared})
    except Exception:  # whatever the user's classes raise
        return None
    drawn = islice(copied, _MOST_DRAWN)
    return [list(indices) for indices in drawn] if batched else [[index] for index in drawn]


def _has_custom_sampler(loader: DataLoader[Any]) -> bool:
    if isinstance(loader, ResumableDataLoader):
        return loader.order is None
    kinds = (SequentialSampler, RandomSampler)
    batched = loader.batch_sampler is not None
    return type(loader.sampler) not in kinds or (
        batched and type(loader.batch_sampler) is not BatchSampler
    )


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
    source: Any, read: Unmoved, samples: int, batches: _Batches, visit: Callable[[Any], None]
) -> Looked:
    looked = Looked(None, is_all=True, may_move=read.may_move)
    if isinstance(source, ResumableDataLoader):
        made, least = batches_of_loader(source, read.stream, samples), batches.size
    else:
        made, least = batches_of_stream(read.stream, samples, batches.size, batches.collate), 1
    for batch, count, left_out in made:
        visit(batch)
        looked.samples += count
        looked.left_out += left_out
        # Does not read one more sample to check for the end: that may take long.
        if looked.samples + least > samples:
            looked.is_all = False
            break
    looked.is_all = looked.is_all and not looked.left_out
    return looked


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
