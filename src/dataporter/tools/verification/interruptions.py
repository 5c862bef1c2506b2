"""Interruptions: runs that are cut short and gone on with, in each setting of workers (C1-C3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from dataporter.tools.verification.cases import Interruption, settings_of
from dataporter.tools.verification.comparison import compare
from dataporter.tools.verification.job import Event, Job
from dataporter.tools.verification.processes import Outcome, Task
from dataporter.tools.verification.record import state_file
from dataporter.tools.verification.report import Case
from dataporter.tools.verification.session import Session, Trial
from dataporter.tools.verification.setting import Setting

__all__ = ["run_settings"]


def run_settings(session: Session, workers: Sequence[int], engines: Sequence[str] | None) -> None:
    """Run the loader in each setting, interrupt it there, and go on in new processes."""
    settings, notes = settings_of(session.facts, workers, engines)
    session.notes += notes
    session.base = settings[0]
    writers = [_writer(session, setting) for setting in settings]
    outcomes = session.run("running in each setting", [trial.task for trial in writers])
    trials: list[list[Trial]] = []
    killed: list[tuple[Setting, Sequence[Event], Task]] = []
    repeats = _repeats(session, writers[0], outcomes[0])
    if not repeats:
        session.notes.append(
            f"each new {session.facts['loader']} gives other batches, since nothing seeds it: what "
            "a killed run would have given is not known, and SIGKILL is left out; seed what it "
            "draws from where it is made"
        )
    saved_by_base: Sequence[Event] = ()
    for setting, trial, outcome in zip(settings, writers, outcomes):
        recording = None if outcome is None else outcome.found
        if recording is not None and not recording.varied:
            session.notes.append(f"{setting.shown()}: {recording.error}")
            continue
        if repeats and (setting == settings[0] or session.may_change_workers):
            session.judge(trial, outcome)
        # What has to come after an interruption is what comes without, in the same process.
        events = recording.events if recording is not None else []
        if setting == settings[0]:
            saved_by_base = events
        interruptions = [
            interruption
            for interruption in session.interruptions
            if interruption.after < len(events)
        ]
        states = session.directory(setting.shown())
        own = [
            _resumer(session, setting, interruption, events, states)
            for interruption in interruptions
        ]
        trials.append(own)
        middle = [interruption for interruption in interruptions if interruption.after][:1]
        for interruption in middle:
            if setting != settings[0] and session.may_change_workers:
                own.append(_crossing(session, settings[0], setting, interruption, saved_by_base))
            if not repeats:
                continue
            killed.append((setting, events, _killed(session, setting, interruption)))
            if setting.num_workers and setting.worker_kind == "process":
                own.append(_worker_killed(session, setting, interruption, events))
    ended = session.run("killing", [task for _, _, task in killed])
    for (setting, events, task), outcome in zip(killed, ended):
        if outcome is not None and not outcome.killed:
            error = outcome.error or "it came to its end before it could be killed"
            session.cases.append(Case(setting.shown(), "SIGKILL", "failed", error=error))
            continue
        trials.append([_after_kill(session, setting, events, task)])
    # A case of each setting in turn: should the time run out, all of them have been tried.
    in_turn = [trial for each in zip_longest(*trials) for trial in each if trial is not None]
    session.try_all("resuming", in_turn)


def _writer(session: Session, setting: Setting) -> Trial:
    job = Job(
        session.factory,
        setting,
        events=len(session.reference.events),
        state=_start_state(session, setting),
        save=tuple(interruption.after for interruption in session.interruptions),
        states=session.directory(setting.shown()),
    )
    # Beside the reference, which has the workers of the first setting.
    as_base = "" if setting == session.base else f", as {session.base.shown()}"
    case = Case(setting.shown(), f"left alone{as_base}", "not run")
    return Trial(case, session.task(job, "one"), session.reference.events)


def _repeats(session: Session, writer: Trial, outcome: Outcome | None) -> bool:
    """Whether a new loader gives what another one gave: ours is given its seed with its state."""
    recording = None if outcome is None else outcome.found
    if session.facts["ours"] or not session.facts["stateful"] or recording is None:
        return True
    return compare(writer.expected, recording.events).first is None


def _start_state(session: Session, setting: Setting) -> str | None:
    """The state before the first batch that a run begins with, so that it has the same seed."""
    as_base = session.shares_start or setting == session.base
    path = state_file(session.directory("reference" if as_base else setting.shown()), 0)
    return str(path) if session.facts["ours"] and path.exists() else None


def _resumer(
    session: Session,
    setting: Setting,
    interruption: Interruption,
    events: Sequence[Event],
    states: str,
) -> Trial:
    case = Case(setting.shown(), interruption.name, "not run", interruption.after)
    return session.trial(case, setting, events, states)


def _crossing(
    session: Session,
    saved: Setting,
    setting: Setting,
    interruption: Interruption,
    events: Sequence[Event],
) -> Trial:
    case = Case(
        *(
            setting.shown(),
            f"{interruption.name}, from {saved.shown()}",
            "not run",
            interruption.after,
        ),
        saved_under=saved.shown(),
    )
    return session.trial(case, setting, events, session.directory(saved.shown()))


def _killed(session: Session, setting: Setting, interruption: Interruption) -> Task:
    job = Job(
        session.factory,
        setting,
        events=len(session.reference.events),
        state=_start_state(session, setting),
        states=session.directory(f"{setting.shown()}, killed"),
        kill_after=interruption.after,
    )
    return replace(session.task(job, "one"), expects_kill=True)


def _after_kill(session: Session, setting: Setting, events: Sequence[Event], task: Task) -> Trial:
    saved = [int(path.stem.partition("-")[2]) for path in Path(task.job.states).glob("state-*.pt")]
    after = max(saved, default=task.job.kill_after)
    case = Case(setting.shown(), "SIGKILL", "not run", after)
    return session.trial(case, setting, events, task.job.states)


def _worker_killed(
    session: Session, setting: Setting, interruption: Interruption, events: Sequence[Event]
) -> Trial:
    job = Job(
        session.factory,
        setting,
        events=len(events),
        state=_start_state(session, setting),
        kill_worker_after=interruption.after,
    )
    case = Case(setting.shown(), "SIGKILL to a worker", "not run", interruption.after, whole=True)
    return Trial(case, session.task(job, next(session.hosts)), events)
