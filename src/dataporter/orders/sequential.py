"""`sequential`: the dataset in its stored order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["SequentialOrder"]


@dataclass(frozen=True, slots=True)
class SequentialOrder:
    """Index p at position p, in every epoch."""

    name: ClassVar[str] = "sequential"
    version: ClassVar[int] = 1

    def epoch_length(self, dataset_length: int) -> int:
        """Every sample once."""
        return dataset_length

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """The positions themselves."""
        return positions
