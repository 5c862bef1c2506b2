"""Replaced samplers: what a subclass or script puts in place of the loader's own sampler (C13).

torch's loader asks whatever sampler it finds when a pass begins. This one plans its batches at
construction, so it has to look for replacements: it follows those that repeat the batches without
end, as vision trainers use to keep their workers, and refuses others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import BatchSampler, DataLoader

from dataporter._torch import index_sampler
from dataporter.errors import ConfigurationError
from dataporter.seeding.generators import isolated_generators

__all__ = ["Endless", "OwnSampler"]

Batch = TypeVar("Batch")


class OwnSampler:
    """What gives a loader's indices, as it was at construction."""

    def __init__(self, loader: DataLoader[Any], *, is_planned: bool) -> None:
        self._sampler = index_sampler(loader)
        # A custom sampler is asked in each pass, as by torch's loader, and may change.
        self._settings = _settings(self._sampler) if is_planned else {}

    def repeats_in(self, loader: DataLoader[Any]) -> bool:
        """Whether it was replaced by its own endless repetition.

        Raises:
            ConfigurationError: it was replaced by something else, or its settings were changed.
        """
        present = index_sampler(loader)
        if present is not self._sampler:
            repetition = _repetition(present, self._sampler)
            if repetition is None:
                raise ConfigurationError(
                    f"{type(loader).__name__} was built with a {type(self._sampler).__name__}, "
                    f"which was replaced by a {type(present).__name__} since: this loader has "
                    "settled its batches at construction. Pass the sampler to the constructor, as "
                    "sampler= or batch_sampler=; a repetition without end is followed if it keeps "
                    "the sampler that it repeats in an attribute"
                )
            return repetition
        for name, before in self._settings.items():
            if (value := getattr(present, name)) is not before and value != before:
                raise ConfigurationError(
                    f"{type(present).__name__}.{name} was {before!r} when the "
                    f"{type(loader).__name__} was built and is {value!r} now, but this loader has "
                    "settled its batches at construction: build a new loader with the new value"
                )
        return False


class Endless(Iterator[Batch]):
    """All passes of a loader, one after the other, as one iterator.

    Args:
        begin: begins the next pass.
        superseded: whether the pass that began last no longer moves the loader's position: a state
            was loaded, say, or another epoch set.
    """

    def __init__(
        self, begin: Callable[[], Iterator[Batch]], superseded: Callable[[], bool]
    ) -> None:
        self._begin = begin
        self._superseded = superseded
        self._pass: Iterator[Batch] | None = None

    def __next__(self) -> Batch:
        for _ in range(3):  # the rest of the first epoch may have no batch
            if self._pass is None or self._superseded():
                self._pass = None  # its workers end before others start
                self._pass = self._begin()
            try:
                return next(self._pass)
            except StopIteration:
                self._pass = None
        raise StopIteration


def _settings(sampler: Any) -> dict[str, Any]:
    names = ("sampler", "batch_size", "drop_last") if type(sampler) is BatchSampler else ()
    return {name: getattr(sampler, name) for name in names}


def _repetition(present: Any, original: Any) -> bool | None:
    """Whether a sampler repeats the original without end (True), or passes it through (False).

    None if it does neither. Tried on a copy that repeats a list of two.
    """
    attributes = getattr(present, "__dict__", {})
    names = [name for name, value in attributes.items() if value is original]
    if not names:
        return None
    probe, pair = copy.copy(present), [[0], [1]]
    for name in names:
        object.__setattr__(probe, name, pair)
    try:
        with isolated_generators():
            drawn = list(islice(iter(probe), 5))
    except Exception:
        return None
    return {2: False, 5: True}.get(len(drawn)) if drawn == (pair * 3)[: len(drawn)] else None
