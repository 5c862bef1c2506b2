"""The verdict: compares the logs of the training processes, step by step and bit by bit."""

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

# The compared fields of a step, and their names in the output.
COMPARED = {"samples": "sample ids", "digest": "batch bytes", "loss": "losses"}


class Difference(NamedTuple):
    """What is wrong with a step: one of `COMPARED` differs, or the step is missing or repeated."""

    epoch: int
    step: int
    what: str

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}: {self.what}"


def differences(expected: Sequence[Step], found: Sequence[Step]) -> list[Difference]:
    """Every difference between ``found`` and ``expected``, by step; empty if they are equal."""
    found_at: dict[tuple[int, int], list[Step]] = {}
    for step in found:
        found_at.setdefault(step.key, []).append(step)
    differing = []
    for step in expected:
        candidates = found_at.pop(step.key, [])
        if not candidates:
            differing.append(Difference(*step.key, "missing"))
        if len(candidates) > 1:
            differing.append(Difference(*step.key, f"{len(candidates)} times"))
        for field, name in COMPARED.items():
            if any(getattr(other, field) != getattr(step, field) for other in candidates):
                differing.append(Difference(*step.key, f"{name} differ"))
    differing += (Difference(*key, "not expected") for key in found_at)
    if not differing and list(expected) != list(found):
        first = next(have for want, have in zip(expected, found) if want != have)
        differing.append(Difference(*first.key, "out of order"))
    return differing


class Coverage(NamedTuple):
    """How often each sample was seen: int64, of shape (dataset length,)."""

    counts: NDArray[np.int64]

    @property
    def repeated(self) -> int:
        """Number of samples seen more than once."""
        return int((self.counts > 1).sum())

    @property
    def never_seen(self) -> int:
        """Number of samples never seen."""
        return int((self.counts == 0).sum())

    @property
    def is_whole(self) -> bool:
        """Whether every sample was seen exactly once."""
        return self.repeated == self.never_seen == 0


def coverage(steps: Sequence[Step], epoch: int, length: int) -> Coverage:
    """How often each of ``length`` samples was seen in an epoch."""
    seen = chain.from_iterable(step.samples for step in steps if step.epoch == epoch)
    counts = np.bincount(np.fromiter(seen, np.int64), minlength=length)
    return Coverage(counts.astype(np.int64))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of comparing a killed and resumed run with the uninterrupted one.

    Attributes:
        steps: number of steps of the uninterrupted run.
        same: for each of `COMPARED`, the number of these steps in which it is the same.
        differences: everything that differs.
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
    """Compare a killed and resumed run with ``reference``.

    Args:
        reference: the steps of the uninterrupted run.
        first: the steps of the process that was killed.
        kept: how many of them the checkpoint includes.
        resumed: the steps of the process that resumed from the checkpoint.
    """
    whole = (*first[:kept], *resumed)
    found = {step.key: step for step in whole}
    same = {
        field: sum(
            step.key in found and getattr(found[step.key], field) == getattr(step, field)
            for step in reference
        )
        for field in COMPARED
    }
    differing = chain(
        differences(reference, whole),
        # The steps lost in the kill must also have been right, and be the same when redone.
        differences(reference[: len(first)], first),
        differences(*_done_twice(first, kept, resumed)),
    )
    return Verdict(
        steps=len(reference),
        same=same,
        differences=tuple(dict.fromkeys(differing)),
    )


class Redone(NamedTuple):
    """The number of steps lost in the kill and redone, and how many of them were the same."""

    steps: int
    same: int


def redone(first: Sequence[Step], kept: int, resumed: Sequence[Step]) -> Redone:
    """Compare the steps lost in the kill with the same steps redone."""
    before, after = _done_twice(first, kept, resumed)
    return Redone(len(before), sum(step == other for step, other in zip(before, after)))


def _done_twice(
    first: Sequence[Step], kept: int, resumed: Sequence[Step]
) -> tuple[Sequence[Step], Sequence[Step]]:
    lost = first[kept:]
    return lost, resumed[: len(lost)]
