"""The rows of a mixture: its sources one after the other, read one call a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataporter.datasets.names import name_of
from dataporter.errors import ConfigurationError

__all__ = ["MixtureRows", "Part", "Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """A source of a mixture, as its samples are read.

    Attributes:
        name, rows, length: the dataset and what it is called.
        transform: what is done to each of its samples; None if nothing.
        converter: what converts each of its samples, or its rules; None if nothing does.
    """

    name: str
    rows: Any
    length: int
    transform: Callable[[Any], Any] | None = None
    converter: Any = None


class Part(NamedTuple):
    """What a batch has of a source: its number, places in the batch, and indices in the source."""

    source: int
    places: NDArray[np.int64]
    indices: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MixtureRows:
    """All samples of a mixture's sources, the first source's first.

    Attributes:
        sources: in the order of the indices.
        source_key: the key under which each sample, a dict, has the name of its source.
    """

    sources: tuple[Source, ...]
    source_key: str | None = None

    @property
    def offsets(self) -> NDArray[np.int64]:
        """The index at which each source begins, and the number of all samples."""
        return np.array([0, *accumulate(source.length for source in self.sources)], dtype=np.int64)

    def __len__(self) -> int:
        return sum(source.length for source in self.sources)

    def parts(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[Part]:
        """A batch's indices by source, in the order of the sources."""
        offsets, whole = self.offsets, np.asarray(indices, dtype=np.int64)
        which = np.searchsorted(offsets, whole, side="right") - 1
        for number in np.unique(which).tolist():
            places = np.flatnonzero(which == number)
            yield Part(number, places, whole[places] - offsets[number])

    def named(self, indices: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, int]]:
        """For each index the name of its source, and its index there."""
        offsets, whole = self.offsets, np.asarray(indices, dtype=np.int64)
        which = np.searchsorted(offsets, whole, side="right") - 1
        names = [self.sources[number].name for number in which.tolist()]
        return list(zip(names, (whole - offsets[which]).tolist()))

    def sample_name(self, index: int) -> str | None:
        """The source of a sample, and the sample's name or index there."""
        ((name, within),) = self.named([index])
        rows = next(source.rows for source in self.sources if source.name == name)
        return f"{name}: {name_of(rows, within) or within}"

    def __getitem__(self, index: int) -> Any:
        ((name, within),) = self.named([index])
        source = next(source for source in self.sources if source.name == name)
        return self.finished(source, source.rows[within])

    def finished(self, source: Source, sample: Any) -> Any:
        """A sample of a source with the source's transform, and its name."""
        if source.transform is not None:
            sample = source.transform(sample)
        if self.source_key is None:
            return sample
        if not isinstance(sample, Mapping):
            raise ConfigurationError(
                f"source_key={self.source_key!r}: a sample of source {source.name!r} is a "
                f"{type(sample).__name__}, but only a dict can hold the name of its source; give "
                "the source a transform that makes one, or leave source_key= out"
            )
        if self.source_key in sample:
            raise ConfigurationError(
                f"source_key={self.source_key!r}: samples of source {source.name!r} already have "
                "this key; choose another one"
            )
        return {**sample, self.source_key: source.name}
