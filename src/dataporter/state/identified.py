"""The identity of a loader, whose fingerprint is looked up when it is first needed (C6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dataporter.datasets.fingerprint import fingerprint_of
from dataporter.state.schema import Identity

__all__ = ["Identified"]


@dataclass(slots=True)
class Identified:
    """An identity that finds the fingerprint of its dataset by itself, once.

    That costs milliseconds, which a loader that is only built does not spend. The first pass asks
    for it as well, since a dataset may fill a cache while it is read.

    Attributes:
        fields: the identity, but for its fingerprint.
        dataset: as the loader was given it.
        given: the user's own fingerprint.
    """

    fields: Identity
    dataset: Any
    given: str | None = None
    _known: Identity | None = None

    def identity(self) -> Identity:
        """The identity, with the fingerprint as of the first call."""
        if self._known is None:
            fingerprint = fingerprint_of(self.dataset, self.given)
            self._known = replace(self.fields, dataset_fingerprint=fingerprint)
        return self._known

    def renewed(self, length: int | None) -> Identified:
        """The same for the dataset as it is now, which has this length."""
        return Identified(replace(self.fields, dataset_length=length), self.dataset, self.given)
