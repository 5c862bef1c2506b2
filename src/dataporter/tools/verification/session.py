"""A session: one verification under way, its processes, and what was found so far."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle

from dataporter.tools.verification.cases import PLACES, interruptions_in
from dataporter.tools.verification.comparison import Comparison, compare, compare_samples
from dataporter.tools.verification.diagnosis import RESUMING_HOSTS, diagnose
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.job import Event, Job, Recording
from dataporter.tools.verification.processes import Outcome, Processes, Task, VerificationError
from dataporter.tools.verification.record import state_file
from dataporter.tools.verification.report import (
    Case,
    Diagnosis,
    Measures,
    Throughput,
    Verdict,
    VerifyReport,
)
from dataporter.tools.verification.setting import Setting
from dataporter.tools.verification.throughput import Contest

__all__ = ["OnProgress", "Session", "Trial"]

OnProgress = Callable[[str, int, int], None]

# The run left alone is done again some twenty times, two at a time.
_SHARE_OF_REFERENCE = 0.05
_SECONDS_OVER = 20.0
# With several workers that import all of it anew, on a busy machine.
_TIMES_REFERENCE = 5
_MOST_RACING = 2
# Cases of these names come after those of places, and after what is named after one.
_AFTER_PLACES = ("", "SIGKILL", "SIGKILL to a worker")
# More would take their time from one another, which is measured.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Trial:
    """A run whose recording is to be like a stretch of another one."""

    case: Case
    task: Task
    expected: Sequence[Event]


@dataclass
class Session:
    """One verification under way."""

    factory: Factory
    processes: Processes
    rng: random.Random
    until: float
    on_progress: OnProgress | None
    max_seconds: float
    notes: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    state_seconds: list[float] = field(default_factory=list)
    resume_seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    reference_seconds: float = 0.0
    hosts: Iterator[str] = field(default_factory=lambda: cycle(RESUMING_HOSTS))
    warnings: dict[str, None] = field(default_factory=dict)
    rates: list[Throughput] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)

    # ---- the run left alone

    def run_reference(self, steps: int | None, workers: int) -> None:
        """The run that all others are compared with, or started as."""
        self.base = Setting(num_workers=workers)
        seconds = self.max_seconds * _SHARE_OF_REFERENCE
        job = Job(
            self.factory,
            self.base,
            steps=steps,
            seconds=seconds,
            starts_others=True,
            states=self.directory("reference"),
        )
        begun = time.monotonic()
        outcome = self.run("the run left alone", [self.task(job, "one")])[0] or Outcome(None)
        self.reference_seconds = time.monotonic() - begun
        found = outcome.found
        if found is None or found.error is not None:
            error = outcome.error or "there was no time for it"
            made = found is not None and found.facts
            raise VerificationError(f"left alone, the loader failed: {error}" if made else error)
        if all(event.is_end for event in found.events):
            raise VerificationError("left alone, the loader gave no batch: its dataset is empty")
        self.processes.libraries = found.libraries
        self.reference: Recording = found
        self.facts = found.facts
        self.warnings |= dict.fromkeys(found.warnings)
        self.interruptions = interruptions_in(found, self.rng)
        ends = [place for place, event in enumerate(found.events) if event.is_end]
        self.epoch_batches = ends[0] if ends else None
        if not ends:
            told = "" if steps else f" ({seconds:.0f} s)"
            self.notes.append(
                f"the end of the epoch was not reached in {len(found.events)} batches{told}, so "
                f"what happens there is not covered: raise --{'steps' if steps else 'max-seconds'}"
            )
        if not self.may_change_workers:
            self.notes.append(
                "the stream is not cut into shards, so each worker reads it by itself and their "
                "number has to stay; each number of workers is compared with itself"
            )
        if not self.facts["stateful"]:
            self.notes.append(
                f"a {self.facts['loader']} has no state: the new process reads again and throws "
                "away what was delivered before the interruption"
            )

    @property
    def shares_start(self) -> bool:
        """Whether runs in other settings start from the reference's state and are to be as it."""
        is_cut = not self.facts["stream"] or self.facts.get("sharding") == "shards"
        return bool(self.facts["ours"]) and is_cut

    @property
    def may_change_workers(self) -> bool:
        """Whether it is a fault when it does not go on with another number of workers."""
        return self.shares_start or not self.facts["ours"]

    # ---- rates

    def measure(self, workers: Sequence[int]) -> None:
        """Let the loader race with torch's."""
        most = max((count for count in workers if count <= _MOST_RACING), default=0)
        settings = [Setting(num_workers=count) for count in dict.fromkeys((workers[0], most))]
        for setting in settings:
            job = Contest(self.factory, setting)
            # Alone, so that nothing else takes its time.
            (outcome,) = self.run("measuring", [self.task(job, "one")], at_once=1)
            if outcome is not None and isinstance(outcome.found, Throughput):
                self.rates.append(outcome.found)

    # ---- why

    def find_out_why(self) -> None:
        """Diagnose what was found, if anything was."""
        # Not bounded by the time for cases: it is short, and what people want most.
        self.until = max(self.until, time.monotonic() + _SECONDS_OVER)
        self.diagnoses, notes = diagnose(self.factory, self.facts, self.cases, self.run)
        self.notes += notes

    # ---- judging

    def trial(self, case: Case, setting: Setting, events: Sequence[Event], states: str) -> Trial:
        """A run that goes on from where a case was interrupted."""
        stateful = self.facts["stateful"]
        job = Job(
            self.factory,
            setting,
            events=len(events) - case.after,
            state=str(state_file(states, case.after)) if stateful else None,
            replay=0 if stateful else case.after,
            seconds=self.limit - _SECONDS_OVER / 2,
        )
        return Trial(case, self.task(job, next(self.hosts)), events[case.after :])

    def try_all(self, what: str, trials: Sequence[Trial]) -> None:
        """Carry trials out, and judge them."""
        outcomes = self.run(what, [trial.task for trial in trials])
        for trial, outcome in zip(trials, outcomes):
            self.judge(trial, outcome)

    def judge(self, trial: Trial, outcome: Outcome | None) -> None:
        """What came of a trial becomes a case."""
        if outcome is None:
            self.cases.append(trial.case)
            return
        found = outcome.found
        self._measure(found)
        events = found.events if found is not None else []
        stopped = found is not None and found.stopped
        comparison = compare(trial.expected, events, incomplete=bool(outcome.error) or stopped)
        verdict = _verdict(comparison, outcome.error)
        if stopped and not comparison.batches:
            self.cases.append(trial.case)
            return
        self.cases.append(
            replace(
                trial.case,
                verdict=verdict,
                comparison=comparison,
                error=outcome.error,
                resume_seconds=found.resume_seconds if found is not None else None,
            )
        )

    def judge_samples(
        self,
        case: Case,
        expected: Sequence[Sequence[Event]],
        outcomes: Sequence[Outcome | None],
        dropped: int,
    ) -> None:
        """The same, sample by sample, of what several ranks have recorded.

        Args:
            dropped: fewer samples than this are in the tail of either, where it is dropped.
        """
        error = next((one.error for one in outcomes if one is not None and one.error), None)
        if any(one is None for one in outcomes):
            self.cases.append(case)
            return
        events = [one.found.events if one and one.found else [] for one in outcomes]
        drops = self.facts["tail"] == "drop"
        comparison = compare_samples(expected, events, dropped if drops else 0)
        verdict = _verdict(comparison, error)
        self.cases.append(
            replace(case, verdict=verdict, comparison=comparison, error=error, by_sample=True)
        )

    def _measure(self, found: Recording | None) -> None:
        if found is None:
            return
        self.state_seconds += found.state_seconds
        self.state_bytes = max(self.state_bytes, found.state_bytes)
        self.warnings |= dict.fromkeys(found.warnings)
        if found.resume_seconds is not None:
            self.resume_seconds.append(found.resume_seconds)

    def require_interruption(self) -> None:
        """Nothing has been shown about a loader that was not interrupted.

        Raises:
            VerificationError: all that was run is the run left alone.
        """
        run = [case for case in self.cases if case.verdict != "not run"]
        if all(case.name.startswith("left alone") and case.verdict == "exact" for case in run):
            raise VerificationError(
                f"in {self.max_seconds:.0f} seconds there was no time to interrupt it: raise "
                "--max-seconds, or lower --steps"
            )

    def report(self, seed: int) -> VerifyReport:
        """All that was found."""
        stateful = self.facts["stateful"]
        return VerifyReport(
            subject=self.factory.name,
            facts=self.facts,
            cases=self._sorted_cases(),
            epoch_batches=self.epoch_batches,
            events=len(self.reference.events),
            measures=Measures(
                self.state_bytes if stateful else None,
                statistics.median(self.state_seconds) if self.state_seconds else None,
                statistics.median(self.resume_seconds) if self.resume_seconds else None,
                tuple(self.rates),
            ),
            diagnoses=tuple(self.diagnoses),
            notes=tuple(self.notes),
            seed=seed,
            warnings=tuple(self.warnings),
        )

    def _sorted_cases(self) -> tuple[Case, ...]:
        """Side by side what has the same setting, in the order in which settings came up."""
        settings = list(dict.fromkeys(case.setting for case in self.cases))
        places = {name: place for place, name in enumerate((*PLACES, *_AFTER_PLACES))}
        return tuple(
            sorted(
                self.cases,
                key=lambda case: (
                    settings.index(case.setting),
                    places.get(case.name.partition(", as ")[0], len(PLACES)),
                ),
            )
        )

    # ---- what holds it together

    def task(self, job: Job | Contest, host: str) -> Task:
        """A task of a job, with the time that it may take."""
        return Task(None, job, host, self.limit)

    @property
    def limit(self) -> float:
        """Seconds that one process may take: one that takes longer hangs."""
        return self.max_seconds + _SECONDS_OVER + _TIMES_REFERENCE * self.reference_seconds

    @property
    def strategy(self) -> str:
        """The loader's strategy, or its class where it has none, for a sentence."""
        strategy = self.facts.get("strategy")
        return f"a {self.facts['loader']}" if strategy is None else f"strategy={strategy!r}"

    def directory(self, name: str) -> str:
        """A directory for states, which is there."""
        path = self.processes.home / name.replace(" ", "-")
        path.mkdir(exist_ok=True)
        return str(path)

    def run(
        self, what: str, tasks: Sequence[Task], at_once: int | None = None
    ) -> list[Outcome | None]:
        """What became of each task; None where there was no time left."""
        numbered = [replace(task, name=number) for number, task in enumerate(tasks)]
        done = 0

        def on_done(task: Task, outcome: Outcome) -> None:
            nonlocal done
            done += 1
            if self.on_progress is not None:
                self.on_progress(what, done, len(numbered))

        if self.on_progress is not None:
            self.on_progress(what, 0, len(numbered))
        outcomes = self.processes.run(
            numbered, at_once or min(os.cpu_count() or 1, _AT_ONCE), on_done, self.until
        )
        return [outcomes.get(task.name) for task in numbered]


def _verdict(comparison: Comparison, error: str | None) -> Verdict:
    if error is not None:
        return "failed"
    return "exact" if comparison.first is None else "not exact"
