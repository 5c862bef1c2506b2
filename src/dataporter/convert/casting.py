"""Casting: a tensor to a narrower dtype, checked in the same pass for values that would change.

The source is cast block by block, and each block is checked while it is in the processor's cache.
The check compares one number: the largest value of whole numbers in the source, or the largest bit
pattern of the cast floats. Only if that is inconclusive is each element compared with its cast
(C12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.convert.changes import PARTS, changes_in, exact_whole_numbers, real, saturated
from dataporter.convert.dense import dense, index_of, seen_as

__all__ = [
    "BLOCK",
    "LARGE",
    "Empty",
    "Loss",
    "OnLoss",
    "cast",
    "narrowest",
    "new",
    "widened",
]

OnLoss = Literal["error", "saturate", "wrap"]
# Makes an uninitialised, contiguous tensor on the CPU: with torch.empty, or in a worker's slot.
Empty = Callable[[Sequence[int], torch.dtype], torch.Tensor]

# Bytes: from this size, it matters where a result gets its memory.
LARGE = 1 << 22
# Elements: in the widest dtype, half of a core's usual L2 cache.
BLOCK = 1 << 17
# Narrow floats, in which large values become infinite: the bits of infinity, and integers of the
# same width.
_INFINITE: dict[torch.dtype, tuple[int, torch.dtype, Any]] = {
    torch.float16: (0x7C00, torch.int16, np.uint16),
    torch.bfloat16: (0x7F80, torch.int16, np.uint16),
    torch.float32: (0x7F80_0000, torch.int32, np.uint32),
}
# Whole numbers that all of torch supports, and those that most of it does not compute with.
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
_NUMBERS = frozenset({torch.bool, *_WHOLE, *_UNSIGNED})
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_UNSIGNED_NUMBERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_largest = np.maximum.reduce
_COMPLEX = (torch.complex64, torch.complex128)


@dataclass(frozen=True, slots=True)
class Loss:
    """The first value of a tensor that a cast would change.

    Attributes:
        index: of the element, one number for each dimension.
        value: as a Python number.
        becomes: the value after the cast.
        fits: the smallest dtype in which no value of the tensor changes, or None.
    """

    index: tuple[int, ...]
    value: Any
    becomes: Any
    fits: torch.dtype | None


def new(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An :data:`Empty` that takes its memory from torch."""
    return torch.empty(tuple(shape), dtype=dtype)


def cast(
    source: torch.Tensor, dtype: torch.dtype, *, on_loss: OnLoss, rtol: float | None, empty: Empty
) -> torch.Tensor | Loss:
    """Cast a tensor, or return the first loss that ``on_loss="error"`` forbids.

    Whole numbers and booleans must keep their value, also as floats, unless ``rtol`` is given.
    Floats may be rounded (if ``rtol`` is given, by at most ``rtol`` times their size), but finite
    ones must stay finite. ``"saturate"`` takes the nearest value of the dtype (toward zero between
    two whole numbers; 0 for nan), ``"wrap"`` the value that ``torch.Tensor.to`` gives.

    Args:
        source: any tensor; layouts other than strided are checked by their values.
        dtype: of the result.
        on_loss: what to do when a value changes.
        rtol: relative tolerance; None leaves the rounding of floats unchecked.
        empty: makes the result, if that is a plain tensor on the CPU.
    """
    check = None if on_loss == "wrap" else _check(source.dtype, dtype, rtol)
    if not _is_plain(source):
        return _cast_other(source, dtype, on_loss, rtol, checked=check is not None)
    rows, order = dense(source)
    target = empty(rows.shape, dtype)
    count = target.numel()
    cast_block = _casting(rows, target, check)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        if cast_block(start, stop):
            continue
        part, cast_part = rows.view(-1)[start:stop], target.view(-1)[start:stop]
        changed = changes_in(part, cast_part, rtol)
        if not changed.any():
            continue
        if on_loss == "error":
            first = int(changed.argmax())
            return Loss(
                index_of(start + first, rows.shape, order),
                part[first].item(),
                cast_part[first].item(),
                narrowest(source, (), like=dtype, rtol=rtol),
            )
        cast_part.copy_(saturated(part, dtype))
    return seen_as(target, order)


def widened(source: torch.Tensor, dtype: torch.dtype, empty: Empty) -> torch.Tensor:
    """``source.to(dtype)``, unchecked; a plain tensor's result is made by ``empty``."""
    is_small = source.numel() * dtype.itemsize < LARGE
    if is_small or source.dtype is dtype or not _is_plain(source) or source.is_complex():
        return source.to(dtype)
    rows, order = dense(source)
    return seen_as(empty(rows.shape, dtype).copy_(rows), order)


