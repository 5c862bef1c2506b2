"""`torch`: exactly the order of `torch.utils.data.DataLoader`, for runs that must match one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import RandomSampler

__all__ = ["TorchOrder"]


@dataclass(frozen=True, slots=True)
class TorchOrder:
    """The order of ``DataLoader(shuffle=True, generator=torch.Generator().manual_seed(seed))``.

    Epoch e is the e-th complete pass of that loader (without ``persistent_workers``), from 0.
    Unlike the other orders, this one is not free: torch's generator only runs forward, so the first
    index of epoch e after a resume costs e whole permutations (about 10 ns per sample each), and
    memory holds the permutation of the current epoch (8 bytes per sample).
    """

    name: ClassVar[str] = "torch"
    version: ClassVar[int] = 1

    def epoch_length(self, dataset_length: int) -> int:
        """Every sample once."""
        return dataset_length

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices at these positions of the epoch's ``torch.randperm``."""
        if dataset_length == 0:
            return positions
        return _replay(seed, dataset_length).permutation(epoch)[positions]


class _Replay:
    """Runs a DataLoader's generator through its epochs, and keeps the last two permutations.

    Two, because workers may prefetch the next epoch before this one is finished.
    """

    def __init__(self, seed: int, length: int) -> None:
        self._seed, self._length = seed, length
        self._restart()

    def _restart(self) -> None:
        self._generator = torch.Generator()
        self._generator.manual_seed(self._seed)
        self._epoch = -1
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._permutations and epoch <= self._epoch:
            self._restart()
        while self._epoch < epoch:
            self._epoch += 1
            # DataLoader draws the workers' base seed from the same generator before the sampler.
            torch.empty((), dtype=torch.int64).random_(generator=self._generator)
            # Exhaust the sampler: it draws once more after its last index.
            sampler = RandomSampler(range(self._length), generator=self._generator)
            indices = np.fromiter(sampler, dtype=np.int64)
            self._permutations[self._epoch] = indices
            self._permutations.pop(self._epoch - 2, None)
        return self._permutations[epoch]


@lru_cache(maxsize=4)
def _replay(seed: int, length: int) -> _Replay:
    return _Replay(seed, length)
