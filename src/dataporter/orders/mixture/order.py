"""The order of a mixture: position → source → the next sample of that source's own order (C14)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders.mixture.apportion import MOST_SAMPLES
from dataporter.orders.mixture.phase import Blend, Phase, timeline_of
from dataporter.orders.mixture.streams import Consumed
from dataporter.orders.order import Order
from dataporter.orders.shuffled import ShuffledOrder
from dataporter.orders.weighted.order import is_weighted
from dataporter.seeding.hashing import STREAM_MIXTURE, fold

__all__ = ["MixtureOrder", "inner_name", "source_seed", "version_with"]

# Runs of one pass over one source: beyond so many, one call for all takes less time.
_MANY = 8
_VERSION = 1


def source_seed(seed: int, name: str) -> int:
    """The seed of a source's own order, which the other sources do not change."""
    word = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return fold(seed, word, STREAM_MIXTURE) >> 1


def inner_name(name: str) -> str | None:
    """The name of the sources' order, in the name of a mixture's; None for any other name."""
    is_mixture = name.startswith("mixture(") and name.endswith(")")
    return name[len("mixture(") : -1] if is_mixture else None


def version_with(inner: Order) -> int:
    """The version of a mixture whose sources have this order."""
    return 100 * _VERSION + inner.version