def _casting(
    rows: torch.Tensor, target: torch.Tensor, check: _Check | None
) -> Callable[[int, int], bool]:
    """A function that casts the elements from ``start`` to ``stop``, and checks them quickly."""
    if rows.dtype in _NUMBERS and target.dtype in _NUMBERS:
        # As fast as torch, and slicing an array costs a tenth of slicing a tensor.
        return _casting_numbers(rows.numpy().reshape(-1), target.numpy().reshape(-1), check)
    flat, into = _castable(rows.view(-1), target.dtype), target.view(-1)
    passes = None if check is None else check.bound_to(rows.view(-1), into)
    is_one_block = len(flat) <= BLOCK

    def cast_block(start: int, stop: int) -> bool:
        if is_one_block:
            into.copy_(flat)
        else:
            into[start:stop].copy_(flat[start:stop])
        return passes is None or passes(start, stop)

    return cast_block


def _casting_numbers(
    wide: NDArray[Any], narrow: NDArray[Any], check: _Check | None
) -> Callable[[int, int], bool]:
    within = None if check is None or check.within is None else check.within
    passes = None if within is None or check is None else _whole_within(wide, *within, check.most)

    def cast_block(start: int, stop: int) -> bool:
        # The check first: it reads memory faster than the cast, which then finds it in the cache.
        is_unchanged = passes is None or passes(start, stop)
        np.copyto(narrow[start:stop], wide[start:stop], "unsafe")
        return is_unchanged

    return cast_block


def narrowest(
    values: torch.Tensor,
    among: Sequence[torch.dtype],
    *,
    like: torch.dtype | None = None,
    rtol: float | None,
) -> torch.dtype | None:
    """The smallest dtype in which no value changes, or None if there is none.

    Args:
        values: a tensor on any device.
        among: the candidates, smallest first. By default those of the kind of ``like`` (floats for
            a float), then those of the kind of ``values``.
        like: a dtype.
        rtol: as in :func:`cast`.
    """
    if not among:
        assert like is not None
        among = (*_kin(like), *_kin(values.dtype))
    for dtype in among:
        if not isinstance(_first_loss(values, dtype, rtol), Loss):
            return dtype
    return None


