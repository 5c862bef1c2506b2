"""Diagnosis: why a loader is not exact, by experiments that exclude one cause after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dataporter.tools.verification import causes
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.probe import Found, Probe, run_probe
from dataporter.tools.verification.processes import Outcome, Task
from dataporter.tools.verification.report import UNINTERRUPTED, WORKER_KILLED, Case, Diagnosis

__all__ = ["RESUMING_HOSTS", "diagnose"]

Run = Callable[[str, Sequence[Task]], Sequence[Outcome | None]]

# The hosts on which runs of host "one" resume. They have other hash seeds, and there are two of
# them, since a set of two strings has the same order under half of all seeds.
RESUMING_HOSTS = ("two", "three")

# A host like "one" in all that is known.
_APART = "one/one/again"
_SAMPLES = 6
_SECONDS = 60.0
_READING = ("time", "pid", "entropy")
_MAKING = ("python", "numpy", "torch", "time", "pid", "entropy")


def diagnose(
    factory: Factory, facts: Mapping[str, Any], cases: Sequence[Case], run: Run
) -> tuple[list[Diagnosis], list[str]]:
    """Find out why cases are not exact.

    Args:
        run: runs tasks, and returns their outcomes.

    Returns:
        The causes that were found, and notes on what could not be examined.
    """
    faults = [case for case in cases if case.is_fault]
    if not faults:
        return [], []
    if not facts["ours"] and all(map(_is_beyond_resume, faults)):
        return _in_cases(Found(), facts, faults), []
    samples = _samples_of(faults, facts)
    hosts = ("one", "one", "one/other environment", *RESUMING_HOSTS)
    tasks = [
        _task(Probe(factory, samples, whole=number == 0), host) for number, host in enumerate(hosts)
    ]
    found = [_found(outcome) for outcome in run("finding the cause", tasks)]
    error = next((one.error for one in found if one.error), None)
    if error is not None:
        return _in_cases(Found(), facts, faults), [f"the cause could not be examined: {error}"]
    experiments = _Experiments(factory, facts, samples, run, *found)
    diagnoses = experiments.in_reading() or experiments.in_making() or experiments.in_collating()
    is_seed = causes.SEED_IT in {diagnosis.remedy for diagnosis in diagnoses}
    if not diagnoses or (is_seed and not facts["ours"]):
        diagnoses = [*diagnoses, *_in_cases(found[0], facts, faults)]
    return diagnoses, [] if diagnoses else ["no experiment has shown why it differs"]


def _samples_of(faults: Sequence[Case], facts: Mapping[str, Any]) -> tuple[Any, ...]:
    if facts["stream"]:
        return tuple(range(_SAMPLES))
    firsts = [case.comparison.first for case in faults if case.comparison is not None]
    known = [first.sample for first in firsts if first is not None and first.sample is not None]
    length = facts.get("samples") or _SAMPLES
    # An odd step, so that there are even and odd indices.
    spread = range(0, length, max(1, length // _SAMPLES - 1) | 1)
    return tuple(dict.fromkeys([*known[:2], *spread]))[:_SAMPLES]


def _task(probe: Probe, host: str) -> Task:
    return Task(partial(run_probe, probe), host, _SECONDS, is_fresh=True)


def _found(outcome: Outcome | None) -> Found:
    if outcome is None:
        return Found(error="no time was left")
    return outcome.found if isinstance(outcome.found, Found) else Found(error=outcome.error)


class _Experiments:
    """What the results of several probes show when they are compared."""

    def __init__(
        self,
        factory: Factory,
        facts: Mapping[str, Any],
        samples: tuple[Any, ...],
        run: Run,
        here: Found,
        again: Found,
        elsewhere: Found,
        *other_hashes: Found,
    ) -> None:
        self._factory, self._facts, self._samples, self._run = factory, facts, samples, run
        self._here, self._again = here, again
        self._elsewhere, self._other_hashes = elsewhere, other_hashes

    def in_reading(self) -> list[Diagnosis]:
        """Causes that show when the same objects are read twice."""
        here = self._here
        plain = here.digests.get("plain")
        if plain is None:
            return []
        if here.digests.get("again") != plain:
            sources = self._sources(_READING, _reads_alike)
            return [causes.READING[source] for source in sources] or [causes.UNKNOWN_READING]
        if "init" in here.digests and here.digests["init"] != here.digests.get("init again"):
            return [causes.INIT]
        each = plain[:-1]

        def differs(experiment: str) -> bool:
            return here.digests.get(experiment, each) != each

        if here.generators and (differs("twice") or self._facts["stream"]):
            return [causes.generator_in_dataset(here.generators)]
        for experiment, shown in (
            ("twice", "a second reading of the same sample yields another one"),
            ("second pass", "the stream's second pass yields other samples"),
            ("reversed", "the same samples differ when they are read in another order"),
        ):
            if differs(experiment):
                return [causes.kept_state(shown, here.changed, here.containers, here.arrays)]
        return [causes.WORKER] if differs("worker 0") or differs("worker 1") else []

    def in_making(self) -> list[Diagnosis]:
        """Causes that show when another process makes the loader."""
        if not _makes_alike(self._here, self._again):
            what = "other samples" if self._here.order == self._again.order else "another order"
            sources = self._sources(_MAKING, _makes_alike, processes=2)
            found = [causes.in_making(source, what) for source in sources]
            return found or [causes.UNKNOWN_MAKING]
        if not _makes_alike(self._here, self._elsewhere):
            # The first two are forks of one process; this one is not, but has their environment.
            probe = Probe(self._factory, self._samples, whole=False)
            (apart,) = self._run("finding the cause", [_task(probe, _APART)])
            is_alike = _makes_alike(self._here, _found(apart))
            return [causes.ENVIRONMENT if is_alike else causes.ADDRESS]
        if not all(_makes_alike(self._here, other) for other in self._other_hashes):
            return [causes.HASH]
        return []

    def in_collating(self) -> list[Diagnosis]:
        """Causes that show when the same samples are collated twice."""
        both = self._here.digests.get("collate after others")
        if both is None or both[0] == both[1]:
            return []
        return [causes.collate_state(self._here.changed)]

    def _sources(
        self, sources: Sequence[str], is_alike: Callable[..., bool], *, processes: int = 1
    ) -> list[str]:
        """The sources of randomness that make the results of so many processes alike if fixed."""
        tasks = [
            _task(Probe(self._factory, self._samples, (source,), whole=False), "one")
            for source in sources
            for _ in range(processes)
        ]
        found = iter([_found(outcome) for outcome in self._run("finding the cause", tasks)])
        by_source = {source: [next(found) for _ in range(processes)] for source in sources}
        return [
            source
            for source, results in by_source.items()
            if not any(result.error for result in results) and is_alike(*results)
        ]


def _reads_alike(found: Found) -> bool:
    return "plain" in found.digests and found.digests["plain"] == found.digests.get("again")


def _makes_alike(one: Found, other: Found) -> bool:
    same_samples = one.digests.get("plain") == other.digests.get("plain")
    return same_samples and one.order == other.order


def _in_cases(found: Found, facts: Mapping[str, Any], faults: Sequence[Case]) -> list[Diagnosis]:
    """Causes that show in the cases themselves, if samples and batches are sound."""
    if found.files and all("process" in case.setting for case in faults):
        return [causes.shared_file(found.files)]
    if all("thread" in case.setting for case in faults):
        return [causes.shared_by_threads(found.draws) if found.draws else causes.THREADS]
    if not facts.get("in_order", True) and all("no workers" not in one.setting for one in faults):
        return [causes.OUT_OF_ORDER]
    if facts["ours"]:
        # The samples are sound, so only the stream's own state is left.
        return [causes.STREAM_STATE] if facts["stream"] and facts["keeps_state"] else []
    loader = str(facts["loader"])
    if all(map(_is_beyond_resume, faults)):
        dies = [case for case in faults if case.name == WORKER_KILLED]
        cannot_change = [causes.number_of_workers(loader)] if len(dies) < len(faults) else []
        return [*cannot_change, *([causes.WORKER_DIES] if dies else [])]
    resumed = [
        case for case in faults if not _is_beyond_resume(case) and case.name != UNINTERRUPTED
    ]
    firsts = [case.comparison.first for case in resumed if case.comparison is not None]
    known = [first for first in firsts if first is not None]
    if known and all(first.epoch > 0 and first.step == 0 for first in known):
        return [causes.next_epoch(loader)]
    return [causes.missing_generators(found.draws, loader)] if found.draws else []


def _is_beyond_resume(case: Case) -> bool:
    """Whether it asks for more than a resume with as many workers, all of them alive."""
    return case.name == WORKER_KILLED or ", as " in case.name or ", from " in case.name
