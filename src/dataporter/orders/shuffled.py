"""`shuffled`: a keyed permutation of the dataset, computed for any position on its own (C9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.orders.permutation import permute
from dataporter.seeding.hashing import STREAM_ORDER, fold

__all__ = ["ShuffledOrder"]


@dataclass(frozen=True, slots=True)
class ShuffledOrder:
    """Every sample once an epoch, in an order drawn anew from (seed, epoch).

    The permutation is a Feistel network over pairs of digits in mixed radix (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002): the length n is enclosed by a x b with
    a and b next to its square root, so hardly any value falls outside and has to walk the cycle.
    Time and memory depend on the number of positions asked for, never on n.
    """

    name: ClassVar[str] = "shuffled"
    version: ClassVar[int] = 1

    def epoch_length(self, dataset_length: int) -> int:
        """Every sample once."""
        return dataset_length

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices of the samples at these positions; both int64 of the same shape."""
        key = fold(seed, epoch, STREAM_ORDER)
        return permute(positions.astype(np.uint64), dataset_length, key).view(np.int64)
