"""Table: reads rows of a Hugging Face `Dataset` from its Arrow memory, whole batches at once."""

from __future__ import annotations

from collections.abc import Sequence
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
    """The columns of a dataset, ready to be read.

    Holds addresses of this process's memory, and so is never sent to another.

    Attributes:
        lists: the columns that can be padded.
        nbytes: none, for whoever sums up what is held: the memory is the dataset's.
    """

    nbytes = 0

    def __init__(self, hf_dataset: Any, columns: Sequence[str], decoding: Decoding) -> None:
        table = hf_dataset.data.table
        features = hf_dataset.features
        layouts: dict[tuple[int, ...], Layout] = {}
        self._columns: list[tuple[str, Layout, Node]] = []
        self.lists = []
        for name in columns:
            column = column_of(name, table.column(name), features[name], decoding)
            # Columns that were put beside each other may have chunks of their own.
            layout = layouts.setdefault(column.lengths, Layout(column.lengths))
            self._columns.append((name, layout, column.node))
            if column.is_list:
                self.lists.append(name)
        self._layouts = list(layouts.values())
        self._mapping: Numbers | None = None
        if hf_dataset._indices is not None:
            chunks = [chunk for chunk in hf_dataset._indices.column(0).chunks if len(chunk)]
            self._mapping = Numbers(chunks, torch.uint64)
            self._mapping_layout = Layout([len(chunk) for chunk in chunks])

    def read(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        """What the columns have at these rows, which have to be there."""
        if self._mapping is not None:
            where = self._mapping_layout.where(rows)
            rows = self._mapping.single(where).numpy().view(np.int64)
        wheres = {id(layout): layout.where(rows) for layout in self._layouts}
        return {name: node.read(wheres[id(layout)]) for name, layout, node in self._columns}
