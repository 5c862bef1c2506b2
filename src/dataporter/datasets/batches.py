"""Batches: datasets that read and collate a whole batch themselves."""

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
    """A dataset that makes a batch faster than it makes the samples one by one.

    Used if the loader has no ``collate_fn`` and ``on_error`` is ``"raise"``.
    """

    @property
    def draws(self) -> bool:
        """Whether that may draw from the global random generators, so that they must be seeded."""

    def __getbatch__(self, indices: NDArray[np.int64]) -> Any:
        """The batch of these indices, equal to ``__collate__`` of their samples."""

    def __collate__(self, samples: list[Any]) -> Any:
        """A batch of samples; replaces ``default_collate``."""


def batches_of(dataset: Any) -> ReadsBatches | None:
    """The dataset, or a wrapper if it is a ``Subset``, if it reads whole batches; else None."""
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
