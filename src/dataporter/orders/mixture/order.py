"""The order of a mixture: position → source → the next sample of that source's own order (C14)."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError
from dataporter.orders.mixture.phase import Blend, Phase, timeline_of
from dataporter.orders.mixture.streams import Consumed
from dataporter.orders.order import Order
from dataporter.orders.shuffled import ShuffledOrder
from dataporter.seeding.hashing import STREAM_MIXTURE, fold

__all__ = ["MixtureOrder", "source_seed"]


def source_seed(seed: int, name: str) -> int:
    """The seed of a source's own order, which the other sources do not change."""
    word = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return fold(seed, word, STREAM_MIXTURE) >> 1


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

    version: ClassVar[int] = 1

    @classmethod
    def of(
        cls, blend: Blend, inner: Order, phases: tuple[Phase, ...] | None = None
    ) -> MixtureOrder:
        """The order of a mixture; of a run that begins, or of one that had these phases."""
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
    def length(self) -> int:
        """How many samples all sources have together."""
        return sum(self.blend.lengths)

    def epoch_length(self, dataset_length: int) -> int:
        """Positions of the first epoch."""
        return self.length_of(0)

    def length_of(self, epoch: int) -> int:
        """Positions of an epoch."""
        return timeline_of(self.phase_at(epoch, 0)).epoch(epoch)[1]

    def phase_at(self, epoch: int, position: int) -> Phase:
        """The phase that a position is in; the first one for what came before it."""
        later = (p for p in reversed(self.phases) if (p.epoch, p.position) <= (epoch, position))
        return next(later, self.phases[0])

    def consumed(self, seed: int, epoch: int, position: int) -> dict[str, Consumed]:
        """By name, what was consumed of each source before a position of an epoch."""
        phase = self.phase_at(epoch, position)
        counted = timeline_of(phase).consumed(seed, epoch, position)
        return {**dict(zip(phase.blend.names, counted)), **dict(phase.absent)}

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
        offsets = dict(zip(self.blend.names, accumulate(self.blend.lengths, initial=0)))
        indices = np.empty(len(positions), dtype=np.int64)
        by_source = np.argsort(sources, kind="stable")
        sizes = np.bincount(sources, minlength=len(phase.blend.names))
        begin = 0
        for source in np.flatnonzero(sizes).tolist():
            here = by_source[begin : begin + sizes[source]]
            begin += int(sizes[source])
            name, consumed = phase.blend.names[source], phase.consumed[source]
            if name not in offsets:
                raise ConfigurationError(
                    f"position {int(positions[here[0]])} of epoch {epoch} is a sample of source "
                    f"{name!r}, which is no longer part of the mixture"
                )
            indices[here] = offsets[name] + self._of_source(
                counts[here], consumed, phase.blend.lengths[source], source_seed(seed, name)
            )
        return indices

    def _of_source(
        self, counts: NDArray[np.int64], consumed: Consumed, length: int, seed: int
    ) -> NDArray[np.int64]:
        """Indices of a source's samples, counted from what was consumed of it on."""
        if not consumed.offset or consumed.length == length:
            passes, offsets = np.divmod(counts + consumed.offset, length)
            return self._over(offsets, passes + consumed.passes, length, seed)
        rest = consumed.length - consumed.offset
        passes, offsets = np.divmod(counts - rest, length)
        indices = np.empty(len(counts), dtype=np.int64)
        old = counts < rest
        pass_under_way = np.full(int(old.sum()), consumed.passes, dtype=np.int64)
        indices[old] = self._over(
            counts[old] + consumed.offset, pass_under_way, consumed.length, seed
        )
        indices[~old] = self._over(offsets[~old], passes[~old] + consumed.passes + 1, length, seed)
        return indices

    def _over(
        self, offsets: NDArray[np.int64], passes: NDArray[np.int64], length: int, seed: int
    ) -> NDArray[np.int64]:
        """Indices at places of passes over a source."""
        if not len(offsets):
            return offsets
        if (first := int(passes.min())) == int(passes.max()):
            return self.inner.indices(offsets, seed=seed, epoch=first, dataset_length=length)
        if isinstance(self.inner, ShuffledOrder):
            return self.inner.over_epochs(offsets, passes, seed=seed, dataset_length=length)
        indices = np.empty(len(offsets), dtype=np.int64)
        for number in np.unique(passes).tolist():
            here = passes == number
            indices[here] = self.inner.indices(
                offsets[here], seed=seed, epoch=number, dataset_length=length
            )
        return indices
