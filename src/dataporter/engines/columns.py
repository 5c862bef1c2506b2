"""Columns: views with wide gaps that share memory, put together without the gaps.

Columns of a matrix, channels of an image, or windows of a series are parts of rows of one length.
Those that overlap are copied to a block of shorter rows, in which they overlap as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple

import torch

from dataporter.shared.pickling import raw_view

__all__ = ["Block", "blocks"]


class Placed(NamedTuple):
    """A tensor, by its number, in a block: its offset in bytes, and its strides."""

    number: int
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Memory, uint8, that holds the values of several tensors."""

    memory: torch.Tensor
    placed: list[Placed]


@dataclass(slots=True)
class _Column:
    number: int
    tensor: torch.Tensor
    start: int  # address
    pitch: int  # bytes from one of its rows to the next
    last: int  # bytes from its first row to its last
    width: int  # bytes of a row that it spans
    row: int = 0
    phase: int = 0  # bytes from the beginning of its row


def blocks(tensors: Sequence[torch.Tensor], widest: int) -> list[Block]:
    """Blocks of those tensors that share memory with another one; the others are in none.

    Args:
        tensors: strided, on the CPU, with values; their ranges of addresses overlap.
        widest: a block takes at most this many times the bytes of its tensors.
    """
    columns = [column for index, tensor in enumerate(tensors) if (column := _column(index, tensor))]
    if len(columns) < 2:
        return []
    pitch = gcd(*(column.pitch for column in columns))
    columns = [
        column
        for column in columns
        if column.width <= pitch and not any(step % pitch for step in _row_steps(column))
    ]
    found = (_block(group, pitch, widest) for group in _overlapping(columns, pitch))
    return [block for block in found if block is not None]


def _column(number: int, tensor: torch.Tensor) -> _Column | None:
    """A tensor as a column; None if it has no gaps, or holds a value twice."""
    pitch, width, extent = 0, 0, tensor.itemsize
    for step, length in _axes(tensor):
        if step < extent:
            return None
        if step > extent and not pitch:
            pitch, width = step, extent
        extent += step * (length - 1)
    if not pitch:
        return None
    return _Column(number, tensor, tensor.data_ptr(), pitch, extent - width, width)


def _axes(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Strides in bytes, and lengths, of the axes along which there are several values."""
    axes = zip(tensor.stride(), tensor.shape)
    return sorted((stride * tensor.itemsize, size) for stride, size in axes if stride and size > 1)


def _row_steps(column: _Column) -> list[int]:
    """Strides in bytes of the axes that lead from row to row."""
    return [step for step, _ in _axes(column.tensor) if step >= column.pitch]


def _overlapping(columns: list[_Column], pitch: int) -> Iterator[list[_Column]]:
    """Groups of columns that have bytes of a row in common, with their rows and phases."""
    columns.sort(key=lambda column: column.start % pitch)
    # Rows begin where no column is, so that none crosses the end of a row.
    reached = max(column.start % pitch + column.width for column in columns) - pitch
    for column in columns:
        if column.start % pitch >= reached:
            break
        reached = max(reached, column.start % pitch + column.width)
    else:
        return
    begin = column.start
    for column in columns:
        column.row, column.phase = divmod(column.start - begin, pitch)
    group: list[_Column] = []
    end = 0
    for column in sorted(columns, key=lambda column: column.phase):
        if group and column.phase >= end:
            yield group
            group = []
        group.append(column)
        end = max(end, column.phase + column.width)
    yield group


def _block(group: list[_Column], pitch: int, widest: int) -> Block | None:
    left, top = group[0].phase, min(column.row for column in group)
    width = max(column.phase + column.width for column in group) - left
    largest = max(column.tensor.itemsize for column in group)
    width = -(-width // largest) * largest
    rows = max(column.row + column.last // pitch for column in group) + 1
    size = (rows - top) * width
    if len(group) < 2 or size > widest * sum(column.tensor.nbytes for column in group):
        return None
    if any((column.phase - left) % column.tensor.itemsize for column in group):
        return None
    memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    placed = []
    for column in group:
        tensor, itemsize = column.tensor, column.tensor.itemsize
        offset = (column.row - top) * width + column.phase - left
        strides = tuple(
            stride * width // pitch if stride * itemsize >= column.pitch else stride
            for stride in tensor.stride()
        )
        lengths = [length if stride else 1 for length, stride in zip(tensor.shape, strides)]
        source = raw_view(
            tensor.untyped_storage(),
            itemsize,
            int(tensor.storage_offset()),
            lengths,
            tensor.stride(),
        )
        at = offset // itemsize
        raw_view(memory.untyped_storage(), itemsize, at, lengths, strides).copy_(source)
        placed.append(Placed(column.number, offset, strides))
    return Block(memory, placed)
