"""Trials: which runs to make, what each must deliver, and what its outcome says; no run is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, zip_longest
from typing import Literal

from dataporter.tools.verification.comparison import Comparison, compare, compare_samples
from dataporter.tools.verification.diagnosis import RESUMING_HOSTS
from dataporter.tools.verification.factory import Setting
from dataporter.tools.verification.processes import Outcome, Task
from dataporter.tools.verification.recording import Event, Job, state_file
from dataporter.tools.verification.reference import Interruption, Reference
from dataporter.tools.verification.report import (
    KILLED,
    REQUIRED,
    UNINTERRUPTED,
    WORKER_KILLED,
    Case,
    Verdict,
)

__all__ = [
    "Run",
    "Trial",
    "failure",
    "is_required",
    "judged",
    "killed_run",
    "other_batch_sizes",
    "other_worlds",
    "ranks_that_resume",
    "ranks_that_save",
    "repeats",
    "resumptions",
    "states_of_killed",
    "uninterrupted",
]

_WORLDS = (1, 2, 4)
_SECONDS_TO_STOP = 10.0
_TOO_SHORT = "the epoch is too short for an interruption in its middle"


@dataclass(frozen=True, slots=True)
class Trial:
    """Processes to run, and what they must deliver.

    Attributes:
        case: the case as long as it is not run.
        tasks: of one process, or of one for each rank.
        expected: the events to compare with, for each rank of the run that delivered them.
        dropped: if samples are compared, either run may lack fewer than this at its tail.
    """

    case: Case
    tasks: tuple[Task, ...]
    expected: tuple[Sequence[Event], ...]
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has saved its states.

    Attributes:
        setting: of the loader.
        events: the batches and ends of passes that it delivered.
        states: directory of its states.
    """

    setting: Setting
    events: Sequence[Event]
    states: str


def judged(trial: Trial, outcomes: Sequence[Outcome | None]) -> Case:
    """The case of a trial after its run; not run if a process had no time to start."""
    ended = [outcome for outcome in outcomes if outcome is not None]
    if len(ended) < len(outcomes):
        return trial.case
    error = next((outcome.error for outcome in ended if outcome.error), None)
    recordings = [outcome.found for outcome in ended]
    raised = next((failure(outcome) for outcome in ended if outcome.error), None)
    if raised == "refused":
        return replace(trial.case, verdict=raised, error=error)
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


def failure(outcome: Outcome) -> Verdict:
    """The verdict on a run that raised."""
    return "refused" if getattr(outcome.found, "refused", False) else "failed"


def _verdict(comparison: Comparison, error: str | None) -> Verdict:
    if error is not None:
        return "failed"
    return "exact" if comparison.first is None else "not exact"


# ---- with other workers


def uninterrupted(reference: Reference, setting: Setting) -> Trial:
    """A run that saves its state at each interruption, but is not interrupted."""
    job = Job(
        reference.factory,
        setting,
        events=len(reference.events),
        state=reference.first_state(setting),
        save=tuple(one.after for one in reference.interruptions),
        states=reference.states(setting.shown()),
    )
    as_first = "" if setting == reference.setting else f", as {reference.setting.shown()}"
    at = ", at the end" if reference.begun_at else ""
    name = f"{UNINTERRUPTED}{at}{as_first}"
    case = Case(setting.shown(), name, "not run", begun_at=reference.begun_at)
    return Trial(case, (reference.task(job, "one"),), (reference.events,))


def repeats(reference: Reference, outcome: Outcome | None) -> bool:
    """Whether a new loader delivers what the reference's did.

    This package's loaders get the reference's seed with its state; a loader without a state is
    reread in any case.
    """
    recording = None if outcome is None else outcome.found
    if reference.facts["ours"] or not reference.facts["stateful"] or recording is None:
        return True
    return compare(reference.events, recording.events).first is None


def killed_run(reference: Reference, run: Run, *, repeats: bool = True) -> Trial | None:
    """A run that SIGKILL ends at a random moment; None: it is too short.

    Args:
        repeats: whether a new loader repeats a run; if not, this one starts from the run's state.
    """
    interruption = _first_within(reference, run)
    if interruption is None:
        return None
    job = Job(
        reference.factory,
        run.setting,
        events=len(reference.events),
        state=_first_state(reference, run, repeats=repeats),
        states=states_of_killed(reference, run.setting),
        kill_after=interruption.after,
    )
    case = Case(run.setting.shown(), KILLED, "not run", interruption.after)
    return Trial(case, (reference.task(job, "one", expects_kill=True),), ())


