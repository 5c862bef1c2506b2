"""Elasticity: runs that go on with another batch size, or another number of ranks (C6, C7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dataporter.tools.verification.cases import other_batch_size
from dataporter.tools.verification.job import Job
from dataporter.tools.verification.processes import Task
from dataporter.tools.verification.record import state_file
from dataporter.tools.verification.report import Case
from dataporter.tools.verification.session import Session
from dataporter.tools.verification.setting import Setting

__all__ = ["run_batch_sizes", "run_worlds"]

_WORLDS = (1, 2, 4)
_TOO_SHORT = "the epoch is too short to be interrupted in its middle"


def run_batch_sizes(session: Session, sizes: Sequence[int] | None) -> None:
    """Go on with other batch sizes, and compare sample by sample."""
    suggested = other_batch_size(session.facts)
    interruption = next(
        (
            interruption
            for interruption in session.interruptions
            if interruption.name == "mid-epoch"
        ),
        None,
    )
    why_not = None
    if suggested is None or session.facts.get("own_sampler"):
        why_not = f"{session.strategy} needs it to stay"
    elif session.facts["stream"]:
        why_not = "of a stream, only the loader's own is gone through"
    elif interruption is None:
        why_not = _TOO_SHORT
    if suggested is None or interruption is None or why_not is not None:
        if sizes or suggested is not None:
            session.notes.append(f"batch size: {why_not}")
        return
    trials = []
    sizes = [suggested] if sizes is None else sizes
    for size in sizes:
        setting = replace(session.base, batch_size=size)
        case = Case(setting.shown(), interruption.name, "not run", interruption.after)
        states = session.directory(session.base.shown())
        trial = session.trial(case, setting, session.reference.events, states)
        left = len(trial.expected) * session.facts["batch_size"]
        job = replace(trial.task.job, events=-(-left // size) + 1)
        trials.append(replace(trial, task=replace(trial.task, job=job)))
    outcomes = session.run("other batch sizes", [trial.task for trial in trials])
    for size, trial, outcome in zip(sizes, trials, outcomes):
        dropped = max(size, session.facts["batch_size"])
        session.judge_samples(trial.case, [trial.expected], [outcome], dropped)


def run_worlds(session: Session, worlds: Sequence[int] | None, *, spawn: bool) -> None:
    """Go on with other numbers of ranks, and compare sample by sample over all of them."""
    interruption = next(
        (
            interruption
            for interruption in session.interruptions
            if interruption.name == "mid-epoch"
        ),
        None,
    )
    why_not = None
    if session.facts.get("strategy") != "distributed":
        why_not = f"{session.strategy} does not promise another number of them"
    elif session.facts["stream"] or session.facts.get("own_sampler"):
        why_not = "not gone through for a stream or a sampler of your own"
    elif interruption is None:
        why_not = _TOO_SHORT
    if interruption is None or why_not is not None:
        if worlds or spawn or session.facts.get("strategy") == "distributed":
            session.notes.append(f"ranks: {why_not}")
        return
    worlds = _WORLDS if worlds is None else worlds
    if not worlds:
        return
    first = worlds[0]
    after = max(1, interruption.after // first)
    writers = _ranks(session, first, "one", None, spawn=spawn, save=(after,))
    saved = session.run("ranks that save", writers, at_once=first)
    if any(outcome is None or outcome.found is None or outcome.error for outcome in saved):
        case = Case(Setting(world_size=first).shown(), "left alone", "not run")
        session.judge_samples(case, [], saved, 0)
        return
    expected = [outcome.found.events[after:] for outcome in saved if outcome is not None]
    state = str(state_file(writers[0].job.states, after))
    for world in worlds:
        tasks = _ranks(session, world, "two", state, spawn=spawn, save=())
        outcomes = session.run("other numbers of ranks", tasks, at_once=world)
        name = f"mid-epoch, from {Setting(world_size=first).shown()}"
        case = Case(Setting(world_size=world).shown(), name, "not run", after)
        dropped = max(world, first) * session.facts["batch_size"]
        session.judge_samples(case, expected, outcomes, dropped)


def _ranks(
    session: Session,
    world: int,
    host: str,
    state: str | None,
    *,
    spawn: bool,
    save: tuple[int, ...],
) -> list[Task]:
    store = str(session.processes.home / f"store-{host}-{world}-{len(session.cases)}")
    return [
        session.task(
            Job(
                session.factory,
                replace(session.base, rank=rank, world_size=world, seed=session.facts["seed"]),
                events=len(session.reference.events),
                state=state,
                save=save,
                states=session.directory(f"{host} {world} ranks, rank {rank}"),
                store=store if spawn else None,
            ),
            host,
        )
        for rank in range(world)
    ]
