"""Collation: torch's default_collate, with a faster path for dicts, lists, tuples and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import Subset, default_collate

from dataporter._torch import default_collate_is_extended
from dataporter.errors import ConfigurationError

__all__ = ["collate", "collate_of", "collate_of_sources"]

_DTYPES = {int: torch.int64, float: torch.float64}


def collate_of(dataset: Any) -> Callable[[list[Any]], Any]:
    """The function that collates a dataset's samples if the loader has no ``collate_fn``."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    custom = getattr(dataset, "__collate__", None)
    return collate if custom is None else custom


def collate_of_sources(sources: Mapping[str, Any]) -> Callable[[list[Any]], Any]:
    """The function that collates samples of several datasets, if the loader has no ``collate_fn``.

    Args:
        sources: by name. Those with a ``__collate__`` collate alike if it is the same function,
            and an attribute ``collation``, where they have one, is equal.

    Raises:
        ConfigurationError: (a ``ValueError``) they collate in several ways.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name, dataset in sources.items():
        while type(dataset) is Subset:
            dataset = dataset.dataset
        if getattr(dataset, "__collate__", None) is not None:
            way = getattr(type(dataset), "__collate__", None), getattr(dataset, "collation", None)
            for other, another in found.items():
                if another != way:
                    raise ConfigurationError(
                        f"sources {other!r} and {name!r} make batches of their samples in "
                        "different ways: give both the same arguments (pad=, and dtypes for its "
                        "masks), or pass collate_fn= to the loader"
                    )
            found[name] = way
    return collate_of(sources[next(iter(found))]) if found else collate


def collate(samples: list[Any]) -> Any:
    """The same batch as ``torch.utils.data.default_collate`` makes, in less time.

    Plain dicts, lists and tuples are collated here, and numbers go through one NumPy array, since
    ``torch.tensor`` reads a list number by number. torch collates everything else, and every batch
    once the user has added types to its ``default_collate_fn_map``.

    Raises:
        Exception: the same as ``default_collate``, for the same samples.
    """
    return default_collate(samples) if default_collate_is_extended() else _collate(samples)


def _collate(samples: Any) -> Any:
    first = samples[0]
    kind = type(first)
    if kind is dict:
        return {key: _collate([sample[key] for sample in samples]) for key in first}
    if kind is tuple or kind is list:
        width = len(first)
        if all(len(sample) == width for sample in samples):
            return [_collate(column) for column in zip(*samples)]
    elif kind in _DTYPES and set(map(type, samples)) == {kind}:
        numbers = torch.empty(len(samples), dtype=_DTYPES[kind])
        if not numbers.is_cpu:  # torch.set_default_device()
            return default_collate(samples)
        try:
            numbers.numpy()[:] = samples
        except OverflowError:
            return default_collate(samples)
        return numbers
    return default_collate(samples)