def states_of_killed(reference: Reference, setting: Setting) -> str:
    """The directory of the states of a run that is killed."""
    return reference.states(f"{setting.shown()}, killed")


def resumptions(
    reference: Reference, runs: Sequence[Run], killed: Mapping[Setting, int], *, repeats: bool
) -> list[Trial]:
    """The trials that resume runs in new processes, one of each setting in turn.

    Args:
        killed: number of events before the last state of each killed run.
        repeats: whether a new loader repeats a run; if not, it starts from the run's first state.
    """
    hosts = cycle(RESUMING_HOSTS)
    trials = [list(_resumptions_of(reference, run, runs, hosts, repeats=repeats)) for run in runs]
    for run in runs:
        if run.setting in killed:
            case = Case(run.setting.shown(), KILLED, "not run", killed[run.setting])
            saved = replace(run, states=states_of_killed(reference, run.setting))
            trials.append([_resumption(reference, saved, case, next(hosts))])
    # If the time runs out, every setting has been tried, with what matters most.
    found = [trial for each in zip_longest(*trials) for trial in each if trial is not None]
    return sorted(found, key=lambda trial: not is_required(trial))


def is_required(trial: Trial) -> bool:
    """Whether it is an interruption without which nothing is proven."""
    return trial.case.name in REQUIRED


def _resumptions_of(
    reference: Reference, run: Run, runs: Sequence[Run], hosts: Iterator[str], *, repeats: bool
) -> Iterator[Trial]:
    setting = run.setting.shown()
    for one in reference.interruptions:
        if one.after < len(run.events):
            case = Case(setting, one.name, "not run", one.after, begun_at=reference.begun_at)
            yield _resumption(reference, run, case, next(hosts))
    interruption = _first_within(reference, run)
    if interruption is None or reference.begun_at:
        return
    after, first = interruption.after, reference.setting
    if run.setting != first and reference.may_change_workers:
        name = f"mid-epoch, from {first.shown()}"
        case = Case(setting, name, "not run", after, saved_under=first.shown())
        events = next((one.events for one in runs if one.setting == first), [])
        saved = Run(run.setting, events, reference.states(first.shown()))
        yield _resumption(reference, saved, case, next(hosts))
    if run.setting.num_workers and run.setting.worker_kind == "process":
        job = Job(
            reference.factory,
            run.setting,
            events=len(run.events),
            state=_first_state(reference, run, repeats=repeats),
            kill_worker_after=after,
        )
        case = Case(setting, WORKER_KILLED, "not run", after, whole=True)
        yield Trial(case, (reference.task(job, next(hosts)),), (run.events,))


def _resumption(
    reference: Reference, run: Run, case: Case, host: str, *, events: int | None = None
) -> Trial:
    """The trial that resumes a run where the case says.

    Args:
        events: number of events to record; by default as many as the run has left.
    """
    is_stateful = reference.facts["stateful"]
    job = Job(
        reference.factory,
        run.setting,
        events=len(run.events) - case.after if events is None else events,
        state=str(state_file(run.states, case.after)) if is_stateful else None,
        replay=0 if is_stateful else case.after,
        seconds=reference.seconds - _SECONDS_TO_STOP,
    )
    return Trial(case, (reference.task(job, host),), (run.events[case.after :],))


def _first_within(reference: Reference, run: Run) -> Interruption | None:
    within = (one for one in reference.interruptions if 0 < one.after < len(run.events))
    return next(within, None)


def _first_state(reference: Reference, run: Run, *, repeats: bool) -> str | None:
    """The state from which another process repeats a run; None: it does so by itself."""
    if not reference.facts["ours"]:
        return None if repeats else str(state_file(run.states, 0))
    return reference.first_state(run.setting) or str(state_file(run.states, 0))


# ---- with another batch size or number of ranks


