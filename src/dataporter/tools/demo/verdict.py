"""The verdict: compares what the training processes logged, step by step and bit by bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataporter.tools.demo.steps import Step

__all__ = [
    "COMPARED",
    "Coverage",
    "Difference",
    "Redone",
    "Verdict",
    "coverage",
    "differences",
    "judge",
    "redone",
]

# What is compared of a step, and how people call it.
COMPARED = {"samples": "sample ids", "digest": "batch bytes", "loss": "losses"}


class Difference(NamedTuple):
    """What is wrong with one step: one of `COMPARED`, or that it is missing, twice or too many."""

    epoch: int
    step: int
    what: str

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}: {self.what}"


def differences(expected: Sequence[Step], found: Sequence[Step]) -> list[Difference]:
    """Everything in which ``found`` is not ``expected``, by step; nothing when they are equal."""
    found_at: dict[tuple[int, int], list[Step]] = {}
    for step in found:
        found_at.setdefault(step.place, []).append(step)
    differing = []
    for step in expected:
        candidates = found_at.pop(step.place, [])
        if not candidates:
            differing.append(Difference(*step.place, "missing"))
        if len(candidates) > 1:
            differing.append(Difference(*step.place, f"{len(candidates)} times"))
        for field, name in COMPARED.items():
            if any(getattr(other, field) != getattr(step, field) for other in candidates):
                differing.append(Difference(*step.place, f"{name} differ"))
    differing += (Difference(*place, "not expected") for place in found_at)
    if not differing and list(expected) != list(found):
        first = next(have for want, have in zip(expected, found) if want != have)
        differing.append(Difference(*first.place, "out of turn"))
    return differing


class Coverage(NamedTuple):
    """How often each sample came in some steps: int64, of shape (dataset length,)."""

    counts: NDArray[np.int64]

    @property
    def repeated(self) -> int:
        """Samples that came more than once."""
        return int((self.counts > 1).sum())

    @property
    def never_seen(self) -> int:
        """Samples that did not come at all."""
        return int((self.counts == 0).sum())

    @property
    def is_whole(self) -> bool:
        """Whether every sample came exactly once."""
        return self.repeated == self.never_seen == 0


def coverage(steps: Sequence[Step], epoch: int, length: int) -> Coverage:
    """How often each of ``length`` samples came in an epoch."""
    seen = chain.from_iterable(step.samples for step in steps if step.epoch == epoch)
    counts = np.bincount(np.fromiter(seen, np.int64), minlength=length)
    return Coverage(counts.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of comparing a killed and resumed training with the one left alone.

    Attributes:
        steps: how many steps the training was to have.
        same: for each of `COMPARED`, in how many of these steps it was the same.
        differences: all that is not as it should be.
    """

    steps: int
    same: dict[str, int]
    differences: tuple[Difference, ...]

    @property
    def exact(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def judge(
    reference: Sequence[Step], first: Sequence[Step], kept: int, resumed: Sequence[Step]
) -> Verdict:
    """Compare a resumed training with ``reference``.

    Args:
        reference: the training left alone.
        first: what the process logged that was killed.
        kept: how many of its steps are in the checkpoint.
        resumed: what the process logged that went on from the checkpoint.
    """
    whole = (*first[:kept], *resumed)
    found = {step.place: step for step in whole}
    same = {
        field: sum(
            step.place in found and getattr(found[step.place], field) == getattr(step, field)
            for step in reference
        )
        for field in COMPARED
    }
    differing = chain(
        differences(reference, whole),
        # What was lost with the kill must have been right as well,
        differences(reference[: len(first)], first),
        # and have come again as it was.
        differences(*_done_twice(first, kept, resumed)),
    )
    return Verdict(
        steps=len(reference),
        same=same,
        differences=tuple(dict.fromkeys(differing)),
    )


class Redone(NamedTuple):
    """How many steps were done before the kill and again after it, and how many came the same."""

    steps: int
    same: int


def redone(first: Sequence[Step], kept: int, resumed: Sequence[Step]) -> Redone:
    """Compare the steps that the kill undid with how they came again."""
    before, after = _done_twice(first, kept, resumed)
    return Redone(len(before), sum(step == other for step, other in zip(before, after)))


def _done_twice(
    first: Sequence[Step], kept: int, resumed: Sequence[Step]
) -> tuple[Sequence[Step], Sequence[Step]]:
    undone = first[kept:]
    return undone, resumed[: len(undone)]
