"""Cases: what the outcomes of trials say about the loader, in the order of the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from dataporter.tools.verification.comparison import Comparison, compare, compare_samples
from dataporter.tools.verification.processes import Outcome
from dataporter.tools.verification.recording import Recording
from dataporter.tools.verification.report import (
    KILLED,
    UNINTERRUPTED,
    WORKER_KILLED,
    Case,
    Measures,
    Throughput,
    Verdict,
)
from dataporter.tools.verification.trials import Trial

__all__ = ["in_order", "judged", "measures_of"]

# Names that are not here come after these and before the kills.
_NAMES = (
    *(UNINTERRUPTED, "start", "mid-epoch", "random step"),
    *("last step", "end of epoch", "second epoch"),
)
_KILLS = {KILLED: len(_NAMES) + 1, WORKER_KILLED: len(_NAMES) + 2}


def judged(trial: Trial, outcomes: Sequence[Outcome | None]) -> Case:
    """The case of a trial after its run; not run if a process had no time to start."""
    ended = [outcome for outcome in outcomes if outcome is not None]
    if len(ended) < len(outcomes):
        return trial.case
    error = next((outcome.error for outcome in ended if outcome.error), None)
    recordings = [outcome.found for outcome in ended]
    events = [[] if recording is None else recording.events for recording in recordings]
    if trial.case.by_sample:
        comparison = compare_samples(trial.expected, events, trial.dropped)
        return replace(
            trial.case, verdict=_verdict(comparison, error), comparison=comparison, error=error
        )
    (expected,), (recording,) = trial.expected, recordings
    stopped = recording is not None and recording.stopped
    comparison = compare(expected, events[0], incomplete=bool(error) or stopped)
    if stopped and not comparison.batches:
        return trial.case
    return replace(
        trial.case,
        verdict=_verdict(comparison, error),
        comparison=comparison,
        error=error,
        resume_seconds=None if recording is None else recording.resume_seconds,
    )


def _verdict(comparison: Comparison, error: str | None) -> Verdict:
    if error is not None:
        return "failed"
    return "exact" if comparison.first is None else "not exact"


def in_order(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases grouped by setting, in the order in which the settings were tried."""
    settings = list(dict.fromkeys(case.setting for case in cases))
    names = {name: number for number, name in enumerate(_NAMES)} | _KILLS
    return tuple(
        sorted(
            cases,
            key=lambda case: (
                settings.index(case.setting),
                names.get(case.name.partition(", as ")[0], len(_NAMES)),
            ),
        )
    )


def measures_of(
    recordings: Sequence[Recording], throughput: Sequence[Throughput], *, stateful: bool
) -> Measures:
    """The measurements of recordings."""
    saving = [seconds for one in recordings for seconds in one.state_seconds]
    resuming = [one.resume_seconds for one in recordings if one.resume_seconds is not None]
    return Measures(
        max((one.state_bytes for one in recordings), default=0) if stateful else None,
        median(saving) if saving else None,
        median(resuming) if resuming else None,
        tuple(throughput),
    )
