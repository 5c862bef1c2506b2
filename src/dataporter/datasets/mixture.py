"""`Mixture`: several datasets as one, whose samples come by weight (C14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
from torch.utils.data import Dataset, get_worker_info

from dataporter.checks import given
from dataporter.datasets.fingerprint import fingerprint_of
from dataporter.datasets.mixture_arguments import (
    LinearWeights,
    by_source,
    converters_checked,
    limits_checked,
    mean_lengths,
    sources_checked,
    stopping_checked,
    weights_checked,
)
from dataporter.datasets.mixture_rows import MixtureRows, Source
from dataporter.datasets.rows import length_of
from dataporter.errors import ConfigurationError
from dataporter.orders.mixture.order import MixtureOrder
from dataporter.orders.mixture.phase import Blend, Stopping
from dataporter.orders.mixture.streams import Consumed
from dataporter.orders.sequential import SequentialOrder

__all__ = ["Mixture", "Reader"]

GivenWeights = Mapping[str, float] | Sequence[tuple[int, Mapping[str, float]]] | LinearWeights


class Reader(Protocol):
    """What reads a mixture, and knows how far it has come."""

    def change(self, blend: Callable[[], Blend]) -> None:
        """Mix like this from the next request on that was not yet asked for.

        What the function raises is raised on all ranks.
        """

    def consumed(self) -> dict[str, Consumed]:
        """By name, what was consumed of each source before the position."""

    def weights(self) -> dict[str, float]:
        """By name, the proportions at the position."""


class Mixture(Dataset[Any]):
    """Several map-style datasets as one, whose samples come by weight.

    A :class:`~dataporter.ResumableDataLoader` reads each source in its own order, shuffled anew in
    each pass over it, as if the source were alone: what came of it is always the beginning of that
    order, through all epochs. So weights may change, and sources may join, grow or be left out, in
    the middle of a run: no sample is lost or repeated. In a period of a few hundred samples each
    source has its share (``docs/mixtures.md`` states the bound), in an order drawn from the seed.

    To change the mixture when a run resumes, build it as it shall be from then on, and load the
    state as always. A source is known by its name.

    What a loader leaves out (``drop_last``, a pass that is left early) counts as consumed.

    Args:
        sources: map-style datasets by name; a dict of equally long arrays counts as one.
        weights: each source's proportion of the samples; by default its length. Any numbers of 0
            or more, such as ``{"web": 0.7, "code": 0.25, "books": 0.05}``. As a function of the
            position, counted in samples from the beginning of the run: a list of
            ``(position, weights)``, of which each holds until the next one begins, or
            :class:`~dataporter.LinearWeights` of such a list.
        unit: ``"samples"``, or ``"tokens"``: the weights are proportions of tokens, and ``lengths``
            says how many a sample has.
        lengths: for ``unit="tokens"``, by source: the mean number of tokens of its samples, or an
            array of the number for each.
        stopping: how long an epoch is. ``"first_exhausted"``: until the first source would begin
            another pass. ``"all_exhausted"``: until each source had a whole pass; shorter ones
            repeat. A number: so many samples. Sources continue in the next epoch where they stand.
        max_passes: by source, the number of passes after which it ends, counted over the whole run.
            The others take its share.
        source_key: the key under which each sample, a dict, has the name of its source.
        transforms: by source, a function of one of its samples.
        converters: by source, a :class:`~dataporter.KeyBasedDtypeConverter` for each of its
            samples, behind the transform: for sources whose dtypes differ, to make them alike. To
            widen batches on the device, pass the loader's ``converter=``.

    Raises:
        ConfigurationError: (a ``ValueError``) weights are negative, all 0, name no source or leave
            one out; a source with weight is empty; a schedule goes backwards; and the like.
        UnsupportedDatasetError: (a ``TypeError``) a source has no length.

    By itself, for ``len()``, an index or torch's loader, it is the first epoch of the mixture with
    its sources in their stored order.

    Example:
        >>> from dataporter import Mixture, ResumableDataLoader
        >>> sources = {"low": range(6), "high": range(100, 103)}
        >>> data = Mixture(sources, weights={"low": 2, "high": 1})
        >>> loader = ResumableDataLoader(data, batch_size=3, shuffle=True, seed=3)
        >>> sorted(int(sample) for batch in loader for sample in batch)
        [0, 1, 2, 3, 4, 5, 100, 101, 102]
        >>> data.passes()
        {'low': 1.0, 'high': 1.0}
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        weights: GivenWeights | None = None,
        *,
        unit: str = "samples",
        lengths: Mapping[str, Any] | None = None,
        stopping: Stopping = "first_exhausted",
        max_passes: Mapping[str, int] | None = None,
        source_key: str | None = None,
        transforms: Mapping[str, Callable[[Any], Any]] | None = None,
        converters: Mapping[str, Any] | None = None,
    ) -> None:
        self.sources = sources_checked(sources)
        self._lengths = {name: length_of(rows) for name, rows in self.sources.items()}
        self._means = mean_lengths(unit, lengths, self._lengths)
        names = tuple(self.sources)
        self._given = Blend(
            names,
            tuple(self._lengths.values()),
            weights_checked(weights, self._lengths, self._means),
            limits_checked(max_passes, names),
            stopping_checked(stopping),
        )
        transforms = by_source("transforms", transforms, names)
        converters = converters_checked(converters, names)
        if source_key is not None and not isinstance(source_key, str):
            raise ConfigurationError(f"{given('source_key', source_key)}: expected a text or None")
        self.rows = MixtureRows(
            tuple(
                Source(name, rows, self._lengths[name], transforms.get(name), converters.get(name))
                for name, rows in self.sources.items()
            ),
            source_key,
        )
        self._is_indexed = False
        for source in self.sources.values():
            if isinstance(source, Mixture):
                source.read_by_index()
        self._fingerprints: tuple[str | None, ...] | None = None
        self._readers: WeakSet[Reader] = WeakSet()

    @property
    def blend(self) -> Blend:
        """What is mixed, and in which proportions, as the mixture was built."""
        return self._given

    def fingerprints(self) -> tuple[str | None, ...]:
        """Of each source, a short text that is another one for another content, as of the first
        call; None where nothing is known of the content.
        """
        if self._fingerprints is None:
            found = (fingerprint_of(rows) for rows in self.sources.values())
            self._fingerprints = tuple(None if text is None else _short(text) for text in found)
        return self._fingerprints

    # ---- a dataset by itself

    def __len__(self) -> int:
        return self._order.length_of(0)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def read_by_index(self) -> None:
        """Note that something reads it by index, so that its weights stay."""
        self._is_indexed = True

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        self.read_by_index()
        length = len(self)
        wrong = [index for index in indices if not -length <= index < length]
        if wrong:
            raise IndexError(f"index {wrong[0]} is out of bounds for an epoch of {length} samples")
        positions = np.array(indices, dtype=np.int64) % length
        order = self._order
        rows = order.indices(positions, seed=0, epoch=0, dataset_length=order.length)
        return [self.rows[row] for row in rows.tolist()]

    @property
    def _order(self) -> MixtureOrder:
        return MixtureOrder.of(self._given, SequentialOrder())

    # ---- while it is read

    def attach(self, reader: Reader) -> None:
        """Let :meth:`set_weights`, :meth:`passes` and :attr:`weights` reach what reads it."""
        self._readers.add(reader)

    def set_weights(self, weights: GivenWeights) -> None:
        """Mix by other weights, from the next batch on that no worker was asked for yet.

        The loader's state carries them: a resumed run continues with them as long as the mixture
        is built with the weights that it was built with before. On several ranks all ranks call
        this after the same step. Before a loader reads the mixture, this replaces its weights.

        Args:
            weights: as at construction; positions count from the beginning of the run.

        Raises:
            ConfigurationError: (a ``ValueError``) the weights are wrong, or the ranks of this
                world have no process group in which they could agree on a step.
            RankMismatchError: (a ``ValueError``) another rank has other weights, or is at another
                step.

        Example:
            >>> from dataporter import Mixture, ResumableDataLoader
            >>> data = Mixture({"a": range(8), "b": range(8)}, {"a": 1, "b": 0})
            >>> loader = ResumableDataLoader(data, batch_size=4)
            >>> batches = iter(loader)
            >>> _ = next(batches)
            >>> data.set_weights({"a": 1, "b": 1})
            >>> data.weights
            {'a': 0.5, 'b': 0.5}
        """
        if get_worker_info() is not None:
            raise ConfigurationError(
                "set_weights() in a worker process, which has a copy of the mixture: call it in "
                "the training process"
            )
        if self._is_indexed:
            raise ConfigurationError(
                "set_weights() of a mixture that is read by index (by torch's loader, a custom "
                "sampler or another mixture), where it would change what an index means: read it "
                "by a ResumableDataLoader without a sampler, or build it with other weights"
            )

        def blend() -> Blend:
            checked = weights_checked(weights, self._lengths, self._means)
            return replace(self._given, weights=checked)

        if not self._readers:
            self._given = blend()
        for reader in list(self._readers):
            reader.change(blend)

    def consumed(self) -> dict[str, int]:
        """By source, how many samples the loader's position has behind it, over all epochs."""
        return {name: consumed.count for name, consumed in self._consumed().items()}

    def passes(self) -> dict[str, float]:
        """By source, how many passes over it the loader's position has behind it: 1.25, say."""
        return {
            name: each.passes + each.offset / max(1, each.length)
            for name, each in self._consumed().items()
        }

    @property
    def weights(self) -> dict[str, float]:
        """By source, the proportions at the loader's position; they sum to 1."""
        if (reader := self._reader()) is not None:
            return reader.weights()
        return dict(zip(self._given.names, self._given.weights.at(0)))

    def _consumed(self) -> dict[str, Consumed]:
        if (reader := self._reader()) is not None:
            return reader.consumed()
        return dict.fromkeys(self._given.names, Consumed())

    def _reader(self) -> Reader | None:
        readers = list(self._readers)
        if len(readers) > 1:
            raise ConfigurationError(
                f"{len(readers)} loaders read this mixture, each from a position: build a Mixture "
                "for each of them to ask for its weights and passes"
            )
        return readers[0] if readers else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers = WeakSet()


def _short(fingerprint: str) -> str:
    return blake2b(fingerprint.encode(), digest_size=3).hexdigest()
