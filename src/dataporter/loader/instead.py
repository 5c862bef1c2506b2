"""What to write in place of a sampler, so that the loader has an order that it can jump in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

__all__ = ["kind_of", "line_for"]


def kind_of(custom: Any) -> Any:
    """The class of torch whose draws a sampler gives; None for any other sampler."""
    inner = custom.sampler if type(custom) is BatchSampler else custom
    return type(inner) if type(inner) in _LINES else None


def line_for(custom: Any) -> str | None:
    """The arguments to write in place of one of torch's samplers; None for any other."""
    if (kind := kind_of(custom)) is None:
        return None
    if type(custom) is BatchSampler:
        return f"{_LINES[kind](custom.sampler)} with batch_size={custom.batch_size}"
    return _LINES[kind](custom)


def _of_weighted(sampler: Any) -> str:
    replacement = "" if sampler.replacement else ", replacement=False"
    return f"order=WeightedOrder(weights, samples={sampler.num_samples}{replacement})"


def _of_random(sampler: Any) -> str:
    if sampler.replacement:
        return f"order=WeightedOrder([1] * len(dataset), samples={sampler.num_samples})"
    if sampler.num_samples < len(sampler.data_source):
        each = f"samples={sampler.num_samples}, replacement=False"
        return f"order=WeightedOrder([1] * len(dataset), {each})"
    return "shuffle=True"


_LINES: dict[type, Callable[[Any], str]] = {
    WeightedRandomSampler: _of_weighted,
    SubsetRandomSampler: lambda sampler: "Subset(dataset, indices) as the dataset, shuffle=True",
    RandomSampler: _of_random,
    SequentialSampler: lambda sampler: "shuffle=False",
}
