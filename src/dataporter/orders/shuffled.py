"""`shuffled`: a keyed permutation of the dataset, computed directly for any position (C9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.orders.permutation import permute, permute_many
from dataporter.seeding.hashing import STREAM_ORDER, fold, fold_on

__all__ = ["ShuffledOrder"]


@dataclass(frozen=True, slots=True)
class ShuffledOrder:
    """Every sample once per epoch, in an order redrawn from (seed, epoch).

    The permutation is a Feistel network over pairs of digits in mixed radix (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002): it permutes a * b values, with a and b
    close to the square root of the length n, so few values land outside and walk the cycle.
    Time and memory depend on the number of requested positions, never on n.
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

    def over_many(
        self,
        positions: NDArray[np.int64],
        which: NDArray[np.int64],
        *,
        seeds: Sequence[int],
        epochs: NDArray[np.int64],
        dataset_lengths: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """:meth:`indices` of positions in many epochs, of which ``which`` names each one's."""
        bases = np.array([fold(seed) for seed in seeds], dtype=np.uint64)
        keys = fold_on(fold_on(bases, epochs.astype(np.uint64)), np.uint64(STREAM_ORDER))
        values = positions.astype(np.uint64)
        return permute_many(values, which, dataset_lengths, keys).view(np.int64)
