"""Advice: how many workers a loader needs, judged by measurements."""

from __future__ import annotations

from math import ceil
from statistics import median

from dataporter.tools.bench.report import Trial, duration, rate

__all__ = ["by_estimate", "by_trial"]

# Rates that differ by less count as equal: other programs use the machine as well.
_ALIKE = 0.05


def by_trial(trials: tuple[Trial, ...]) -> list[str]:
    """Advise the smallest number of workers whose rate is close to the best one tried."""
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
            f"its rounds overlap with those of {', '.join(rivals)} workers: measure for longer "
            "(--seconds) if the difference matters"
        )
    return lines


def _more(enough: Trial, best: Trial) -> str:
    if enough is best:
        return ", the best of those tried"
    return f", within {_ALIKE:.0%} of the best ({rate(best.median)} with {best.workers})"


def by_estimate(work: list[float], handover: float | None, step: float, cores: int) -> list[str]:
    """Estimate the number of workers needed, from the time of each stage.

    Args:
        work: seconds to make each batch.
        handover: seconds to bring a batch from a worker into the training process; None if it was
            not measured.
        step: seconds of the training's own step.
        cores: processor cores that this process may use.
    """
    each = median(work)
    made = f"a batch takes {duration(each)} to make"
    if handover is not None and handover >= each:
        return [f"num_workers=0: {made}, and {duration(handover)} to hand over from a worker"]
    if step <= 0:
        if not handover:
            return [f"{made}; --workers 0,1,{cores} shows how many workers help"]
        most = max(1, min(cores, ceil(each / handover)))
        return [
            f"num_workers={most} is the most that can help: {made} and {duration(handover)} to "
            f"hand over, and there are {cores} cores",
            "fewer are enough if the training's own step takes longer than that: give --step-ms",
        ]
    if handover is not None and handover >= step:
        return [
            f"no number of workers is enough: handing a batch over takes {duration(handover)}, and "
            f"the step {duration(step)}; a converter makes batches smaller"
        ]
    if each / cores > step:
        return [
            f"num_workers={cores}, the number of cores: {made}, so {ceil(each / step)} workers "
            f"would be needed to keep up with a step of {duration(step)}; the loop will wait about "
            f"{duration(each / cores - step)} per step"
        ]
    # Enough for nine batches in ten: the loop may wait for the slowest tenth.
    slow = sorted(work)[int(0.9 * (len(work) - 1))]
    needed = min(cores, ceil(slow / step))
    return [f"num_workers={needed}: {made}, and the step takes {duration(step)}"]
