"""The rows of a mixture: its sources one after the other, read one call a source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
        converter: has a method ``convert_sample``, which each of its samples goes through behind
            the transform; None if nothing does.
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


@dataclass(frozen=True, slots=True, eq=False)
class MixtureRows:
    """All samples of a mixture's sources, the first source's first.

    Attributes:
        sources: in the order of the indices.
        source_key: the key under which each sample, a dict, has the name of its source.
        offsets: the index at which each source begins, and the number of all samples.
    """

    sources: tuple[Source, ...]
    source_key: str | None = None
    offsets: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        lengths = (source.length for source in self.sources)
        offsets = np.array([0, *accumulate(lengths)], dtype=np.int64)
        object.__setattr__(self, "offsets", offsets)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def which(self, indices: NDArray[np.int64]) -> NDArray[np.uint16]:
        """The number of each index's source."""
        found = self.offsets[1:].searchsorted(indices, side="right")
        # NumPy sorts these by radix.
        return found.astype(np.uint8 if len(self.sources) <= 1 << 8 else np.uint16)

    def parts(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[Part]:
        """A batch's indices by source, in the order of the sources."""
        whole = np.asarray(indices, dtype=np.int64)
        which = self.which(whole)
        places, sizes = which.argsort(kind="stable"), np.bincount(which)
        begin = 0
        for number, size in enumerate(sizes.tolist()):
            if size:
                here = places[begin : begin + size]
                begin += size
                yield Part(number, here, whole[here] - self.offsets[number])

    def named(self, indices: Sequence[int] | NDArray[np.int64]) -> list[tuple[str, int]]:
        """For each index the name of its source, and its index there."""
        whole = np.asarray(indices, dtype=np.int64)
        which = self.which(whole)
        names = [self.sources[number].name for number in which.tolist()]
        return list(zip(names, (whole - self.offsets[which]).tolist()))

    def sample_name(self, index: int) -> str | None:
        """The source of a sample, and the sample's name or index there."""
        source, within = self._at(index)
        return f"{source.name}: {name_of(source.rows, within) or within}"

    def __getitem__(self, index: int) -> Any:
        source, within = self._at(index)
        return self.finished(source, source.rows[within])

    def _at(self, index: int) -> tuple[Source, int]:
        number = int(self.offsets[1:].searchsorted(index, side="right"))
        return self.sources[number], int(index - self.offsets[number])

    def finishes(self, source: Source) -> bool:
        """Whether anything is done to the samples of a source."""
        options = (source.transform, source.converter, self.source_key)
        return any(option is not None for option in options)

    def finished(self, source: Source, sample: Any) -> Any:
        """A sample of a source: transformed, converted, and with the name of the source."""
        if source.transform is not None:
            sample = source.transform(sample)
        if source.converter is not None:
            sample = source.converter.convert_sample(sample)
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
