"""The proof: runs a loader left alone and interrupted, in new processes, and compares (C1-C8)."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.verification.cases import Cut, cuts_of, other_batch_size, settings_of
from dataporter.verification.comparison import Comparison, compare, compare_samples
from dataporter.verification.diagnosis import diagnose as find_out
from dataporter.verification.job import Event, Job, Recording
from dataporter.verification.processes import (
    Outcome,
    Processes,
    Task,
    VerificationError,
    refuse_inside,
)
from dataporter.verification.race import Race, Rates
from dataporter.verification.record import state_file
from dataporter.verification.report import (
    Case,
    Diagnosis,
    Measures,
    Throughput,
    Verdict,
    VerifyReport,
)
from dataporter.verification.setting import Setting
from dataporter.verification.subject import Subject, subject_of

__all__ = ["verify"]

OnProgress = Callable[[str, int, int], None]

_WORKERS = (0, 2, 4)
_WORLDS = (1, 2, 4)
# The run left alone is done again some twenty times, two at a time.
_SHARE_OF_REFERENCE = 0.05
_SECONDS_OVER = 20.0
_MOST_RACING = 2
# More would take their time from one another, which is measured.
_AT_ONCE = 4


def verify(
    make_loader: Callable[..., Any] | str,
    *,
    workers: Sequence[int] | None = None,
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    worlds: Sequence[int] | None = None,
    spawn: bool = False,
    steps: int | None = None,
    max_seconds: float = 60.0,
    seed: int | None = None,
    diagnose: bool = True,
    measure: bool = True,
    arguments: dict[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> VerifyReport:
    """Prove that a loader goes on exactly where it was interrupted, or show where it does not.

    The loader is run left alone, and again and again interrupted: at its start, in mid-epoch, after
    the last step, at the end of the epoch, in the second epoch and at random; with its state taken
    through ``torch.save`` and ``torch.load(weights_only=True)`` into a new process of another hash
    seed, or of a process that is killed with SIGKILL; with each number of workers; with another
    batch size and world size where the strategy promises that. Every following batch is compared,
    each leaf's dtype, shape and bytes.

    Args:
        make_loader: a function that returns a fresh loader each time (a ``ResumableDataLoader``,
            torch's or torchdata's, or anything that is iterated over), or where it is found:
            ``"package.module:name"`` or ``"path/to/file.py:name"``. What it takes of
            ``num_workers``, ``worker_kind``, ``batch_size``, ``rank`` and ``world_size``, it is
            given; what it does not is set on the loader.
        workers: numbers of workers to go through; by default 0, 2 and 4.
        engines: ``"process"``, ``"thread"`` or both; by default the loader's own.
        batch_sizes: to go on with; by default one other than the loader's. Empty: none.
        worlds: numbers of ranks to go through, of which the first saves the state; by default 1, 2
            and 4 with ``strategy="distributed"``, else none.
        spawn: let the ranks be processes of a gloo process group, instead of ranks that are told.
        steps: how many batches each run has; by default an epoch and a bit of the next.
        max_seconds: after so long no further case is begun.
        seed: of the random steps.
        diagnose: find out why, where something differs.
        measure: measure the throughput beside torch's ``DataLoader``.
        arguments: given to ``make_loader`` by name.
        on_progress: told what is being done, how many processes have ended and of how many.

    Raises:
        VerificationError: (a ``RuntimeError``) it could not be carried out: the loader cannot be
            made, or gives no batch.
        ConfigurationError: (a ``ValueError``) an argument is wrong.

    Example:
        >>> from dataporter import ResumableDataLoader, verify
        >>> def make_loader():
        ...     return ResumableDataLoader(range(40), batch_size=4, shuffle=True)
        >>> verify(make_loader, workers=[0], measure=False).exact
        True
    """
    refuse_inside()
    _check(workers=workers, batch_sizes=batch_sizes, worlds=worlds, steps=steps)
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 31)
    subject = subject_of(make_loader, arguments or {})
    begun = time.monotonic()
    with Processes(forked=subject.target is None) as processes:
        proof = _Proof(
            subject, processes, random.Random(seed), begun + max_seconds, on_progress, max_seconds
        )
        if subject.target is None:
            proof.notes.append(
                f"{subject.name} is no function at the top of a module, so no new interpreter can "
                "find it: its processes are forks of this one, which share what was imported and "
                "the hash seed; hash randomisation and what happens at import are not covered"
            )
        workers = tuple(workers or _WORKERS)
        proof.run_reference(steps, workers[0])
        proof.run_settings(workers, engines)
        proof.run_batch_sizes(batch_sizes)
        proof.run_worlds(worlds, spawn=spawn)
        if measure:
            proof.measure(workers)
        if diagnose:
            proof.find_out_why()
        report = proof.report(seed)
    return replace(report, seconds=time.monotonic() - begun)


def _check(**counts: Any) -> None:
    for name, value in counts.items():
        lowest = 0 if name == "workers" else 1
        for number in value if isinstance(value, list | tuple) else [value]:
            if number is not None and (not isinstance(number, int) or number < lowest):
                raise ConfigurationError(
                    f"{name}={value!r}: expected whole numbers of {lowest} or more"
                )


@dataclass(frozen=True, slots=True)
class _Trial:
    """A run whose recording is to be like a stretch of another one."""

    case: Case
    task: Task
    expected: Sequence[Event]


@dataclass
class _Proof:
    """One verification under way."""

    subject: Subject
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
    warnings: dict[str, None] = field(default_factory=dict)
    rates: list[Throughput] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)

    # ---- the run left alone

    def run_reference(self, steps: int | None, workers: int) -> None:
        self.base = Setting(num_workers=workers, worker_kind="process" if workers else None)
        seconds = self.max_seconds * _SHARE_OF_REFERENCE
        job = Job(
            self.subject,
            self.base,
            steps=steps,
            seconds=seconds,
            # Of ours, other settings are started from here, so that they have the same seed.
            save=(0,),
            states=self._directory("reference"),
        )
        outcome = self._run("the run left alone", [self._task(job, "one")])[0] or Outcome(None)
        found = outcome.found
        if found is None or found.error is not None or not found.events:
            error = outcome.error or "the loader gave no batch"
            made = found is not None and found.facts
            raise VerificationError(f"left alone, the loader failed: {error}" if made else error)
        self.reference: Recording = found
        self.facts = found.facts
        self.warnings |= dict.fromkeys(found.warnings)
        self.cuts = cuts_of(found, self.rng)
        ends = [place for place, event in enumerate(found.events) if event.is_end]
        self.epoch_batches = ends[0] if ends else None
        if not ends:
            told = "" if steps else f" ({seconds:.0f} s)"
            self.notes.append(
                f"the end of the epoch was not reached in {len(found.events)} batches{told}, so "
                f"what happens there is not covered: raise --{'steps' if steps else 'max-seconds'}"
            )
        if not self._may_change_workers:
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
    def _shares_start(self) -> bool:
        """Whether runs in other settings start from the reference's state and are to be as it."""
        is_cut = not self.facts["stream"] or self.facts.get("cut") == "shards"
        return bool(self.facts["ours"]) and is_cut

    @property
    def _may_change_workers(self) -> bool:
        """Whether it is a fault when it does not go on with another number of workers."""
        return self._shares_start or not self.facts["ours"]

    # ---- workers and engines

    def run_settings(self, workers: Sequence[int], engines: Sequence[str] | None) -> None:
        settings, notes = settings_of(self.facts, workers, engines)
        self.notes += notes
        writers = [self._writer(setting) for setting in settings]
        outcomes = self._run("running in each setting", [trial.task for trial in writers])
        trials: list[_Trial] = []
        killed: list[tuple[Setting, Sequence[Event], Task]] = []
        for setting, trial, outcome in zip(settings, writers, outcomes):
            recording = None if outcome is None else outcome.found
            if recording is not None and not recording.varied:
                self.notes.append(f"{setting.shown()}: {recording.error}")
                continue
            if setting == settings[0] or self._may_change_workers:
                self._judge(trial, outcome)
            # What has to come after an interruption is what comes without, in the same process.
            events = recording.events if recording is not None else []
            cuts = [cut for cut in self.cuts if cut.after < len(events)]
            states = self._directory(setting.shown())
            trials += [self._resumer(setting, cut, events, states) for cut in cuts]
            middle = [cut for cut in cuts if cut.after][:1]
            for cut in middle:
                if setting != settings[0] and self._may_change_workers:
                    trials.append(self._crossing(settings[0], setting, cut))
                killed.append((setting, events, self._killed(setting, cut)))
                if setting.num_workers and setting.worker_kind == "process":
                    trials.append(self._worker_killed(setting, cut, events))
        ended = self._run("killing", [task for _, _, task in killed])
        for (setting, events, task), outcome in zip(killed, ended):
            trials.append(self._after_kill(setting, events, task, outcome))
        self._try("resuming", trials)

    def _writer(self, setting: Setting) -> _Trial:
        job = Job(
            self.subject,
            setting,
            events=len(self.reference.events),
            state=self._start_state(),
            save=tuple(cut.after for cut in self.cuts),
            states=self._directory(setting.shown()),
        )
        case = Case(setting.shown(), "left alone", "not run")
        return _Trial(case, self._task(job, "one"), self.reference.events)

    def _start_state(self) -> str | None:
        path = state_file(self._directory("reference"), 0)
        return str(path) if self._shares_start and path.exists() else None

    def _resumer(self, setting: Setting, cut: Cut, events: Sequence[Event], states: str) -> _Trial:
        case = Case(setting.shown(), cut.name, "not run", cut.after)
        return self._trial(case, setting, events, states)

    def _crossing(self, saved: Setting, setting: Setting, cut: Cut) -> _Trial:
        case = Case(
            *(setting.shown(), f"{cut.name}, from {saved.shown()}", "not run", cut.after),
            saved_under=saved.shown(),
        )
        return self._trial(case, setting, self.reference.events, self._directory(saved.shown()))

    def _trial(self, case: Case, setting: Setting, events: Sequence[Event], states: str) -> _Trial:
        stateful = self.facts["stateful"]
        job = Job(
            self.subject,
            setting,
            events=len(events) - case.after,
            state=str(state_file(states, case.after)) if stateful else None,
            replay=0 if stateful else case.after,
        )
        return _Trial(case, self._task(job, "two"), events[case.after :])

    def _killed(self, setting: Setting, cut: Cut) -> Task:
        job = Job(
            self.subject,
            setting,
            events=len(self.reference.events),
            state=self._start_state(),
            states=self._directory(f"{setting.shown()}, killed"),
            kill_after=cut.after,
        )
        return replace(self._task(job, "one"), expects_kill=True)

    def _after_kill(
        self, setting: Setting, events: Sequence[Event], task: Task, outcome: Outcome | None
    ) -> _Trial:
        saved = [int(path.stem.partition("-")[2]) for path in _states_in(task.job.states)]
        after = max(saved, default=task.job.kill_after)
        case = Case(setting.shown(), "SIGKILL", "not run", after)
        return self._trial(case, setting, events, task.job.states)

    def _worker_killed(self, setting: Setting, cut: Cut, events: Sequence[Event]) -> _Trial:
        job = Job(
            self.subject,
            setting,
            events=len(events),
            state=self._start_state(),
            kill_worker_after=cut.after,
        )
        case = Case(setting.shown(), "SIGKILL to a worker", "not run", cut.after)
        return _Trial(case, self._task(job, "two"), events)

    # ---- batch size and ranks

    def run_batch_sizes(self, sizes: Sequence[int] | None) -> None:
        suggested = other_batch_size(self.facts)
        if sizes and suggested is None:
            self.notes.append(f"batch size: {self._strategy} needs it to stay")
            return
        cut = next((cut for cut in self.cuts if cut.name == "mid-epoch"), None)
        if cut is None or suggested is None or self.facts.get("own_sampler"):
            return
        if self.facts["stream"]:
            self.notes.append("batch size: of a stream, only the loader's own is gone through")
            return
        trials = []
        for size in [suggested] if sizes is None else sizes:
            setting = replace(self.base, batch_size=size)
            case = Case(setting.shown(), cut.name, "not run", cut.after)
            states = self._directory(self.base.shown())
            trial = self._trial(case, setting, self.reference.events, states)
            left = len(trial.expected) * self.facts["batch_size"]
            job = replace(trial.task.job, events=-(-left // size) + 1)
            trials.append(replace(trial, task=replace(trial.task, job=job)))
        outcomes = self._run("other batch sizes", [trial.task for trial in trials])
        for trial, outcome in zip(trials, outcomes):
            self._judge_samples(trial.case, [trial.expected], [outcome])

    def run_worlds(self, worlds: Sequence[int] | None, *, spawn: bool) -> None:
        if worlds is None:
            worlds = _WORLDS if self.facts.get("strategy") == "distributed" else ()
        cut = next((cut for cut in self.cuts if cut.name == "mid-epoch"), None)
        if not worlds or cut is None:
            return
        if self.facts.get("strategy") != "distributed":
            self.notes.append(f"ranks: {self._strategy} does not promise another number of them")
            return
        if self.facts["stream"] or self.facts.get("own_sampler"):
            self.notes.append("ranks: not gone through for a stream or a sampler of your own")
            return
        first = worlds[0]
        after = max(1, cut.after // first)
        writers = self._ranks(first, "one", None, spawn=spawn, save=(after,))
        saved = self._run("ranks that save", writers, at_once=first)
        if any(outcome is None or outcome.found is None or outcome.error for outcome in saved):
            case = Case(Setting(world_size=first).shown(), "left alone", "not run")
            self._judge_samples(case, [], saved)
            return
        expected = [outcome.found.events[after:] for outcome in saved if outcome is not None]
        state = str(state_file(writers[0].job.states, after))
        for world in worlds:
            tasks = self._ranks(world, "two", state, spawn=spawn, save=())
            outcomes = self._run("other numbers of ranks", tasks, at_once=world)
            name = f"mid-epoch, from {Setting(world_size=first).shown()}"
            case = Case(Setting(world_size=world).shown(), name, "not run", after)
            self._judge_samples(case, expected, outcomes)

    def _ranks(
        self, world: int, host: str, state: str | None, *, spawn: bool, save: tuple[int, ...]
    ) -> list[Task]:
        store = str(self.processes.home / f"store-{host}-{world}-{len(self.cases)}")
        return [
            self._task(
                Job(
                    self.subject,
                    replace(self.base, rank=rank, world_size=world),
                    events=len(self.reference.events),
                    state=state,
                    save=save,
                    states=self._directory(f"{host} {world} ranks, rank {rank}"),
                    store=store if spawn else None,
                ),
                host,
            )
            for rank in range(world)
        ]

    # ---- rates

    def measure(self, workers: Sequence[int]) -> None:
        most = max((count for count in workers if count <= _MOST_RACING), default=0)
        settings = [Setting(num_workers=count) for count in dict.fromkeys((workers[0], most))]
        for setting in settings:
            job = Race(self.subject, setting)
            # Alone, so that nothing else takes its time.
            (outcome,) = self._run("measuring", [self._task(job, "one")], at_once=1)
            if outcome is not None and isinstance(outcome.found, Rates) and outcome.found.loader:
                rates = outcome.found
                self.rates.append(Throughput(setting.shown(), rates.loader, rates.plain))

    # ---- why

    def find_out_why(self) -> None:
        # Not bounded by the time for cases: it is short, and what people want most.
        self.until = max(self.until, time.monotonic() + _SECONDS_OVER)
        self.diagnoses, notes = find_out(self.subject, self.facts, self.cases, self._run)
        self.notes += notes

    # ---- judging

    def _try(self, what: str, trials: Sequence[_Trial]) -> None:
        outcomes = self._run(what, [trial.task for trial in trials])
        for trial, outcome in zip(trials, outcomes):
            self._judge(trial, outcome)

    def _judge(self, trial: _Trial, outcome: Outcome | None) -> None:
        if outcome is None:
            self.cases.append(trial.case)
            return
        found = outcome.found
        self._measure(found)
        events = found.events if found is not None else []
        comparison = compare(trial.expected, events, outcome.error)
        verdict = _verdict(comparison, outcome.error)
        self.cases.append(
            replace(
                trial.case,
                verdict=verdict,
                comparison=comparison,
                error=outcome.error,
                resume_seconds=found.resume_seconds if found is not None else None,
            )
        )

    def _judge_samples(
        self, case: Case, expected: Sequence[Sequence[Event]], outcomes: Sequence[Outcome | None]
    ) -> None:
        error = next((one.error for one in outcomes if one is not None and one.error), None)
        if any(one is None for one in outcomes):
            self.cases.append(case)
            return
        events = [one.found.events if one and one.found else [] for one in outcomes]
        comparison = compare_samples(expected, events)
        verdict = _verdict(comparison, error)
        self.cases.append(replace(case, verdict=verdict, comparison=comparison, error=error))

    def _measure(self, found: Recording | None) -> None:
        if found is None:
            return
        self.state_seconds += found.state_seconds
        self.state_bytes = max(self.state_bytes, found.state_bytes)
        self.warnings |= dict.fromkeys(found.warnings)
        if found.resume_seconds is not None:
            self.resume_seconds.append(found.resume_seconds)

    def report(self, seed: int) -> VerifyReport:
        stateful = self.facts["stateful"]
        return VerifyReport(
            subject=self.subject.name,
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
        return tuple(sorted(self.cases, key=lambda case: settings.index(case.setting)))

    # ---- what holds it together

    def _task(self, job: Job, host: str) -> Task:
        return Task(None, job, host, self._limit)

    @property
    def _limit(self) -> float:
        """Seconds that one process may take: one that takes longer hangs."""
        return self.max_seconds + _SECONDS_OVER

    @property
    def _strategy(self) -> str:
        return f"strategy={self.facts.get('strategy')!r}"

    def _directory(self, name: str) -> str:
        path = self.processes.home / name.replace(" ", "-")
        path.mkdir(exist_ok=True)
        return str(path)

    def _run(
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


def _states_in(directory: str) -> list[Path]:
    return list(Path(directory).glob("state-*.pt"))
