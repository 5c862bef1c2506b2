"""A session: one verification from its first run to its report (C1-C8)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from statistics import median
from typing import Any

from dataporter.checks import positive_number, whole_number
from dataporter.errors import ConfigurationError
from dataporter.tools.verification.diagnosis import RESUMING_HOSTS, diagnose
from dataporter.tools.verification.factory import Factory, Setting, factory_of
from dataporter.tools.verification.imports import Imports, imports_of
from dataporter.tools.verification.processes import (
    Outcome,
    Processes,
    Task,
    refuse_inside,
)
from dataporter.tools.verification.recording import Job, Recording, last_saved, record
from dataporter.tools.verification.reference import (
    Reference,
    end_of,
    interruptions_in,
    notes_on,
    recorded,
    reference_at_end,
    settings_of,
)
from dataporter.tools.verification.report import (
    Case,
    Diagnosis,
    Measures,
    Throughput,
    VerifyReport,
    in_order,
)
from dataporter.tools.verification.throughput import measure_throughput
from dataporter.tools.verification.trials import (
    Run,
    Trial,
    failure,
    is_required,
    judged,
    killed_run,
    other_batch_sizes,
    other_worlds,
    ranks_that_resume,
    ranks_that_save,
    repeats,
    resumptions,
    states_of_killed,
    uninterrupted,
)

__all__ = ["OnProgress", "verify"]

OnProgress = Callable[[str, int, int], None]

_WORKERS = (0, 2, 4)
# About twenty runs of the same length follow the reference, two at a time.
_SHARE_OF_REFERENCE = 0.05
_SHARE_OF_IMPORTS = 0.5
_SECONDS_OVER = 20.0
# Spawned workers import everything anew, perhaps on a busy machine.
_TIMES_REFERENCE = 5
_MOST_WORKERS_MEASURED = 2
# More would slow one another down, and times are measured.
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
    """Prove that a loader resumes exactly, or show where it does not.

    One run is uninterrupted. Others are interrupted at the start, in mid-epoch, after the last
    step, at the end of the epoch, in the second epoch and at a random step, or by SIGKILL. Each
    state goes through ``torch.save`` and ``torch.load(weights_only=True)`` into a new process with
    another hash seed, which resumes with each number of workers, and with another batch size and
    world size if the strategy promises that. Every batch that follows is compared with that of the
    uninterrupted run: keys, dtypes, shapes and bytes.

    Args:
        make_loader: a function that returns a fresh loader on each call (a
            ``ResumableDataLoader``, torch's or torchdata's loader, or any iterable of batches), or
            where to find it: ``"package.module:name"`` or ``"path/to/file.py:name"``. It receives
            those of ``num_workers``, ``worker_kind``, ``batch_size``, ``rank`` and ``world_size``
            that it takes; the others are set on the loader.
        workers: numbers of workers to try; by default 0, 2 and 4.
        engines: ``"process"``, ``"thread"`` or both; by default the loader's own.
        batch_sizes: batch sizes to resume with; by default one that is not the loader's. Empty:
            none.
        worlds: numbers of ranks to try, of which the first saves the state; by default 1, 2 and 4
            with ``strategy="distributed"``, otherwise none.
        spawn: run the ranks in a gloo process group, rather than pass each its rank.
        steps: number of batches per run; by default an epoch and part of the next.
        max_seconds: time after which no further case is started, from the end of the uninterrupted
            run on: how long a loader takes to start does not count.
        seed: of the random steps.
        diagnose: find the cause if anything differs.
        measure: measure the throughput of the loader and of torch's ``DataLoader``.
        arguments: passed to ``make_loader`` by name.
        on_progress: called with the current stage, the number of its processes that have ended,
            and the number of all its processes.

    Raises:
        VerificationError: (a ``RuntimeError``) it could not be carried out: the loader cannot be
            made, delivers no batch, or could not be interrupted in time.
        ConfigurationError: (a ``ValueError``) an argument is wrong.

    Example:
        >>> from dataporter import ResumableDataLoader, verify
        >>> def make_loader():
        ...     return ResumableDataLoader(range(40), batch_size=4, shuffle=True)
        >>> verify(make_loader, workers=[0], measure=False).exact
        True
    """
    refuse_inside()
    unknown = set(engines or ()) - {"process", "thread"}
    if unknown:
        raise ConfigurationError(
            f"engines={list(engines or ())!r}: expected 'process', 'thread' or both"
        )
    for number in workers or ():
        whole_number("workers", number)
    for name, numbers in (("batch_sizes", batch_sizes), ("worlds", worlds)):
        for number in numbers or ():
            positive_number(name, number)
    if steps is not None:
        positive_number("steps", steps)
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 31)
    factory = factory_of(make_loader, arguments or {})
    workers = tuple(workers or _WORKERS)
    begun = time.monotonic()
    with Processes(forked=factory.target is None, seed=seed) as processes:
        session = _Session(processes, max_seconds, on_progress)
        if factory.target is None:
            session.notes.append(
                f"{factory.name} is not at the top of a module, so no new interpreter can find it: "
                "its processes are forks of this one and share its imports and its hash seed; hash "
                "randomisation and effects of imports are not covered"
            )
        reference = session.run_reference(factory, workers, engines, steps, random.Random(seed))
        session.start_clock()
        session.try_workers(reference)
        session.try_batch_sizes(reference, batch_sizes)
        session.try_worlds(reference, worlds, spawn=spawn)
        if measure:
            session.measure(factory, workers)
        if diagnose:
            session.find_causes(reference)
    report = session.report(reference)
    return replace(report, seed=seed, steps=steps, seconds=time.monotonic() - begun)


@dataclass
class _Session:
    """Runs trials within the time limit, and collects the results."""

    processes: Processes
    max_seconds: float
    on_progress: OnProgress | None
    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    recordings: list[Recording] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start_clock()
        self.limit = self.max_seconds + _SECONDS_OVER

    def start_clock(self) -> None:
        """Count the time for cases from now on."""
        self.until = time.monotonic() + self.max_seconds

    def run_reference(
        self,
        factory: Factory,
        workers: Sequence[int],
        engines: Sequence[str] | None,
        steps: int | None,
        rng: random.Random,
    ) -> Reference:
        """Run the loader without interruption.

        Raises:
            VerificationError: the loader cannot be made, fails, or delivers no batch.
        """
        seconds = self.max_seconds * _SHARE_OF_REFERENCE
        home = self.processes.home
        job = Job(
            factory,
            Setting(num_workers=workers[0]),
            steps=steps,
            seconds=seconds,
            is_reference=True,
            states=str(home / "reference"),
        )
        begun = time.monotonic()
        tasks = [Task(partial(record, job), "one", self.limit)]
        if workers[0]:
            # What workers import is not known here.
            within = self.max_seconds * _SHARE_OF_IMPORTS
            tasks.append(Task(partial(imports_of, factory), "one", within))
        self.processes.prepare(*RESUMING_HOSTS)
        outcome, *others = self.run("the uninterrupted run", tasks)
        self.limit += _TIMES_REFERENCE * (time.monotonic() - begun)
        found = recorded(outcome)
        seen = next((other.found for other in others if other and other.found), Imports())
        if found.facts["forks"]:
            self.processes.share(found.imports | seen)
            self.processes.prepare("one", *RESUMING_HOSTS)
        self.warnings += found.warnings
        settings, not_possible = settings_of(found.facts, workers, engines)
        reference = Reference(
            factory,
            found.facts,
            found.events,
            tuple(settings),
            tuple(interruptions_in(found.events, rng)),
            home,
            self.limit,
        )
        self.notes += [*notes_on(reference, steps, seconds), *not_possible]
        return reference

    def try_workers(self, reference: Reference) -> None:
        """Run the loader in each setting, interrupt it there, and resume it in new processes.

        The interruptions without which nothing is proven come first, in the first setting.
        """
        first, others = reference.settings[:1], reference.settings[1:]
        runs, repeated = self.run_in(reference, first)
        killed = self.kill(reference, runs, repeats=repeated)
        trials = resumptions(reference, runs, killed, repeats=repeated)
        self.try_all("resuming", [trial for trial in trials if is_required(trial)])
        at_end = self.find_end(reference)
        if at_end is not None:
            self.try_end(at_end, first)
        more, _ = self.run_in(reference, others, repeated=repeated)
        killed |= self.kill(reference, more, repeats=repeated)
        tried = {(case.setting, case.name) for case in self.cases}
        trials = resumptions(reference, [*runs, *more], killed, repeats=repeated)
        self.try_all(
            "resuming",
            [trial for trial in trials if (trial.case.setting, trial.case.name) not in tried],
        )
        if at_end is not None:
            self.try_end(at_end, others)

    def run_in(
        self, reference: Reference, settings: Sequence[Setting], *, repeated: bool | None = None
    ) -> tuple[list[Run], bool]:
        """Run the loader in each of the settings; and whether a new loader repeats a run.

        Args:
            repeated: whether it does; None: the first run shows it.
        """
        trials = [uninterrupted(reference, setting) for setting in settings]
        outcomes = [outcome for (outcome,) in self.run_all("running in each setting", trials)]
        if repeated is None:
            repeated = repeats(reference, outcomes[0])
            if not repeated:
                self.notes.append(
                    f"each new {reference.facts['loader']} delivers other batches, since nothing "
                    "seeds it: the runs that are killed start from the first state of another one"
                )
        runs = []
        for trial, outcome, setting in zip(trials, outcomes, settings):
            recording = None if outcome is None else outcome.found
            if recording is not None and not recording.varied:
                self.notes.append(f"{setting.shown()}: {recording.error}")
                continue
            if repeated and (reference.may_change_workers or setting == reference.setting):
                self.judge(trial, [outcome])
            events = recording.events if recording is not None else []
            runs.append(Run(setting, events, reference.states(setting.shown())))
        return runs, repeated

    def kill(
        self, reference: Reference, runs: Sequence[Run], *, repeats: bool
    ) -> dict[Setting, int]:
        """Kill a run in each setting; for each, the number of events before its last state."""
        made = ((run, killed_run(reference, run, repeats=repeats)) for run in runs)
        tried = [(run, trial) for run, trial in made if trial is not None]
        outcomes = self.run_all("killing", [trial for _, trial in tried])
        killed = {}
        for (run, trial), (outcome,) in zip(tried, outcomes):
            if outcome is None or outcome.killed:
                states = states_of_killed(reference, run.setting)
                killed[run.setting] = last_saved(states, default=trial.case.after)
            else:
                error = outcome.error or "it ended before it could be killed"
                verdict = failure(outcome)
                self.cases.append(replace(trial.case, verdict=verdict, error=error))
        return killed

    def find_end(self, reference: Reference) -> Reference | None:
        """Run the last batches of an epoch that is too long to be run; None: they are not."""
        job = end_of(reference)
        if job is None:
            return None
        (outcome,) = self.run("the end of the epoch", [reference.task(job, "one")])
        found = None if outcome is None else outcome.found
        if found is None or found.error or not found.events:
            if outcome is not None:
                self.notes.append(f"the end of the epoch could not be run: {outcome.error}")
            return None
        return reference_at_end(reference, job, found.events)

    def try_end(self, reference: Reference, settings: Sequence[Setting]) -> None:
        """Interrupt the loader at the end of the epoch, close to which it has jumped."""
        runs, _ = self.run_in(reference, settings, repeated=True)
        self.try_all("resuming", resumptions(reference, runs, {}, repeats=True))

    def try_batch_sizes(self, reference: Reference, sizes: Sequence[int] | None) -> None:
        """Resume with other batch sizes, and compare sample by sample."""
        trials, notes = other_batch_sizes(reference, sizes)
        self.notes += notes
        self.try_all("other batch sizes", trials)

    def try_worlds(
        self, reference: Reference, worlds: Sequence[int] | None, *, spawn: bool
    ) -> None:
        """Resume with other numbers of ranks, and compare sample by sample over all of them."""
        worlds, notes = other_worlds(reference, worlds, spawn=spawn)
        self.notes += notes
        if not worlds:
            return
        stores = (str(reference.directory / f"store-{n}") if spawn else None for n in count())
        saving = ranks_that_save(reference, worlds[0], next(stores))
        (saved,) = self.run_all("ranks that save", [saving], at_once=worlds[0])
        ranks = [outcome for outcome in saved if outcome and outcome.found and not outcome.error]
        if len(ranks) < len(saved):
            self.judge(saving, saved)
            return
        for world in worlds:
            trial = ranks_that_resume(reference, ranks, world, next(stores))
            self.try_all("other numbers of ranks", [trial], at_once=world)

    def measure(self, factory: Factory, workers: Sequence[int]) -> None:
        """Measure the throughput beside torch's loader."""
        most = max((number for number in workers if number <= _MOST_WORKERS_MEASURED), default=0)
        for number in dict.fromkeys((workers[0], most)):
            work = partial(measure_throughput, factory, Setting(num_workers=number))
            # Alone, so that nothing else takes its time.
            (outcome,) = self.run("measuring", [Task(work, "one", self.limit)], at_once=1)
            if outcome is not None and outcome.found is not None:
                self.throughput.append(outcome.found)

    def find_causes(self, reference: Reference) -> None:
        """Diagnose the faults, if there are any."""
        # Beyond the time for cases: it is short, and users want it most.
        self.until = max(self.until, time.monotonic() + _SECONDS_OVER)
        self.diagnoses, notes = diagnose(reference.factory, reference.facts, self.cases, self.run)
        self.notes += notes

    def report(self, reference: Reference) -> VerifyReport:
        """The report of all results."""
        facts = reference.facts
        saving = [seconds for one in self.recordings for seconds in one.state_seconds]
        times = [one.resume_seconds for one in self.recordings if one.resume_seconds is not None]
        largest = max((one.state_bytes for one in self.recordings), default=0)
        measures = Measures(
            largest if facts["stateful"] else None,
            median(saving) if saving else None,
            median(times) if times else None,
            tuple(self.throughput),
        )
        ends = [index for index, event in enumerate(reference.events) if event.is_end]
        return VerifyReport(
            subject=reference.factory.name,
            facts=facts,
            cases=in_order(self.cases),
            epoch_batches=ends[0] if ends else None,
            events=len(reference.events),
            measures=measures,
            diagnoses=tuple(self.diagnoses),
            notes=tuple(self.notes),
            warnings=tuple(dict.fromkeys(self.warnings)),
        )

    # ---- running

    def try_all(self, what: str, trials: Sequence[Trial], at_once: int | None = None) -> None:
        """Run trials, and judge each."""
        for trial, outcomes in zip(trials, self.run_all(what, trials, at_once)):
            self.judge(trial, outcomes)

    def judge(self, trial: Trial, outcomes: Sequence[Outcome | None]) -> None:
        """Add the case of a trial, and its measurements."""
        self.cases.append(judged(trial, outcomes))
        if trial.case.by_sample:
            return
        for outcome in outcomes:
            if outcome is not None and outcome.found is not None:
                self.warnings += outcome.found.warnings
                # Without the batches, which would fill memory.
                self.recordings.append(replace(outcome.found, events=[]))

    def run_all(
        self, what: str, trials: Sequence[Trial], at_once: int | None = None
    ) -> list[list[Outcome | None]]:
        """The outcomes of each trial's tasks."""
        outcomes = iter(self.run(what, [task for trial in trials for task in trial.tasks], at_once))
        return [list(islice(outcomes, len(trial.tasks))) for trial in trials]

    def run(
        self, what: str, tasks: Sequence[Task], at_once: int | None = None
    ) -> list[Outcome | None]:
        """The outcome of each task; None for a task that had no time left."""
        done = 0

        def on_done() -> None:
            nonlocal done
            done += 1
            if self.on_progress is not None:
                self.on_progress(what, done, len(tasks))

        if self.on_progress is not None:
            self.on_progress(what, 0, len(tasks))
        at_once = at_once or min(os.cpu_count() or 1, _AT_ONCE)
        return self.processes.run(tasks, at_once, on_done, self.until)
