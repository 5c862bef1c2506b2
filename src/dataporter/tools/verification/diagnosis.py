"""Diagnosis: why a loader is not exact, by experiments that take one cause after the other away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dataporter.tools.verification.causes import (
    ADDRESS,
    ENVIRONMENT,
    HASH,
    INIT,
    OF_READING,
    OF_STREAM,
    OUT_OF_ORDER,
    SEED_OF_ITS_OWN,
    THREADS,
    UNKNOWN_BUILDING,
    UNKNOWN_INFLUENCE,
    WORKER,
    WORKER_DIES,
    listed,
    next_epoch,
    not_saved,
    number_of_workers,
    of_building,
    own_generator,
    shared_by_threads,
    shared_file,
)
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.probe import Found, Probe, carry_out
from dataporter.tools.verification.processes import Outcome, Task
from dataporter.tools.verification.report import UNINTERRUPTED, WORKER_KILLED, Case, Diagnosis

__all__ = ["RESUMING_HOSTS", "diagnose"]

Run = Callable[[str, Sequence[Task]], Sequence[Outcome | None]]

# On which hosts runs go on that were interrupted on host "one". Their hash seeds are others: a set
# of two texts has the same order under half of all seeds, so that there is more than one.
RESUMING_HOSTS = ("two", "three")

# A host like "one" in all that is known.
_APART = "one/one/again"
_SAMPLES = 6
_SECONDS = 60.0
_READING = ("time", "pid", "entropy")
_BUILDING = ("python", "numpy", "torch", "time", "pid", "entropy")


def diagnose(
    factory: Factory, facts: Mapping[str, Any], cases: Sequence[Case], run: Run
) -> tuple[list[Diagnosis], list[str]]:
    """Find out why cases are not exact.

    Args:
        run: carries tasks out.

    Returns:
        The causes that were found, and what could not be looked at.
    """
    faults = [case for case in cases if case.is_fault]
    if not faults:
        return [], []
    if not facts["ours"] and all(_is_beyond_resume(case) for case in faults):
        return _of_cases(Found(), facts, faults), []
    samples = _samples_of(faults, facts)
    hosts = ("one", "one", "one/other environment", *RESUMING_HOSTS)
    probes = [Probe(factory, samples, whole=number == 0) for number in range(len(hosts))]
    outcomes = run(
        "finding out why",
        [_task(probe, host) for probe, host in zip(probes, hosts)],
    )
    found = [_found(outcome) for outcome in outcomes]
    if any(one.error for one in found):
        error = next(one.error for one in found if one.error)
        return _of_cases(Found(), facts, faults), [f"the cause was not looked for: {error}"]
    experiments = _Experiments(factory, facts, samples, run, *found)
    causes = experiments.of_reading() or experiments.of_building() or experiments.of_collating()
    if not causes or (not facts["ours"] and SEED_OF_ITS_OWN in {one.remedy for one in causes}):
        causes = [*causes, *_of_cases(found[0], facts, faults)]
    notes = [] if causes else ["no experiment has shown why it differs"]
    return causes, notes


def _samples_of(faults: Sequence[Case], facts: Mapping[str, Any]) -> tuple[Any, ...]:
    if facts["stream"]:
        return tuple(range(_SAMPLES))
    firsts = [case.comparison.first for case in faults if case.comparison is not None]
    known = [first.sample for first in firsts if first is not None and first.sample is not None]
    length = facts.get("samples") or _SAMPLES
    # An odd step, so that even and odd ones are among them.
    spread = range(0, length, max(1, length // _SAMPLES - 1) | 1)
    return tuple(dict.fromkeys([*known[:2], *spread]))[:_SAMPLES]


def _task(probe: Probe, host: str) -> Task:
    return Task(partial(carry_out, probe), host, _SECONDS)


def _found(outcome: Outcome | None) -> Found:
    if outcome is None:
        return Found(error="there was no time left")
    return outcome.found if isinstance(outcome.found, Found) else Found(error=outcome.error)


class _Experiments:
    """What the probes say when they are laid side by side."""

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

    # ---- the same objects, read twice

    def of_reading(self) -> list[Diagnosis]:
        digests = self._here.digests
        plain = digests.get("plain")
        if plain is None:
            return []
        if digests.get("again") != plain:
            causes = self._fixed(_READING, lambda found: _alike(found.digests, "plain", "again"))
            return [OF_READING[cause] for cause in causes] or [UNKNOWN_INFLUENCE]
        if "init" in digests and digests["init"] != digests.get("init again"):
            return [INIT]
        each = plain[:-1]
        if digests.get("twice", each) != each or (self._facts["stream"] and self._here.generators):
            if self._here.generators:
                return [own_generator(self._here.generators)]
            return [self._state_kept("a second reading of the same sample gives something else")]
        if digests.get("second pass", each) != each:
            return [self._state_kept("the stream's second pass gives something else")]
        if digests.get("reversed", each) != each:
            return [self._state_kept("the same samples, read in another order, are others")]
        workers = (digests.get("worker 0", each), digests.get("worker 1", each))
        if workers[0] != workers[1] or workers[0] != each:
            return [WORKER]
        return []

    def _state_kept(self, shown: str) -> Diagnosis:
        changed, containers = self._here.changed, self._here.containers
        if self._here.arrays and not containers:
            return Diagnosis(
                "samples are changed in place",
                f"{shown[0].upper()}{shown[1:]}: reading changes {listed(self._here.arrays)}.",
                "Change a copy (.clone(), .copy()), and not what the dataset holds.",
            )
        where = f" Reading changes {listed(changed)}." if changed else ""
        if containers:
            return Diagnosis(
                "a cache in the dataset",
                f"{shown[0].upper()}{shown[1:]}: what was read before counts.{where}",
                "Keep in the cache only what is the same whenever it is computed (before random "
                "augmentation), change nothing in it, fill it before the workers start, or leave "
                "it out: each worker, and each process after a resume, begins with its own.",
            )
        return Diagnosis(
            "state kept in the dataset",
            f"{shown[0].upper()}{shown[1:]}: something is carried from sample to sample.{where}",
            "Compute it from the index, or from dataporter.sample_rng(): each worker has its own "
            "copy, and a resumed process begins anew.",
        )

    # ---- made anew, in another process

    def of_building(self) -> list[Diagnosis]:
        def same(one: Found, other: Found) -> bool:
            return one.digests.get("plain") == other.digests.get("plain") and (
                one.order == other.order
            )

        orders = (self._here.order, self._again.order)
        what = "another order" if orders[0] != orders[1] else "other samples"
        if not same(self._here, self._again):
            causes = self._fixed(_BUILDING, same, pairs=True)
            if not causes:
                return [UNKNOWN_BUILDING]
            return [of_building(cause, what) for cause in causes]
        if not same(self._here, self._elsewhere):
            # The two before are forks of one process; this is none, and has their environment.
            probe = Probe(self._factory, self._samples, whole=False)
            (apart,) = self._run("finding out why", [_task(probe, _APART)])
            return [ENVIRONMENT if same(self._here, _found(apart)) else ADDRESS]
        if not all(same(self._here, other) for other in self._other_hashes):
            return [HASH]
        return []

    def _fixed(
        self, sources: Sequence[str], holds: Callable[..., bool], *, pairs: bool = False
    ) -> list[str]:
        """The sources of chance without which it holds; fewer are better."""
        tasks = [
            _task(Probe(self._factory, self._samples, (source,), whole=False), "one")
            for source in sources
            for _ in range(2 if pairs else 1)
        ]
        found = [_found(outcome) for outcome in self._run("finding out why", tasks)]
        if pairs:
            held = [
                not one.error and not other.error and holds(one, other)
                for one, other in zip(found[::2], found[1::2])
            ]
        else:
            held = [not one.error and holds(one) for one in found]
        return [source for source, it_does in zip(sources, held) if it_does]

    # ---- batches

    def of_collating(self) -> list[Diagnosis]:
        both = self._here.digests.get("collate after others")
        if both is None or both[0] == both[1]:
            return []
        changed = f" It changes {listed(self._here.changed)}." if self._here.changed else ""
        return [
            Diagnosis(
                "collate_fn keeps state",
                "The same samples are collated to another batch after other batches went through "
                f"(dtype, padding or values).{changed}",
                "Make the batch from its own samples alone: pad to the longest of the batch, or to "
                "a fixed length.",
            )
        ]


def _of_cases(found: Found, facts: Mapping[str, Any], faults: Sequence[Case]) -> list[Diagnosis]:
    """What the cases themselves say, where samples and batches were found to be sound."""
    processes = [case for case in faults if "process" in case.setting]
    if found.files and len(processes) == len(faults):
        return [shared_file(found.files)]
    threads = [case for case in faults if "thread" in case.setting]
    if threads and len(threads) == len(faults):
        return [shared_by_threads(found.draws) if found.draws else THREADS]
    if not facts.get("in_order", True) and all("no workers" not in one.setting for one in faults):
        return [OUT_OF_ORDER]
    if facts["ours"]:
        # The samples are sound, so that what is left is the state that the stream gives itself.
        return [OF_STREAM] if facts["stream"] and facts["keeps_state"] else []
    resumed = [
        case for case in faults if not _is_beyond_resume(case) and case.name != UNINTERRUPTED
    ]
    if not resumed and all(map(_is_beyond_resume, faults)):
        dies = [case for case in faults if case.name == WORKER_KILLED]
        stay = [number_of_workers(str(facts["loader"]))] if len(dies) < len(faults) else []
        return [*stay, *([WORKER_DIES] if dies else [])]
    firsts = [case.comparison.first for case in resumed if case.comparison is not None]
    begun = [first for first in firsts if first is not None]
    if begun and all(first.epoch > 0 and first.step == 0 for first in begun):
        return [next_epoch(str(facts["loader"]))]
    if found.draws:
        return [not_saved(found.draws, str(facts["loader"]))]
    return []


def _is_beyond_resume(case: Case) -> bool:
    """Whether it asks for more than to go on with as many workers, all of them alive."""
    return case.name == WORKER_KILLED or ", as " in case.name or ", from " in case.name


def _alike(digests: Mapping[str, Any], one: str, other: str) -> bool:
    return one in digests and digests.get(one) == digests.get(other)