def _kin(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    if dtype.is_complex:
        return _COMPLEX
    if dtype.is_floating_point:
        return _FLOATS
    wide = _UNSIGNED if dtype in _UNSIGNED[1:] else ()
    return tuple(sorted((*_WHOLE, *wide[1:]), key=lambda whole: whole.itemsize))


def _castable(part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values without imaginary parts, which torch warns about and this module checks."""
    drops_imaginary = part.is_complex() and not dtype.is_complex and dtype is not torch.bool
    return real(part) if drops_imaginary else part


def _first_loss(values: torch.Tensor, dtype: torch.dtype, rtol: float | None) -> Loss | None:
    check = _check(values.dtype, dtype, rtol)
    if check is None:
        return None
    flat = _values(values).reshape(-1)
    for part in flat.split(BLOCK):  # type: ignore[no-untyped-call]  # torch's
        cast_part = _castable(part, dtype).to(dtype)
        if check.bound_to(part, cast_part)(0, len(part)):
            continue
        changed = changes_in(part, cast_part, rtol)
        if changed.any():
            first = int(changed.argmax())
            return Loss((), part[first].item(), cast_part[first].item(), None)
    return None


# ---- the quick check


@dataclass(frozen=True, slots=True)
class _Check:
    """A quick check: values that pass are unchanged, values that do not pass may be.

    Attributes:
        within: the range of whole numbers that keep their value.
        most: the largest number that the source can hold.
        infinite: the smallest bit pattern of a cast float that is infinite or nan.
    """

    within: tuple[int, int] | None = None
    most: int = 0
    infinite: tuple[int, torch.dtype, Any] | None = None

    def bound_to(self, flat: torch.Tensor, into: torch.Tensor) -> Callable[[int, int], bool]:
        """A function that checks the elements from ``start`` to ``stop`` of this cast."""
        if self.within is not None:
            return _whole_within(flat.numpy(), *self.within, self.most)
        if self.infinite is not None:
            return _all_finite(into, *self.infinite)
        return _passes_if_empty


def _passes_if_empty(start: int, stop: int) -> bool:
    return start == stop


@cache
def _check(source: torch.dtype, dtype: torch.dtype, rtol: float | None) -> _Check | None:
    """The check for a cast, or None if no value of the source can change."""
    if source.is_complex and not dtype.is_complex:
        return _Check()
    source, dtype = PARTS.get(source, source), PARTS.get(dtype, dtype)
    if source is dtype:
        return None
    if source is torch.bool:
        # e8m0 has no zero.
        return _Check() if "e8m0" in str(dtype) else None
    if not source.is_floating_point:
        limits, held = torch.iinfo(source), exact_whole_numbers(dtype)
        if held[0] <= limits.min and limits.max <= held[1]:
            return None
        return _Check(within=held, most=limits.max)
    if not dtype.is_floating_point:
        return _Check()
    return _check_of_floats(torch.finfo(source), torch.finfo(dtype), dtype, rtol)


def _check_of_floats(
    source: torch.finfo, target: torch.finfo, dtype: torch.dtype, rtol: float | None
) -> _Check | None:
    if dtype.itemsize == 1:  # some have no infinity, some no zero
        return _Check()
    as_wide = target.max >= source.max
    if as_wide and target.eps <= source.eps and target.tiny <= source.tiny:
        return None
    if rtol is not None:
        return _Check()
    return None if as_wide else _Check(infinite=_INFINITE[dtype])


def _whole_within(
    numbers: NDArray[Any], low: int, high: int, limit: int
) -> Callable[[int, int], bool]:
    # Read as unsigned, a negative number is huge: usually there is none, and one pass is enough.
    unsigned = numbers.view(_UNSIGNED_NUMBERS[numbers.itemsize])
    most = min(high, limit) if low <= 0 else -1

    def passes(start: int, stop: int) -> bool:
        # The ufunc's own reduction: `.max()` costs a microsecond more.
        if start == stop or _largest(unsigned[start:stop]) <= most:
            return True
        part = numbers[start:stop]
        return bool(low <= int(part.min()) and int(part.max()) <= high)

    return passes


def _all_finite(
    floats: torch.Tensor, infinity: int, bits: torch.dtype, unsigned: Any
) -> Callable[[int, int], bool]:
    width = 1
    if floats.is_complex():
        floats, width = torch.view_as_real(floats).view(-1), 2
    numbers = floats.view(bits).numpy()
    sizes, sign = numbers.view(unsigned), 1 << (8 * numbers.itemsize - 1)

    def passes(start: int, stop: int) -> bool:
        if start == stop:
            return True
        # Read as unsigned, negative floats are above all others and ordered by size. So the first
        # pass finds the largest of them, and the second is needed only if there is one.
        most = int(_largest(sizes[start * width : stop * width]))
        if most < sign:
            return most < infinity
        worst = int(_largest(numbers[start * width : stop * width]))
        return most < sign | infinity and worst < infinity

    return passes


# ---- kinds of tensors


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.layout is torch.strided
        and tensor.is_cpu
        and not tensor.requires_grad
        and not tensor.is_nested
    )


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """The values of any tensor, contiguous on the CPU."""
    tensor = tensor.detach()
    if tensor.is_nested:
        parts = [part.reshape(-1) for part in tensor.unbind()]
        tensor = torch.cat(parts) if parts else torch.empty(0, dtype=tensor.dtype)
    elif tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    elif tensor.layout is not torch.strided:
        tensor = tensor.values()
    if type(tensor) is not torch.Tensor:
        tensor = tensor.as_subclass(torch.Tensor)
    return tensor.cpu().resolve_conj().resolve_neg().contiguous()


def _cast_other(
    source: torch.Tensor, dtype: torch.dtype, on_loss: OnLoss, rtol: float | None, *, checked: bool
) -> torch.Tensor | Loss:
    """Cast sparse and nested tensors, subclasses, and those on a device or in a graph by torch."""
    if checked and source.layout is torch.sparse_coo:
        # Entries with the same index are one value, their sum, which must fit as well.
        source = source.coalesce()
    loss = _first_loss(source, dtype, rtol) if checked else None
    if loss is None:
        return source.to(dtype)
    if on_loss == "saturate" and source.layout is torch.strided and not source.is_nested:
        nearest = saturated(_values(source).view(-1), dtype).view(source.shape)
        return nearest.to(source.device)
    index: tuple[int, ...] = ()
    if source.layout is torch.strided and not source.is_nested:
        flat = _values(source).view(-1)
        changed = changes_in(flat, flat.to(dtype), rtol)
        index = tuple(map(int, np.unravel_index(int(changed.argmax()), source.shape)))
    return Loss(index, loss.value, loss.becomes, narrowest(source, (), like=dtype, rtol=rtol))
