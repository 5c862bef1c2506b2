"""Advice: how many workers a loader should have, by what was measured."""

from __future__ import annotations

from math import ceil
from statistics import median

from dataporter.tools.bench.report import Trial, duration, rate

__all__ = ["by_estimate", "by_trial"]

# Numbers of workers whose rates differ by less are the same, on a machine that others use, too.
_ALIKE = 0.05


def by_trial(trials: tuple[Trial, ...]) -> list[str]:
    """The fewest workers that come near the best rate of all that were tried."""
    best = max(trials, key=lambda trial: trial.median)
    enough = min(
        (trial for trial in trials if trial.median >= (1 - _ALIKE) * best.median),
        key=lambda trial: trial.workers,
    )
    lines = [f"num_workers={enough.workers}: {rate(enough.median)} samples/s{_more(enough, best)}"]
    others = [trial for trial in trials if trial is not enough]
    if others and any(min(enough.rates) <= max(trial.rates) for trial in others):
        rivals = [str(trial.workers) for trial in others if max(trial.rates) >= min(enough.rates)]
        lines.append(
            f"the rounds overlap with those of {', '.join(rivals)} workers: measure for longer "
            "(--seconds) where the difference matters"
        )
    return lines


def _more(enough: Trial, best: Trial) -> str:
    if enough is best:
        return ", the most of those tried"
    return f", within {_ALIKE:.0%} of the most ({rate(best.median)} with {best.workers})"


def by_estimate(work: list[float], handover: float | None, step: float, cores: int) -> list[str]:
    """What the stages say of workers that were not tried.

    Args:
        work: seconds to make each batch.
        handover: to bring one from a worker into the training process, where it was measured.
        step: the training's own.
        cores: that there are for this process.
    """
    each = median(work)
    made = f"a batch takes {duration(each)} to make"
    if handover is not None and handover >= each:
        return [f"num_workers=0: {made}, and {duration(handover)} to be handed over by a worker"]
    if step <= 0:
        if not handover:
            return [f"{made}; --workers 0,1,{cores} tells how many workers help"]
        most = max(1, min(cores, ceil(each / handover)))
        return [
            f"num_workers={most} is as many as can help: {made} and {duration(handover)} to be "
            f"handed over, and there are {cores} cores",
            "fewer do where the training's step takes longer than that: say --step-ms",
        ]
    if handover is not None and handover >= step:
        return [
            f"no number of workers is enough: to hand a batch over takes {duration(handover)}, and "
            f"the step {duration(step)}; a converter makes batches smaller"
        ]
    if each / cores > step:
        return [
            f"num_workers={cores}, as many as there are cores: {made}, so that it would take "
            f"{ceil(each / step)} to keep up with a step of {duration(step)}; the loop will wait "
            f"about {duration(each / cores - step)} a step"
        ]
    # The slowest tenth of the batches are not to be waited for.
    slow = sorted(work)[int(0.9 * (len(work) - 1))]
    needed = min(cores, ceil(slow / step))
    return [f"num_workers={needed}: {made}, and the step takes {duration(step)}"]
