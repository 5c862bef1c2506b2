"""The report of a mixture: how much of each source a run has had, and how it is mixed from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MixtureReport", "SourceReport", "WeightsReport"]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """A source of a mixture.

    Attributes:
        name: of the source.
        length: its number of samples; None if it is left out now, its count kept.
        consumed: number of its samples that the run has had, over all epochs and ranks.
        passes: over it, such as 1.25.
        share: of all samples that the run has had, 0 to 1.
        weight: its share at the position, 0 to 1; None if it is left out.
        max_passes: after which it ends; None for no end.
    """

    name: str
    length: int | None
    consumed: int
    passes: float
    share: float
    weight: float | None
    max_passes: int | None = None


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Weights that are yet to come.

    Attributes:
        sample: of the run, counted over all epochs, from which on they hold.
        weights: by source; they sum to 1.
        is_reached_gradually: the weights move to them on a straight line.
    """

    sample: int
    weights: Mapping[str, float]
    is_reached_gradually: bool = False

    def __str__(self) -> str:
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in self.weights.items())
        if self.is_reached_gradually:
            return f"on a straight line until sample {self.sample:,} of the run: {weights}"
        return f"from sample {self.sample:,} of the run on: {weights}"


@dataclass(frozen=True, slots=True)
class MixtureReport:
    """How a mixture stands.

    Attributes:
        sample: how many samples the run has had, over all epochs and ranks.
        stopping: how long an epoch is.
        sources: those of the mixture, then those that are left out.
        changes: of the weights, that are yet to come: of a schedule, or of ``set_weights()``.
    """

    sample: int
    stopping: int | str
    sources: tuple[SourceReport, ...]
    changes: tuple[WeightsReport, ...]

    def __str__(self) -> str:
        epochs = f"stopping={self.stopping!r}"
        if isinstance(self.stopping, int):
            epochs = f"epochs of {self.stopping:,} samples"
        return f"{self.sample:,} samples of the run so far, {epochs}"
