"""The protocol of orders: pure functions from an epoch's positions to the dataset's indices."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Order"]


@runtime_checkable
class Order(Protocol):
    """(seed, epoch) and an array of positions → an array of indices, the same wherever it runs.

    A custom order is any object with these four members. It must not keep state between calls,
    because a resume may request positions in any sequence. Orders with different parameters must
    have different names: a saved state holds only the name and the version.

    Example:
        >>> import numpy as np
        >>> class Reversed:
        ...     name, version = "reversed", 1
        ...     def epoch_length(self, dataset_length):
        ...         return dataset_length
        ...     def indices(self, positions, *, seed, epoch, dataset_length):
        ...         return dataset_length - 1 - positions
        >>> from dataporter import ResumableDataLoader
        >>> [batch.tolist() for batch in ResumableDataLoader([10, 20, 30], 2, order=Reversed())]
        [[30, 20], [10]]
    """

    @property
    def name(self) -> str:
        """Identifies the order and its parameters in a saved state."""

    @property
    def version(self) -> int:
        """Increased whenever the same name yields different indices."""

    def epoch_length(self, dataset_length: int) -> int:
        """Number of positions in an epoch over a dataset of this length."""

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices (0..dataset_length-1) of the samples at ``positions``; int64, the same shape."""
