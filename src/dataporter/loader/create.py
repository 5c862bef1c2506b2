"""`create_resumable_dataloader`: the loader, with the arguments that most runs need up front."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from dataporter.loader.loader import ResumableDataLoader
from dataporter.state.strategies import ResumptionStrategy

__all__ = ["create_resumable_dataloader"]


def create_resumable_dataloader(
    dataset: Dataset[Any] | Mapping[str, Any] | Any,
    batch_size: int | None = 1,
    shuffle: bool | None = None,
    strategy: str | ResumptionStrategy | None = None,
    **arguments: Any,
) -> ResumableDataLoader[Any]:
    """A :class:`ResumableDataLoader`, with the arguments that most runs need up front.

    Args:
        dataset, batch_size, shuffle, strategy: as in :class:`ResumableDataLoader`.
        **arguments: any other argument of :class:`ResumableDataLoader`.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        UnsupportedDatasetError: (a ``TypeError``) the dataset has no length.

    Example:
        >>> loader = create_resumable_dataloader(range(10), batch_size=4)
        >>> [batch.tolist() for batch in loader]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """
    return ResumableDataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, strategy=strategy, **arguments
    )
