"""`memory_report`: what batches, workers and dataset hold, with DataPorter and without."""

from __future__ import annotations

import io
import mmap
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, IterableDataset

from dataporter.convert import KeyBasedDtypeConverter, leaves_of
from dataporter.datasets.rows import length_of, rows_of
from dataporter.engines import Usage
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.fetch.fetch import fetch_for, undisturbing
from dataporter.loader.loader import ResumableDataLoader
from dataporter.schedule.request import Request
from dataporter.shared.sequence import SharedSequence

__all__ = ["Held", "LeafMemory", "MemoryReport", "memory_report"]

# Objects that are looked at one by one; longer sequences are judged by so many of their elements.
_MOST_OBJECTS = 100_000
_ELEMENTS_SAMPLED = 1_000
# What is the program, and no data.
_CODE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


@dataclass(frozen=True, slots=True)
class LeafMemory:
    """A tensor or array of a batch, in bytes before and after conversion.

    Attributes:
        path: as the rules of a converter name it.
        dtype, converted: names of the dtypes.
        before, after: bytes in the batch.
    """

    path: str
    dtype: str
    converted: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that something holds, now and if torch's loader did the same work.

    Attributes:
        what: in words.
        now: bytes.
        without: bytes without DataPorter.
    """

    what: str
    now: int
    without: int


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What :func:`memory_report` found; ``print`` shows it as tables.

    Attributes:
        batch_size: samples in the batch that was looked at.
        leaves: its tensors and arrays.
        held: what is held at most while a training reads from the loader; computed from that batch,
            the loader's arguments and the dataset's objects.
        measured: what is there at this moment: ``"training"`` and ``"workers"``, proportional set
            sizes (PSS) in bytes, where the system tells them, and ``"slots"``, the memory that
            workers share, as far as a pass is under way and this process has mapped it.
    """

    batch_size: int
    leaves: tuple[LeafMemory, ...]
    held: tuple[Held, ...]
    measured: Mapping[str, int]

    @property
    def before(self) -> int:
        """Bytes of a batch as it is collated."""
        return sum(leaf.before for leaf in self.leaves)

    @property
    def after(self) -> int:
        """Bytes of a batch as it is delivered."""
        return sum(leaf.after for leaf in self.leaves)

    @property
    def now(self) -> int:
        """Bytes held in all."""
        return sum(held.now for held in self.held)

    @property
    def without(self) -> int:
        """Bytes that would be held in all without DataPorter."""
        return sum(held.without for held in self.held)

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON types."""
        return {
            "batch_size": self.batch_size,
            "batch": {
                "before": self.before,
                "after": self.after,
                "leaves": [asdict(leaf) for leaf in self.leaves],
            },
            "held": [asdict(held) for held in self.held],
            "total": {"now": self.now, "without": self.without},
            "measured": dict(self.measured),
        }

    def __str__(self) -> str:
        batch = Table(title=f"A batch of {self.batch_size} samples", title_justify="left")
        for name in ("path", "dtype", "converted"):
            batch.add_column(name)
        for name in ("before", "after", "saved"):
            batch.add_column(name, justify="right")
        for leaf in self.leaves:
            batch.add_row(
                repr(leaf.path), leaf.dtype, leaf.converted, *_compared(leaf.before, leaf.after)
            )
        batch.add_section()
        batch.add_row("all", "", "", *_compared(self.before, self.after))
        whole = Table(title="Held while training", title_justify="left")
        whole.add_column("by")
        for name in ("without DataPorter", "now", "saved"):
            whole.add_column(name, justify="right")
        for held in self.held:
            whole.add_row(held.what, *_compared(held.without, held.now))
        whole.add_section()
        whole.add_row("all", *_compared(self.without, self.now))
        text = io.StringIO()
        console = Console(file=text, width=100)
        console.print(batch)
        console.print(whole)
        if self.measured:
            shown = ", ".join(f"{name} {_size(size)}" for name, size in self.measured.items())
            console.print(f"Measured at this moment: {shown}", highlight=False)
        return text.getvalue().rstrip()


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
        LeafMemory(path, _dtype(wide), _dtype(small), _bytes_of(wide), _bytes_of(small))
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
    found = _found_in(loader.dataset)
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


# ---- what a dataset holds


class _Found(NamedTuple):
    """Bytes of what a dataset is made of, each piece counted once.

    Attributes:
        arrays: tensors, arrays, and whatever else says ``nbytes``.
        objects: Python objects, which are copied by the processes that look at them.
        shared: in SharedSequences.
        unshared: of the objects in these, if they were in lists.
    """

    arrays: int
    objects: int
    shared: int
    unshared: int


def _found_in(dataset: Any) -> _Found:
    seen: set[int] = set()
    arrays, objects, shared, unshared = 0.0, 0.0, 0.0, 0.0
    # Each with how many it stands for.
    waiting: list[tuple[Any, float]] = [(dataset, 1.0)]
    while waiting and len(seen) < _MOST_OBJECTS:
        value, weight = waiting.pop()
        key = _identity(value)
        # By the type, since to ask an object for its class may raise as well.
        if key in seen or issubclass(type(value), _CODE):
            continue
        seen.add(key)
        if issubclass(type(value), SharedSequence):
            some = [value[place] for place in _some_places(len(value))]
            shared += value.nbytes
            unshared += _found_in(some).objects * len(value) / max(1, len(some))
            continue
        try:
            held, inner = _held_in_one_piece(value), _inside(value)
        except Exception:  # attributes that raise are not ours to judge, and keep what they hold
            held, inner = None, ()
        if held is not None:
            arrays += held * weight
            continue
        objects += sys.getsizeof(value) * weight
        places = _some_places(len(inner))
        waiting += [(inner[place], weight * len(inner) / len(places)) for place in places]
    return _Found(int(arrays), int(objects), int(shared), int(unshared))


def _some_places(length: int) -> range:
    return range(0, length, max(1, length // _ELEMENTS_SAMPLED))


def _identity(value: Any) -> int:
    if issubclass(type(value), torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage().data_ptr() or id(value)
    return id(value)


def _held_in_one_piece(value: Any) -> int | None:
    """Bytes of what Python's reference counts do not reach into; 0 for what lies on a disk."""
    if isinstance(value, np.memmap | mmap.mmap):
        return 0
    if isinstance(value, torch.Tensor):
        plain = value.layout is torch.strided and not value.is_nested
        return value.untyped_storage().nbytes() if plain else _bytes_of(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        owner = None if value.base is None else _held_in_one_piece(value.base)
        return value.nbytes if owner is None else owner
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else None


def _bytes_of(leaf: Any) -> int:
    """Bytes of a tensor's or array's values, and of where they are in a sparse tensor."""
    if not isinstance(leaf, torch.Tensor) or leaf.layout in (torch.strided, torch.jagged):
        return int(leaf.nbytes)
    if leaf.layout is torch.sparse_coo:
        return int(leaf._indices().nbytes + leaf._values().nbytes)
    by_row = leaf.layout in (torch.sparse_csr, torch.sparse_bsr)
    places = (
        (leaf.crow_indices(), leaf.col_indices())
        if by_row
        else (leaf.ccol_indices(), leaf.row_indices())
    )
    return int(leaf.values().nbytes + sum(place.nbytes for place in places))


def _inside(value: Any) -> Sequence[Any]:
    # No other mapping: its values may lie on a disk until they are asked for.
    if isinstance(value, dict | types.MappingProxyType):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.ravel().tolist()  # type: ignore[no-any-return]  # of objects
    inner = list(getattr(value, "__dict__", {}).values())
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return inner + [getattr(value, name) for name in slots if hasattr(value, name)]


# ---- in words


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype).removeprefix("torch.")


def _compared(before: int, after: int) -> tuple[str, str, str]:
    saved = f"{(1 - after / before):.1%}" if before else ""
    return _size(before), _size(after), saved


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    if size < 1_000_000:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:,.1f} MB"
