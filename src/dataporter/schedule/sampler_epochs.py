"""Epochs of custom samplers: what a user sets on a sampler, and what the loader sets on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DistributedSampler

__all__ = ["SamplerEpochs", "parts_of_sampler"]

_LONGEST_CHAIN = 8


class SamplerEpochs:
    """The attribute ``epoch`` of a sampler and of the samplers in it, watched for changes.

    Args:
        parts: the sampler and what it wraps. Empty for a loader without a custom sampler.
    """

    def __init__(self, parts: Sequence[Any] = ()) -> None:
        self._parts = parts
        self._known = self._present()

    def set_at_construction(self) -> int | None:
        """The epoch that was set on the sampler before the loader received it."""
        return next((epoch for epoch in self._known if isinstance(epoch, int) and epoch > 0), None)

    def requested(self) -> int | None:
        """The epoch that the user has set on the sampler since the last look at it."""
        for epoch, known in zip(self._present(), self._known):
            if isinstance(epoch, int) and epoch != known:
                return epoch
        return None

    def overlook(self) -> None:
        """Ignore what was set on the sampler so far: the loader's position was set since."""
        self._known = self._present()

    def begin(self, epoch: int) -> None:
        """Set the epoch that a walk through the sampler is about to read."""
        for part in self._parts:
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(epoch)
        self._known = self._present()

    def saved(self) -> tuple[list[Any], list[Any]]:
        """What :meth:`restore` takes."""
        return self._known, self._present()

    def restore(self, saved: tuple[list[Any], list[Any]]) -> None:
        """Set the epochs back after a walk aside."""
        known, epochs = saved
        for part, before in zip(self._parts, epochs):
            if before is not None and callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(before)
        self._known = known

    def _present(self) -> list[Any]:
        return [getattr(part, "epoch", None) for part in self._parts]


def parts_of_sampler(sampler: Any) -> list[Any]:
    """The sampler and what it wraps, as ``BatchSampler`` wraps its ``sampler``."""
    parts = [sampler]
    while len(parts) < _LONGEST_CHAIN and (inner := _wrapped_by(parts[-1])) is not None:
        parts.append(inner)
    return parts


def _wrapped_by(sampler: Any) -> Any:
    inner = getattr(sampler, "sampler", None)
    if inner is None and isinstance(sampler, DistributedSampler):
        dataset: Any = sampler.dataset
        # Lightning shards a sampler as if it were a dataset.
        if type(dataset).__name__ == "_DatasetSamplerWrapper":
            inner = dataset._sampler
    return inner
