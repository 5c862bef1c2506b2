"""Batches: datasets that read and collate whole batches themselves, in one go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from dataporter.datasets.columns import subset_indices

__all__ = ["ReadsBatches", "batches_of"]


@runtime_checkable
class ReadsBatches(Protocol):
    """A dataset that can make a batch faster than by making its samples.

    Used where the loader has no ``collate_fn``, and failing samples are not to be left out.
    """

    @property
    def draws(self) -> bool:
        """Whether that draws from the global random generators, which are seeded for it then."""

    def __getbatch__(self, indices: NDArray[np.int64]) -> Any:
        """The batch of these indices: what ``__collate__`` makes of their samples."""

    def __collate__(self, samples: list[Any]) -> Any:
        """A batch of samples, in ``default_collate``'s place."""


def batches_of(dataset: Any) -> ReadsBatches | None:
    """The dataset, or what stands for a ``Subset`` of one, if it reads whole batches."""
    if type(dataset) is Subset:
        inner = batches_of(dataset.dataset)
        if inner is None:
            return None
        chosen = subset_indices(dataset, len(dataset.dataset))  # type: ignore[arg-type]  # has one
        return None if chosen is None else _SubsetBatches(inner, chosen)
    return dataset if isinstance(dataset, ReadsBatches) else None


@dataclass(frozen=True, slots=True)
class _SubsetBatches:
    batches: ReadsBatches
    chosen: NDArray[np.int64]

    @property
    def draws(self) -> bool:
        return self.batches.draws

    def __getbatch__(self, indices: NDArray[np.int64]) -> Any:
        return self.batches.__getbatch__(self.chosen[indices])

    def __collate__(self, samples: list[Any]) -> Any:
        return self.batches.__collate__(samples)