def other_batch_sizes(
    reference: Reference, sizes: Sequence[int] | None
) -> tuple[list[Trial], list[str]]:
    """The trials that resume the reference's run with other batch sizes, and notes.

    Args:
        sizes: by default one that differs from the loader's.
    """
    facts, interruption = reference.facts, reference.middle
    own = int(facts.get("batch_size") or 0)
    may_change = own > 0 and facts.get("strategy") in ("advanced", "distributed")
    if not may_change or facts.get("own_sampler"):
        why_not = f"{reference.strategy} does not allow another one"
    elif facts["stream"]:
        why_not = "of a stream, only the loader's own is tried"
    else:
        why_not = "" if interruption else _TOO_SHORT
    if why_not or interruption is None:
        return [], [f"batch size: {why_not}"] if sizes or may_change else []
    if sizes is None:
        sizes = [own // 2 + 1 if own > 2 else own + 1]
    left = (len(reference.events) - interruption.after) * own
    trials = []
    for size, host in zip(sizes, cycle(RESUMING_HOSTS)):
        setting = replace(reference.setting, batch_size=size)
        case = Case(setting.shown(), interruption.name, "not run", interruption.after)
        run = Run(setting, reference.events, reference.states(reference.setting.shown()))
        trial = _resumption(reference, run, case, host, events=-(-left // size) + 1)
        trials.append(_by_sample(reference, trial, max(size, own)))
    return trials, []


def other_worlds(
    reference: Reference, worlds: Sequence[int] | None, *, spawn: bool
) -> tuple[Sequence[int], list[str]]:
    """The numbers of ranks to try, of which the first saves the state, and notes."""
    facts = reference.facts
    is_distributed = facts.get("strategy") == "distributed"
    if not is_distributed and facts.get("strategy") != "advanced":
        why_not = f"{reference.strategy} does not allow another number of them"
    elif facts["stream"] or facts.get("own_sampler"):
        why_not = "not tried for a stream or a custom sampler"
    else:
        why_not = "" if reference.middle else _TOO_SHORT
    if why_not:
        return (), [f"ranks: {why_not}"] if worlds or spawn or is_distributed else []
    if is_distributed:
        return _WORLDS if worlds is None else worlds, []
    if worlds is None and not spawn:
        return (), []
    return _WORLDS if worlds is None else worlds, [
        "ranks: strategy='advanced' resumes its states with as many ranks as saved them, and "
        "strategy='distributed' resumes them with any number, so these ranks have the latter"
    ]


def ranks_that_save(reference: Reference, world: int, store: str | None) -> Trial:
    """Ranks that save their states in mid-epoch; they are compared with nothing.

    Args:
        store: file through which they form a process group; None: they form none.
    """
    tasks = _ranks(reference, world, "one", store, save=(_after_in(reference, world),))
    case = Case(Setting(world_size=world).shown(), UNINTERRUPTED, "not run", by_sample=True)
    return Trial(case, tasks, ())


def ranks_that_resume(
    reference: Reference, saved: Sequence[Outcome], world: int, store: str | None
) -> Trial:
    """Another number of ranks, all of which resume the state of the first rank that saved one."""
    after = _after_in(reference, len(saved))
    state = str(state_file(_states_of_rank(reference, len(saved), 0), after))
    is_advanced = reference.facts["strategy"] == "advanced"
    resuming: Literal["distributed"] | None = "distributed" if is_advanced else None
    tasks = _ranks(reference, world, "two", store, state=state, strategy=resuming)
    name = f"mid-epoch, from {Setting(world_size=len(saved)).shown()}"
    setting = Setting(world_size=world, strategy=resuming)
    case = Case(setting.shown(), name, "not run", after)
    trial = Trial(case, tasks, tuple(outcome.found.events[after:] for outcome in saved))
    return _by_sample(reference, trial, max(world, len(saved)) * reference.facts["batch_size"])


def _after_in(reference: Reference, world: int) -> int:
    """Number of batches of each rank before the middle of the epoch."""
    assert reference.middle is not None  # else no worlds are tried
    return max(1, reference.middle.after // world)


def _ranks(
    reference: Reference,
    world: int,
    host: str,
    store: str | None,
    *,
    state: str | None = None,
    save: tuple[int, ...] = (),
    strategy: Literal["distributed"] | None = None,
) -> tuple[Task, ...]:
    setting = replace(
        reference.setting, world_size=world, strategy=strategy, seed=reference.facts["seed"]
    )
    jobs = [
        Job(
            reference.factory,
            replace(setting, rank=rank),
            events=len(reference.events),
            state=state,
            save=save,
            states=_states_of_rank(reference, world, rank),
            store=store,
        )
        for rank in range(world)
    ]
    return tuple(reference.task(job, host) for job in jobs)


def _states_of_rank(reference: Reference, world: int, rank: int) -> str:
    return reference.states(f"{world} ranks, rank {rank}")


def _by_sample(reference: Reference, trial: Trial, batch: int) -> Trial:
    dropped = batch if reference.facts["tail"] == "drop" else 0
    return replace(trial, case=replace(trial.case, by_sample=True), dropped=dropped)
