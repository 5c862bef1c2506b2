"""Pickling: a tensor takes its own bytes in a pickle, and not those of the whole storage.

``pickle`` writes a tensor's storage whole, also for a view of one row. Here torch reduces the
tensor, so that all it knows of it survives (type, attributes, gradients, quantisation, and so on),
and then each storage in that is replaced by the piece that the tensor spans, or, if that has gaps,
by a copy without them. ``pickle.loads`` reads the result.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from dataporter._torch import typed_storage, untyped_storage

__all__ = ["Piece", "dumps", "raw_view", "reduced", "storage_of"]

# Types of each size whose values torch copies as they are.
_COPIED = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a storage that a tensor spans.

    Attributes:
        raw: its bytes, uint8, one-dimensional.
        dtype: of the storage; an untyped one has bytes.
    """

    raw: torch.Tensor
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (pickle.PickleBuffer(self.raw.numpy().data), self.dtype)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return reduced(value)


def dumps(value: Any) -> bytes:
    """``pickle.dumps``, with each tensor at most as large as its own values.

    Raises:
        Exception: whatever pickling raises.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


def reduced(value: Any) -> Any:
    """For ``reducer_override``: how to pickle a tensor, with a :class:`Piece` for each storage."""
    kind = type(value)
    if not issubclass(kind, torch.Tensor) or kind in copyreg.dispatch_table:
        return NotImplemented
    return _cut(value.__reduce_ex__(pickle.HIGHEST_PROTOCOL), value)


def storage_of(raw: torch.Tensor, dtype: torch.dtype) -> torch.TypedStorage:
    """The storage of a piece, with the memory of ``raw``."""
    return typed_storage(raw.untyped_storage(), dtype)


def _restored(data: bytearray, dtype: torch.dtype) -> torch.TypedStorage:
    # A copy, since torch does not resize memory that it has not allocated.
    raw = torch.frombuffer(data, dtype=torch.uint8).clone() if data else _empty(torch.uint8)
    return storage_of(raw, dtype)


def _cut(reduced: Any, tensor: torch.Tensor) -> Any:
    """What torch has reduced a tensor to, with its storages cut.

    Each is followed by the offset, sizes and strides of the tensor in it, in this order in all
    versions of torch, since its checkpoints have them so.
    """
    if type(reduced) is not tuple:
        return reduced
    if len(reduced) >= 4 and isinstance(reduced[0], torch.TypedStorage | torch.UntypedStorage):
        storage, offset, shape, strides, *others = reduced
        cut = _piece(storage, offset, shape, strides, tensor)
        return reduced if cut is None else (*cut, *others)
    return tuple(_cut(part, tensor) for part in reduced)


def _piece(
    storage: torch.TypedStorage | torch.UntypedStorage,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    tensor: torch.Tensor,
) -> tuple[Piece, int, Sequence[int], Sequence[int]] | None:
    """The piece, and the offset, sizes and strides in it; None leaves the storage as it is."""
    if isinstance(storage, torch.UntypedStorage):
        untyped, dtype, size = storage, torch.uint8, tensor.dtype.itemsize
    else:
        untyped, dtype = untyped_storage(storage), storage.dtype
        size = dtype.itemsize
    if untyped.device.type != "cpu" or size not in _COPIED:
        return None
    if not prod(shape):
        return Piece(_empty(torch.uint8), dtype), 0, shape, strides
    spanned = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides))
    # Two values of four bits share a byte.
    if (offset + spanned) * size > untyped.nbytes():
        return None
    lengths = [length if stride else 1 for length, stride in zip(shape, strides)]
    if spanned <= prod(lengths):
        values = raw_view(untyped, size, offset, [spanned], [1])
    else:
        with_gaps = raw_view(untyped, size, offset, lengths, strides)
        strides = _dense(shape, strides)
        values = with_gaps.new_empty(prod(lengths))
        values.as_strided(lengths, strides).copy_(with_gaps)
    return Piece(values.view(torch.uint8), dtype), 0, shape, strides


def _dense(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides without gaps that leave the order of the dimensions in memory as it is."""
    dense, step = list(strides), 1
    for stride, _, axis in sorted((stride, -axis, axis) for axis, stride in enumerate(strides)):
        if stride and shape[axis] > 1:
            dense[axis], step = step, step * shape[axis]
    return tuple(dense)


def raw_view(
    storage: torch.UntypedStorage,
    size: int,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
) -> torch.Tensor:
    """A tensor over a storage whose values, of ``size`` bytes each, torch copies as they are."""
    return _empty(_COPIED[size]).set_(storage, offset, tuple(shape), tuple(strides))


def _empty(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(0, dtype=dtype, device="cpu")
