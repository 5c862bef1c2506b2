"""What an order is: a pure function from the positions of an epoch to the dataset's indices."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Order"]


@runtime_checkable
class Order(Protocol):
    """(seed, epoch) and an array of positions → an array of indices, the same wherever it runs.

    An order of your own is any object with these four members. It must not remember anything
    between calls, because positions are asked for in whatever sequence a resume needs. Two orders
    that differ in a parameter must differ in ``name`` as well: the name and the version are all
    that a saved state knows of them.

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
        """Raised whenever the same name comes to give other indices."""

    def epoch_length(self, dataset_length: int) -> int:
        """How many positions an epoch has over a dataset of so many samples."""

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices (0..dataset_length-1) of the samples at ``positions``; int64, the same shape."""
