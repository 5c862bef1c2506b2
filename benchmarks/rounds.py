"""Rounds: contestants measured in turn, so that noise on the machine affects all alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

__all__ = ["Rounds", "play"]


@dataclass(frozen=True, slots=True)
class Rounds:
    """The figures of each contestant, round by round."""

    figures: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """The median figure of a contestant."""
        return median(self.figures[name])

    def range(self, name: str) -> tuple[float, float]:
        """The lowest and the highest figure of a contestant."""
        return min(self.figures[name]), max(self.figures[name])

    def speeds(self, label: str, than: str) -> list[tuple[str, ...]]:
        """Rows of a table: contestant, median and range of its figures, and times another's."""
        return [
            (
                f"{label}{name}",
                f"{self.median(name):,.0f}",
                "{:,.0f} to {:,.0f}".format(*self.range(name)),
                f"{self.ratio(name, than):.1f}",
            )
            for name in self.figures
        ]

    def paired(self, combine: Callable[[float, float], float], name: str, other: str) -> float:
        """The median of ``combine`` over two contestants' figures of the same round."""
        return median(
            combine(mine, theirs)
            for mine, theirs in zip(self.figures[name], self.figures[other], strict=True)
        )

    def ratio(self, name: str, other: str) -> float:
        """A contestant's figure as a multiple of that of ``other``."""
        return self.paired(lambda mine, theirs: mine / theirs, name, other)


def play(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Rounds:
    """Measure every contestant once per round.

    Each round starts with a different one, so that none always follows the same neighbour.
    """
    names = list(contestants)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            # The next contestant must not pay for collecting this one's garbage.
            gc.collect()
            figures[name].append(contestants[name]())
    return Rounds(figures)
