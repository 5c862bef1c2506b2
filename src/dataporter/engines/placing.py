"""Placing: torch functions that make a batch as a whole write it directly to its slot.

A custom collate function, or a ``__getitems__``, ends in ``torch.stack``, ``torch.cat``,
``torch.zeros``, or in selecting rows: ``rows[indices]``. Copying such a result to the slot takes as
long as making it. While a batch is read or collated as a whole, a ``TorchFunctionMode`` gives these
few functions memory of the slot; their results do not differ otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from dataporter.engines.layout import Arena, is_plain_tensor
from dataporter.engines.ring import Slot

__all__ = ["Placing", "stacked"]

# The mode adds 1 us to each torch function, in which time 10 kB are copied. So results below a few
# times that are left alone, and so are batches that are not much larger.
_SMALLEST = 1 << 16  # bytes
_SMALLEST_BATCH = 1 << 18  # bytes
# The share of a batch's size that may be taken in the slot and not end up in the batch.
_MOST_WASTED = 1 / 8


class Placing:
    """The context in which a worker makes a batch; switches itself off where it gains nothing.

    The first batch is made without placing and shows how large batches are. Placing is off for good
    if intermediate results (``rows[indices].float()``) would fill the slots, or if the dataset
    keeps a tensor that lies in a slot, and with it the whole slot. If batches are converted, the
    wide batch does not end up in the slot, so it is made in scratch memory of the worker, which
    each batch reuses: for 40 MB of new memory the system takes longer than for copying them.
    """

    def __init__(self) -> None:
        self._mode = _Mode(self)
        self._thread = 0
        self._in_slot: Arena | None = None
        self._arena: Arena | None = None
        self._scratch: _Scratch | None = None
        self._converts = False
        self._is_worth_it = False
        self._is_off = False
        self._avoids_slots = False
        self._entered = False

    def begin(self, slot: Slot | None) -> Arena | None:
        """Begin a batch; returns the arena that hands out the slot's bytes."""
        self._thread = threading.get_ident()
        self._in_slot = None if slot is None or self._avoids_slots else Arena(slot)
        self._arena = self._in_slot if self._scratch is None else self._scratch.arena()
        return self._in_slot

    def end(self) -> None:
        """End the batch."""
        if self._scratch is not None and self._arena is not None:
            self._scratch.needs = max(self._scratch.needs, self._arena.wanted)
        self._in_slot = self._arena = None

    @property
    def arena(self) -> Arena | None:
        """Memory for the tensors of the batch, in the thread that makes it; None in others.

        The dataset's other threads would receive the same bytes at the same time, or bytes of the
        next batch.
        """
        return self._arena if threading.get_ident() == self._thread else None

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor for a conversion's result: in the slot, if it fits there."""
        self._converts = True
        placed = None if self._in_slot is None else self._in_slot.empty(shape, dtype)
        return torch.empty(tuple(shape), dtype=dtype) if placed is None else placed

    def __enter__(self) -> None:
        if self._is_worth_it and self._arena is not None and not self._entered:
            self._mode.__enter__()  # type: ignore[no-untyped-call]  # torch's
            self._entered = True

    def __exit__(self, *error: object) -> None:
        if self._entered:
            self._entered = False
            self._mode.__exit__(*error)  # type: ignore[no-untyped-call]  # torch's

    def learn(self, size: int, wasted: int) -> None:
        """Decide for later batches.

        Args:
            size: bytes of its slot that a batch took.
            wasted: further bytes that were requested and are not part of the batch.
        """
        if wasted > size * _MOST_WASTED:
            if self._converts and self._scratch is None:
                self._scratch = _Scratch(wasted)
            else:
                self._is_off = True
        self._is_worth_it = size + wasted >= _SMALLEST_BATCH and not self._is_off

    def switch_off(self) -> bool:
        """Make later batches without placing; returns False if that was so already."""
        was_worth_it, self._is_worth_it, self._is_off = self._is_worth_it, False, True
        return was_worth_it

    def avoid_slots(self) -> None:
        """Make nothing in a slot any more, not even stacks: the dataset keeps what it makes."""
        self._avoids_slots = True


class _Scratch:
    """Private memory of the worker, as much as making a batch needs."""

    def __init__(self, needs: int) -> None:
        self.needs = needs
        self._memory: Slot | None = None

    def arena(self) -> Arena:
        memory = self._memory
        # If the dataset keeps a part of an earlier batch, it keeps that memory to itself.
        if memory is None or memory.is_held or memory.size < self.needs:
            memory = self._memory = Slot.private(max(self.needs, 1))
        return Arena(memory)


