"""Table: reads rows of a Hugging Face `Dataset` from its Arrow memory, a whole batch at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.hf.images import Decoding
from dataporter.hf.memory import Layout
from dataporter.hf.nodes import Node, Numbers
from dataporter.hf.schema import column_of

__all__ = ["Table"]


class Table:
    """The readers of a table's columns.

    It holds addresses of this process's memory, so it is never sent to another process.

    Args:
        table: a ``pyarrow.Table``.
        features: the features of its columns.
        columns: to read.
        decoding: how images are decoded.
        indices: a table of one column, the rows in their order; None if they are in order.

    Attributes:
        lists: the columns that can be padded.
        nbytes: 0, for reports of memory: the bytes belong to the dataset.
    """

    nbytes = 0

    def __init__(
        self,
        table: Any,
        features: Mapping[str, Any],
        columns: Sequence[str],
        decoding: Decoding,
        indices: Any = None,
    ) -> None:
        layouts: dict[tuple[int, ...], Layout] = {}
        self._columns: list[tuple[str, Layout, Node]] = []
        self.lists = []
        for name in columns:
            column = column_of(name, table.column(name), features[name], decoding)
            # Columns that were concatenated may be chunked differently.
            layout = layouts.setdefault(column.lengths, Layout(column.lengths))
            self._columns.append((name, layout, column.node))
            if column.is_list:
                self.lists.append(name)
        self._layouts = list(layouts.values())
        self._mapping: Numbers | None = None
        if indices is not None:
            chunks = [chunk for chunk in indices.column(0).chunks if len(chunk)]
            self._mapping = Numbers(chunks, torch.uint64)
            self._mapping_layout = Layout([len(chunk) for chunk in chunks])

    def read(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """The values of these rows, which must exist, by column."""
        if self._mapping is not None:
            where = self._mapping_layout.where(rows)
            rows = self._mapping.single(where).numpy().view(np.int64)
        elements = {id(layout): layout.where(rows) for layout in self._layouts}
        return {name: node.read(elements[id(layout)]) for name, layout, node in self._columns}
