"""Rows: a dataset indexed by row, and its length."""

from __future__ import annotations

from typing import Any

from torch.utils.data import IterableDataset

from dataporter.datasets.columns import MappedColumns
from dataporter.errors import ConfigurationError, UnsupportedDatasetError

__all__ = [
    "length_if_any",
    "length_of",
    "rows_of",
]


def rows_of(dataset: Any) -> Any:
    """The dataset, indexed by row: a dict of arrays becomes a dataset of its rows."""
    if MappedColumns.fits(dataset):
        return MappedColumns(dataset)
    if type(dataset) is dict and MappedColumns.nearly_fits(dataset):
        lengths = {name: len(column) for name, column in dataset.items()}
        raise ConfigurationError(
            f"the arrays of a dict dataset must have one length, but have {lengths}: cut them to "
            "one length"
        )
    return dataset


def length_of(rows: Any) -> int:
    """The number of samples.

    Raises:
        UnsupportedDatasetError: the dataset has no length, or is a dict of other values than
            arrays.
    """
    if type(rows) is dict and rows and not any(isinstance(key, int) for key in rows):
        kinds = {name: type(column).__name__ for name, column in rows.items()}
        raise UnsupportedDatasetError(
            "a dict dataset must have string keys, and tensors or NumPy arrays of one length as "
            f"values; its values are {kinds}: convert them to arrays"
        )
    try:
        return len(rows)
    except (TypeError, NotImplementedError) as error:
        kind = type(rows).__name__
        if hasattr(rows, "__iter__") and not hasattr(rows, "__getitem__"):
            raise UnsupportedDatasetError(
                f"dataset of type {kind} can only be iterated over: make its class a subclass of "
                f"{IterableDataset.__module__}.IterableDataset, or give it __len__ and __getitem__"
            ) from error
        raise UnsupportedDatasetError(
            f"dataset of type {kind} has no length ({error}): give it __len__ and __getitem__, "
            "pass a sampler that yields the indices to read, or make it an IterableDataset"
        ) from error


def length_if_any(rows: Any) -> int | None:
    """The number of samples, or None: a dataset that a custom sampler indexes needs no length."""
    try:
        return length_of(rows)
    except UnsupportedDatasetError:
        return None
