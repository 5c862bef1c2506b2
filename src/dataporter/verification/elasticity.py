"""Elasticity: runs that go on with another batch size, or another number of ranks (C6, C7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dataporter.verification.cases import other_batch_size
from dataporter.verification.job import Job
from dataporter.verification.processes import Task
from dataporter.verification.record import state_file
from dataporter.verification.report import Case
from dataporter.verification.session import Session
from dataporter.verification.setting import Setting

__all__ = ["run_batch_sizes", "run_worlds"]

_WORLDS = (1, 2, 4)


def run_batch_sizes(session: Session, sizes: Sequence[int] | None) -> None:
    """Go on with other batch sizes, and compare sample by sample."""
    suggested = other_batch_size(session.facts)
    if sizes and suggested is None:
        session.notes.append(f"batch size: {session.strategy} needs it to stay")
        return
    cut = next((cut for cut in session.cuts if cut.name == "mid-epoch"), None)
    if cut is None or suggested is None or session.facts.get("own_sampler"):
        return
    if session.facts["stream"]:
        session.notes.append("batch size: of a stream, only the loader's own is gone through")
        return
    trials = []
    for size in [suggested] if sizes is None else sizes:
        setting = replace(session.base, batch_size=size)
        case = Case(setting.shown(), cut.name, "not run", cut.after)
        states = session.directory(session.base.shown())
        trial = session.trial(case, setting, session.reference.events, states)
        left = len(trial.expected) * session.facts["batch_size"]
        job = replace(trial.task.job, events=-(-left // size) + 1)
        trials.append(replace(trial, task=replace(trial.task, job=job)))
    outcomes = session.run("other batch sizes", [trial.task for trial in trials])
    for trial, outcome in zip(trials, outcomes):
        session.judge_samples(trial.case, [trial.expected], [outcome])


def run_worlds(session: Session, worlds: Sequence[int] | None, *, spawn: bool) -> None:
    """Go on with other numbers of ranks, and compare sample by sample over all of them."""
    if worlds is None:
        worlds = _WORLDS if session.facts.get("strategy") == "distributed" else ()
    cut = next((cut for cut in session.cuts if cut.name == "mid-epoch"), None)
    if not worlds or cut is None:
        return
    if session.facts.get("strategy") != "distributed":
        session.notes.append(f"ranks: {session.strategy} does not promise another number of them")
        return
    if session.facts["stream"] or session.facts.get("own_sampler"):
        session.notes.append("ranks: not gone through for a stream or a sampler of your own")
        return
    first = worlds[0]
    after = max(1, cut.after // first)
    writers = _ranks(session, first, "one", None, spawn=spawn, save=(after,))
    saved = session.run("ranks that save", writers, at_once=first)
    if any(outcome is None or outcome.found is None or outcome.error for outcome in saved):
        case = Case(Setting(world_size=first).shown(), "left alone", "not run")
        session.judge_samples(case, [], saved)
        return
    expected = [outcome.found.events[after:] for outcome in saved if outcome is not None]
    state = str(state_file(writers[0].job.states, after))
    for world in worlds:
        tasks = _ranks(session, world, "two", state, spawn=spawn, save=())
        outcomes = session.run("other numbers of ranks", tasks, at_once=world)
        name = f"mid-epoch, from {Setting(world_size=first).shown()}"
        case = Case(Setting(world_size=world).shown(), name, "not run", after)
        session.judge_samples(case, expected, outcomes)


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
                session.subject,
                replace(session.base, rank=rank, world_size=world),
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
