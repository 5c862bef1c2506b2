"""Batches: datasets that read and collate a whole batch themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Subset

from dataporter.datasets.columns import subset_indices

__all__ = ["JoinsBatches", "ReadsBatches", "batches_of", "joining_of"]


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


@runtime_checkable
class JoinsBatches(ReadsBatches, Protocol):
    """One that makes a batch together with other datasets of its kind, for a mixture of them."""

    def __joinbatch__(
        self, parts: Sequence[tuple[Any, NDArray[np.int64], NDArray[np.int64]]]
    ) -> Any:
        """The batch of all parts, equal to ``__collate__`` of their samples; or ``NotImplemented``.

        Args:
            parts: datasets like this one, each with its samples' places in the batch, and their
                indices in the dataset.
        """


def joining_of(dataset: Any) -> tuple[JoinsBatches, NDArray[np.int64] | None] | None:
    """The dataset that makes batches with others, and the indices of the ``Subset`` of it."""
    batches = batches_of(dataset)
    inner = batches.batches if isinstance(batches, _SubsetBatches) else batches
    chosen = batches.chosen if isinstance(batches, _SubsetBatches) else None
    return (inner, chosen) if isinstance(inner, JoinsBatches) else None


def batches_of(dataset: Any) -> ReadsBatches | None:
    """The dataset, or a wrapper if it is a ``Subset``, if it reads whole batches; else None."""
    if type(dataset) is Subset:
        inner = batches_of(dataset.dataset)
        if inner is None:
            return None
        chosen = subset_indices(dataset, len(dataset.dataset))  # type: ignore[arg-type]  # has one
        if chosen is not None and isinstance(inner, _SubsetBatches):
            return _SubsetBatches(inner.batches, inner.chosen[chosen])
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