class _Mode(TorchFunctionMode):
    def __init__(self, placing: Placing) -> None:
        super().__init__()
        self._placing = placing

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        placed, arena = _PLACED.get(func), self._placing.arena
        if placed is not None and arena is not None:
            top = arena.top
            try:
                made = placed(arena, *args, **(kwargs or {}))
            except Exception:  # the function itself reports what is wrong with its arguments
                made = None
            if made is not None:
                return made
            arena.top = top
        return func(*args, **(kwargs or {}))


def stacked(arena: Arena, samples: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    """``torch.stack`` into the arena, or None if that is not possible."""
    if dim != 0 or not _are_alike(samples):
        return None
    first = samples[0]
    out = arena.empty((len(samples), *first.shape), first.dtype)
    return None if out is None else torch.stack(tuple(samples), out=out)


def _are_alike(samples: Sequence[torch.Tensor]) -> bool:
    first = samples[0]
    return (
        set(map(type, samples)) == {torch.Tensor}
        and is_plain_tensor(first)
        and not any(sample.requires_grad for sample in samples)
        and len({(sample.dtype, sample.shape) for sample in samples}) == 1
        and not any(map(_has_channels_last, samples))
    )


def _has_channels_last(tensor: torch.Tensor) -> bool:
    """Whether torch would give the result this format, which it does not do with ``out=``."""
    if tensor.ndim == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.ndim == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d)


# ---- in place of torch's functions; None leaves the call to the function itself


def _stack(arena: Arena, tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    if len(tensors) * tensors[0].nbytes < _SMALLEST:
        return None
    return stacked(arena, tensors, dim)


def _cat(arena: Arena, tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor | None:
    first = tensors[0]
    if dim != 0 or sum(tensor.nbytes for tensor in tensors) < _SMALLEST:
        return None
    alike = all(
        type(tensor) is torch.Tensor
        and is_plain_tensor(tensor)
        and tensor.is_contiguous()
        and not _has_channels_last(tensor)
        and tensor.dtype is first.dtype
        and tensor.ndim == first.ndim > 0
        and tensor.shape[1:] == first.shape[1:]
        for tensor in tensors
    )
    length = sum(len(tensor) for tensor in tensors)
    out = arena.empty((length, *first.shape[1:]), first.dtype) if alike else None
    return None if out is None else torch.cat(tuple(tensors), out=out)


def _getitem(arena: Arena, rows: torch.Tensor, key: Any) -> torch.Tensor | None:
    if type(key) is np.ndarray:
        key = torch.from_numpy(key) if key.dtype == np.int64 else None
    elif type(key) is list:
        # A list of other types has another meaning.
        key = torch.tensor(key) if key and set(map(type, key)) == {int} else None
    if type(key) is not torch.Tensor or key.dtype is not torch.int64:
        return None
    # Twice as fast as indexing. It refuses negative numbers, which are left to the function.
    return _index_select(arena, rows, 0, key)


def _index_select(
    arena: Arena, rows: torch.Tensor, dim: int, index: torch.Tensor
) -> torch.Tensor | None:
    if dim != 0 or index.ndim != 1 or type(rows) is not torch.Tensor or not is_plain_tensor(rows):
        return None
    # Rows that lie in other memory in any order, even one over another, are copied as well.
    row = rows[:1]
    if not row.is_contiguous() or len(index) * row.nbytes < _SMALLEST:
        return None
    out = arena.empty((len(index), *rows.shape[1:]), rows.dtype)
    return None if out is None else torch.index_select(rows, 0, index, out=out)


def _filled(fill: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor | None]:
    def made(arena: Arena, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        if not set(kwargs) <= {"size", "fill_value", "dtype"}:
            return None
        like = fill(*args, **kwargs, device="meta")
        if like.nbytes < _SMALLEST or torch.get_default_device().type != "cpu":
            return None
        out = arena.empty(like.shape, like.dtype)
        return None if out is None else fill(*args, **kwargs, out=out)

    return made


def _empty(
    arena: Arena, *args: Any, dtype: torch.dtype | None = None, device: Any = None
) -> torch.Tensor | None:
    like = torch.empty(*args, dtype=dtype, device="meta")
    kind = torch.get_default_device() if device is None else torch.device(device)
    if like.nbytes < _SMALLEST or kind.type != "cpu":
        return None
    if torch.are_deterministic_algorithms_enabled():
        return None  # torch then fills uninitialised memory
    return arena.empty(like.shape, like.dtype)


_PLACED: dict[Any, Callable[..., torch.Tensor | None]] = {
    torch.stack: _stack,
    torch.cat: _cat,
    torch.concat: _cat,
    torch.concatenate: _cat,
    torch.Tensor.__getitem__: _getitem,
    torch.index_select: _index_select,
    torch.Tensor.index_select: _index_select,
    torch.empty: _empty,
    torch.zeros: _filled(torch.zeros),
    torch.ones: _filled(torch.ones),
    torch.full: _filled(torch.full),
}
