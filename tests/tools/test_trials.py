"""Trials: which runs a verification makes and what their outcomes say, without running any."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataporter import VerificationError
from dataporter.tools.verification.digest import leaves_of
from dataporter.tools.verification.factory import Factory, Setting
from dataporter.tools.verification.processes import Outcome
from dataporter.tools.verification.recording import Event, Recording
from dataporter.tools.verification.reference import (
    Interruption,
    Reference,
    interruptions_in,
    recorded,
    settings_of,
)
from dataporter.tools.verification.report import Case, in_order
from dataporter.tools.verification.trials import (
    Run,
    Trial,
    judged,
    killed_run,
    other_batch_sizes,
    other_worlds,
    resumptions,
    uninterrupted,
)


def batch(step: int, value: int = 0) -> Event:
    return Event(0, step, tuple(leaves_of([value])), (step,))


END = Event(0, 0, is_end=True)
EVENTS = [*map(batch, range(10)), END, *map(batch, range(4))]
FACTS = {
    "loader": "ResumableDataLoader",
    "ours": True,
    "stateful": True,
    "stream": False,
    "strategy": "advanced",
    "batch_size": 4,
    "tail": "pad",
}
SETTINGS = ("no workers", "2 processes")
NONE, TWO = Setting(num_workers=0), Setting(num_workers=2, worker_kind="process")


def reference(events: Any = EVENTS, **facts: Any) -> Reference:
    found = interruptions_in(events, random.Random(1))
    factory = Factory("make", "module:make")
    return Reference(
        factory, {**FACTS, **facts}, events, (NONE, TWO), tuple(found), Path("/states"), 60.0
    )


def job(trial: Trial) -> Any:
    (task,) = trial.tasks
    return task.work.args[0]  # type: ignore[attr-defined]  # a partial of record


def test_a_run_is_interrupted_where_loaders_go_wrong() -> None:
    rng = random.Random(1)
    found = {one.name: one.after for one in reference().interruptions}
    random_step = found.pop("random step")
    assert 1 <= random_step < 10
    assert random_step != 5
    assert found == {
        "start": 0,
        "mid-epoch": 5,
        "last step": 10,
        "end of epoch": 11,
        "second epoch": 13,
    }
    assert interruptions_in(EVENTS[:1], rng) == [Interruption("start", 0)]
    short, ending = ([one.name for one in interruptions_in(EVENTS[:n], rng)] for n in (3, 12))
    assert short == ["start", "mid-epoch"]
    assert ending == ["start", "mid-epoch", "random step", "last step", "end of epoch"]


def test_settings_are_each_number_of_workers_with_each_engine() -> None:
    settings, notes = settings_of(FACTS, [0, 2], ["process", "thread"])
    assert [setting.shown() for setting in settings] == ["no workers", "2 processes", "2 threads"]
    assert notes == []
    settings, notes = settings_of({**FACTS, "stream": True}, [2], ["thread"])
    assert [setting.shown() for setting in settings] == ["2 processes"]
    assert notes == ["threads: a stream works with processes only"]


def test_runs_start_from_the_references_seed_where_they_must_equal_it() -> None:
    first = "/states/reference/state-0.pt"
    assert job(uninterrupted(reference(), TWO)).state == first
    assert job(uninterrupted(reference(ours=False), TWO)).state is None
    workers = reference(stream=True, cut="workers")
    assert job(uninterrupted(workers, NONE)).state == first
    assert job(uninterrupted(workers, TWO)).state is None
    killed = killed_run(workers, Run(TWO, EVENTS, "/states/own"))
    assert killed is not None
    assert job(killed).state == "/states/own/state-0.pt"
    assert killed_run(reference(), Run(TWO, EVENTS[:1], "/states/own")) is None


def test_each_setting_resumes_its_states_in_turn_and_those_of_the_first() -> None:
    runs = [Run(setting, EVENTS, f"/states/{setting.num_workers}") for setting in (NONE, TWO)]
    trials = resumptions(reference(), runs, {NONE: 7}, repeats=True)
    first = [(trial.case.setting, trial.case.name) for trial in trials[:5]]
    assert first == [
        ("no workers", "SIGKILL"),
        *((setting, name) for name in ("mid-epoch", "end of epoch") for setting in SETTINGS),
    ]
    by_name = {(trial.case.setting, trial.case.name): trial for trial in trials}
    killed = by_name["no workers", "SIGKILL"]
    assert job(killed).state == "/states/no-workers,-killed/state-7.pt"
    assert killed.expected == (EVENTS[7:],)
    crossed = by_name["2 processes", "mid-epoch, from no workers"]
    assert (job(crossed).setting, crossed.expected) == (TWO, (EVENTS[5:],))
    assert job(crossed).state == "/states/no-workers/state-5.pt"
    assert by_name["2 processes", "SIGKILL to a worker"].expected == (EVENTS,)
    assert {trial.tasks[0].host for trial in trials} == {"two", "three"}
    unseeded = reference(ours=False)
    (worker,) = (
        trial
        for trial in resumptions(unseeded, runs, {}, repeats=False)
        if trial.case.name == "SIGKILL to a worker"
    )
    assert job(worker).state == "/states/2/state-0.pt"
    once = killed_run(unseeded, runs[0], repeats=False)
    assert once is not None
    assert job(once).state == "/states/0/state-0.pt"


def test_a_loader_without_a_state_discards_what_was_delivered() -> None:
    plain = reference(ours=False, stateful=False, strategy=None)
    found = resumptions(plain, [Run(NONE, EVENTS, "")], {}, repeats=True)
    start, middle = (
        next(trial for trial in found if trial.case.name == name) for name in ("start", "mid-epoch")
    )
    assert (job(start).state, job(start).replay) == (None, 0)
    assert (job(middle).state, job(middle).replay, job(middle).events) == (None, 5, 10)


def test_other_batch_sizes_cover_the_rest_of_the_run() -> None:
    (trial,), notes = other_batch_sizes(reference(), None)
    assert (trial.case.setting, trial.case.by_sample, notes) == (
        *("no workers, batch size 3", True, []),
    )
    assert job(trial).events == -(-10 * 4 // 3) + 1
    assert other_batch_sizes(reference(strategy="simple"), None) == ([], [])
    _, notes = other_batch_sizes(reference(strategy="simple"), [8])
    assert notes == ["batch size: strategy='simple' does not allow another one"]
    _, notes = other_batch_sizes(reference(EVENTS[:1]), None)
    assert notes == ["batch size: the epoch is too short for an interruption in its middle"]


def test_ranks_are_tried_if_the_strategy_is_distributed() -> None:
    assert other_worlds(reference(), None, spawn=False) == ((), [])
    _, notes = other_worlds(reference(strategy="simple"), [2], spawn=False)
    assert notes == ["ranks: strategy='simple' does not allow another number of them"]
    worlds, (note,) = other_worlds(reference(), [2], spawn=False)
    assert worlds == [2]
    assert "strategy='distributed' resumes them with any number" in note
    assert other_worlds(reference(), None, spawn=True)[0] == (1, 2, 4)
    assert other_worlds(reference(strategy="distributed"), None, spawn=False) == ((1, 2, 4), [])


def test_an_outcome_makes_a_case() -> None:
    trial = replace(uninterrupted(reference(), NONE), expected=(EVENTS,))
    assert judged(trial, [None]) is trial.case
    assert judged(trial, [Outcome(Recording(events=EVENTS))]).verdict == "exact"
    other = [*EVENTS[:3], batch(3, value=1), *EVENTS[4:]]
    found = judged(trial, [Outcome(Recording(events=other, resume_seconds=0.5))])
    assert (found.verdict, found.resume_seconds) == ("not exact", 0.5)
    assert found.comparison is not None
    assert found.comparison.differing == 1
    failed = judged(trial, [Outcome(None, "it raised")])
    assert (failed.verdict, failed.error) == ("failed", "it raised")
    assert judged(trial, [Outcome(Recording(stopped=True))]) is trial.case
    early = judged(trial, [Outcome(Recording(events=EVENTS[:3], stopped=True))])
    assert early.verdict == "exact"


def test_ranks_make_one_case() -> None:
    by_sample = Case("2 ranks", "mid-epoch", "not run", by_sample=True)
    trial = Trial(by_sample, (), ([batch(0), batch(1), END],))
    ranks = [Outcome(Recording(events=[batch(step), END])) for step in range(2)]
    assert judged(trial, ranks).verdict == "exact"
    assert judged(trial, [ranks[0], None]) is by_sample
    assert judged(trial, [ranks[0], Outcome(None, "it raised")]).verdict == "failed"
    assert judged(trial, ranks[:1]).verdict == "not exact"
    assert judged(replace(trial, dropped=2), ranks[:1]).verdict == "exact"


def test_cases_are_in_the_order_of_a_run() -> None:
    names = ["SIGKILL", "mid-epoch, from no workers", "second epoch", "uninterrupted", "start"]
    cases = [Case(setting, name, "exact") for name in names for setting in ("b", "a")]
    ordered = in_order(cases)
    assert [case.setting for case in ordered] == ["b"] * 5 + ["a"] * 5
    assert [case.name for case in ordered[:5]] == [
        *("uninterrupted", "start", "second epoch", "mid-epoch, from no workers", "SIGKILL")
    ]


def test_a_reference_that_failed_is_refused() -> None:
    with pytest.raises(VerificationError, match="no time to run"):
        recorded(None)
    with pytest.raises(VerificationError, match="it was not made"):
        recorded(Outcome(None, "it was not made"))
    broken = Recording(events=EVENTS[:1], error="it raised", facts=dict(FACTS))
    with pytest.raises(VerificationError, match="without any interruption: it raised"):
        recorded(Outcome(broken, "it raised"))