@dataclass(frozen=True, slots=True)
class MixtureOrder:
    """Samples of several sources by weight, each source in its own order, pass after pass.

    A position of the run, counted over all epochs, falls into a period, in which each source has
    its share of the samples (``Apportionment``) in an order drawn from (seed, period). So the count
    of a source's samples before the position is known without looking at those before, and it is
    the position in the source's own endless order.

    Attributes:
        phases: between changes of the mixture, the earliest first; at least one.
        inner: the order of each source. The number of the pass stands for the epoch.
        blend: the mixture as it was built. Indices count through its sources one after the other,
            as in torch's ``ConcatDataset``.
    """

    phases: tuple[Phase, ...]
    inner: Order
    blend: Blend

    @classmethod
    def of(
        cls, blend: Blend, inner: Order, phases: tuple[Phase, ...] | None = None
    ) -> MixtureOrder:
        """The order of a mixture; of a run that begins, or of one that had these phases."""
        if is_weighted(inner.name):
            raise ConfigurationError(
                f"order={inner!r}: in a mixture an order must have each sample of a source once a "
                "pass; weigh the sources by weights=, and for classes make each one a source"
            )
        for name, length in zip(blend.names, blend.lengths):
            if (found := inner.epoch_length(length)) != length:
                raise ConfigurationError(
                    f"order={inner.name!r} has {found} positions an epoch over the {length} "
                    f"samples of source {name!r}: in a mixture an order must have each sample of a "
                    "source once a pass; use 'shuffled', 'blocks' or 'sequential'"
                )
        return cls(phases or (Phase.first(blend),), inner, blend)

    @property
    def name(self) -> str:
        return f"mixture({self.inner.name})"

    @property
    def version(self) -> int:
        """Of the mixing, in hundreds, and of the order of each source."""
        return version_with(self.inner)

    @property
    def length(self) -> int:
        """How many samples all sources have together."""
        return sum(self.blend.lengths)

    def epoch_length(self, dataset_length: int) -> int:
        """Positions of the first epoch."""
        return self.length_of(0)

    def length_of(self, epoch: int) -> int:
        """Positions of an epoch."""
        return timeline_of(self.phase_at(epoch, MOST_SAMPLES)).epoch(epoch)[1]

    def phase_at(self, epoch: int, position: int) -> Phase:
        """The phase that a position is in; the first one for what came before it."""
        later = (p for p in reversed(self.phases) if (p.epoch, p.position) <= (epoch, position))
        return next(later, self.phases[0])

    def consumed(self, seed: int, epoch: int, position: int) -> dict[str, Consumed]:
        """By name, what was consumed of each source before a position of an epoch."""
        phase = self.phase_at(epoch, position)
        counted = timeline_of(phase).consumed(seed, epoch, position)
        return {**dict(zip(phase.blend.names, counted)), **dict(phase.absent)}

    def sources_at(self, positions: NDArray[np.int64], *, seed: int, epoch: int) -> set[str]:
        """The names of the sources of the samples at these positions."""
        names = set()
        for phase, here in self._split(positions, epoch):
            sources = timeline_of(phase).taken(seed, epoch, positions[here]).sources
            names |= {phase.blend.names[source] for source in np.unique(sources).tolist()}
        return names

    def indices(
        self, positions: NDArray[np.int64], *, seed: int, epoch: int, dataset_length: int
    ) -> NDArray[np.int64]:
        """Indices into the sources one after the other; both int64 of the same shape."""
        flat = positions.ravel()
        indices = np.empty(len(flat), dtype=np.int64)
        for phase, here in self._split(flat, epoch):
            indices[here] = self._indices(phase, flat[here], seed, epoch)
        return indices.reshape(positions.shape)

    def _split(
        self, positions: NDArray[np.int64], epoch: int
    ) -> list[tuple[Phase, NDArray[np.int64] | slice]]:
        """The phases that positions of an epoch are in, each with the places of its positions."""
        if not len(positions):
            return []
        lowest, highest = int(positions.min()), int(positions.max())
        first = self.phases[0]
        if (epoch, lowest) < (first.epoch, first.position):
            raise ConfigurationError(
                f"position {lowest} of epoch {epoch} lies before the mixture changed, at position "
                f"{first.position} of epoch {first.epoch}: a state does not keep what was mixed "
                "before a change; ask for positions from there on"
            )
        if self.phase_at(epoch, lowest) is self.phase_at(epoch, highest):
            return [(self.phase_at(epoch, lowest), slice(None))]
        begins = [p.position if p.epoch == epoch else 0 for p in self.phases if p.epoch <= epoch]
        which = np.searchsorted(np.array(begins), positions, side="right") - 1
        return [(self.phases[n], np.flatnonzero(which == n)) for n in np.unique(which).tolist()]

    def _indices(
        self, phase: Phase, positions: NDArray[np.int64], seed: int, epoch: int
    ) -> NDArray[np.int64]:
        sources, counts = timeline_of(phase).taken(seed, epoch, positions)
        by_source = np.argsort(sources, kind="stable")
        sources, counts = sources[by_source], counts[by_source]
        passes, offsets, lengths = _passes_of(phase, sources, counts)
        # Where another source or another pass begins.
        begins = np.flatnonzero((np.diff(sources) != 0) | (np.diff(passes) != 0)) + 1
        begins = np.concatenate(([0], begins))
        names = [phase.blend.names[source] for source in sources[begins].tolist()]
        starts = dict(zip(self.blend.names, accumulate(self.blend.lengths, initial=0)))
        if gone := [name for name in names if name not in starts]:
            raise ConfigurationError(
                f"epoch {epoch} has samples of source {gone[0]!r} before the mixture changed, and "
                "that source is no longer part of it"
            )
        sizes = np.diff(begins, append=len(positions))
        within = self._over(
            offsets,
            begins,
            sizes,
            [source_seed(seed, name) for name in names],
            passes[begins],
            lengths[begins],
        )
        indices = np.empty(len(positions), dtype=np.int64)
        indices[by_source] = within + np.repeat([starts[name] for name in names], sizes)
        return indices

    def _over(
        self,
        offsets: NDArray[np.int64],
        begins: NDArray[np.int64],
        sizes: NDArray[np.int64],
        seeds: list[int],
        passes: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Indices at offsets in passes over sources, each pass a run of the offsets."""
        if isinstance(self.inner, ShuffledOrder) and len(seeds) > _MANY:
            which = np.repeat(np.arange(len(seeds)), sizes)
            return self.inner.over_many(
                offsets, which, seeds=seeds, epochs=passes, dataset_lengths=lengths
            )
        runs = zip(begins.tolist(), sizes.tolist(), seeds, passes.tolist(), lengths.tolist())
        parts = [
            self.inner.indices(
                offsets[begin : begin + size], seed=seed, epoch=number, dataset_length=length
            )
            for begin, size, seed, number, length in runs
        ]
        return np.concatenate(parts)


def _passes_of(
    phase: Phase, sources: NDArray[np.uint16], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For samples of sources, counted from the phase's beginning: the pass, the offset in it, and
    its length.
    """
    lengths = np.array(phase.blend.lengths, dtype=np.int64)
    done = np.array([each.passes for each in phase.consumed], dtype=np.int64)
    begun = np.array([each.offset for each in phase.consumed], dtype=np.int64)
    before = np.array([each.length for each in phase.consumed], dtype=np.int64)
    each_length = lengths[sources]
    grown = (begun > 0) & (before != lengths)
    if not grown.any():
        offsets = counts + begun[sources]
        # Most batches lie within the first pass, and dividing is slow.
        passes = done[sources]
        if (offsets >= each_length).any():
            whole, offsets = np.divmod(offsets, each_length)
            passes += whole
        return passes, offsets, each_length
    # A pass under way has the length that its source had when it began.
    rest = np.where(grown, before - begun, 0)[sources]
    under_way = counts < rest
    ahead = np.where(grown, 0, begun)[sources] + counts - rest
    passes, offsets = np.divmod(ahead, each_length)
    passes += done[sources] + grown[sources]
    passes = np.where(under_way, done[sources], passes)
    offsets = np.where(under_way, counts + begun[sources], offsets)
    return passes, offsets, np.where(under_way, before[sources], each_length)
