"""Dense: a tensor with its dimensions in the order of memory, and the way back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["dense", "index_of", "seen_as"]


def dense(tensor: torch.Tensor) -> tuple[torch.Tensor, list[int] | None]:
    """A contiguous tensor of the same elements, and the order of dimensions that makes it so.

    A transposed or channels-last tensor is permuted without a copy, so that :func:`seen_as` can
    restore its layout, as ``Tensor.to`` keeps it. The order is None if nothing is permuted.
    """
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        return tensor, None
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
    permuted = tensor.permute(order)
    return (permuted, order) if permuted.is_contiguous() else (tensor.contiguous(), None)


def seen_as(rows: torch.Tensor, order: list[int] | None) -> torch.Tensor:
    """The tensor with the dimensions back in the order before :func:`dense`."""
    if order is None:
        return rows
    return rows.permute([order.index(axis) for axis in range(len(order))])


def index_of(number: int, shape: Sequence[int], order: list[int] | None) -> tuple[int, ...]:
    """The index in a tensor of element ``number`` of its :func:`dense` form."""
    index = [int(axis) for axis in np.unravel_index(number, tuple(shape))]
    return tuple(
        index if order is None else [index[order.index(axis)] for axis in range(len(order))]
    )
