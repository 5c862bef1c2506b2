"""Diagnosis: why a loader is not exact, by experiments that take one cause after the other away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dataporter.verification.probe import Found, Probe
from dataporter.verification.processes import Outcome, Task
from dataporter.verification.report import Case, Diagnosis
from dataporter.verification.subject import Subject

__all__ = ["GOING_ON", "diagnose"]

Run = Callable[[str, Sequence[Task]], Sequence[Outcome | None]]

# On which hosts runs go on that were interrupted on host "one". Their hash seeds are others: a set
# of two texts has the same order under half of all seeds, so that there is more than one.
GOING_ON = ("two", "three")

# A host like "one" in all that is known.
_APART = "one/one/again"
_KILLED_WORKER = "SIGKILL to a worker"
_SAMPLES = 6
_SECONDS = 60.0
_READING = ("time", "pid", "entropy")
_BUILDING = ("python", "numpy", "torch", "time", "pid", "entropy")


def diagnose(
    subject: Subject, facts: Mapping[str, Any], cases: Sequence[Case], run: Run
) -> tuple[list[Diagnosis], list[str]]:
    """Find out why cases are not exact.

    Args:
        run: carries tasks out.

    Returns:
        The causes that were found, and what could not be looked at.
    """
    faults = [case for case in cases if case.verdict in ("not exact", "failed")]
    if not faults:
        return [], []
    if not facts["ours"] and all(_is_beyond_resume(case) for case in faults):
        return _of_cases(Found(), facts, faults), []
    samples = _samples_of(faults, facts)
    hosts = ("one", "one", "one/other environment", *GOING_ON)
    probes = [Probe(subject, samples, whole=number == 0) for number in range(len(hosts))]
    outcomes = run(
        "finding out why",
        [Task(None, probe, host, _SECONDS) for probe, host in zip(probes, hosts)],
    )
    found = [_found(outcome) for outcome in outcomes]
    if any(one.error for one in found):
        error = next(one.error for one in found if one.error)
        return _of_cases(Found(), facts, faults), [f"the cause was not looked for: {error}"]
    experiments = _Experiments(subject, facts, samples, run, *found)
    causes = experiments.of_reading() or experiments.of_building() or experiments.of_collating()
    if not causes or (not facts["ours"] and _SEED_OF_ITS_OWN in {one.remedy for one in causes}):
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


def _found(outcome: Outcome | None) -> Found:
    if outcome is None:
        return Found(error="there was no time left")
    return outcome.found if isinstance(outcome.found, Found) else Found(error=outcome.error)


class _Experiments:
    """What the probes say when they are laid side by side."""

    def __init__(
        self,
        subject: Subject,
        facts: Mapping[str, Any],
        samples: tuple[Any, ...],
        run: Run,
        here: Found,
        again: Found,
        elsewhere: Found,
        *other_hashes: Found,
    ) -> None:
        self._subject, self._facts, self._samples, self._run = subject, facts, samples, run
        self._here, self._again = here, again
        self._elsewhere, self._other_hashes = elsewhere, other_hashes

    # ---- the same objects, read twice

    def of_reading(self) -> list[Diagnosis]:
        digests = self._here.digests
        plain = digests.get("plain")
        if plain is None:
            return []
        if digests.get("again") != plain:
            causes = self._frozen(_READING, lambda found: _alike(found.digests, "plain", "again"))
            return [_OF_READING[cause] for cause in causes] or [_UNKNOWN_INFLUENCE]
        if "init" in digests and digests["init"] != digests.get("init again"):
            return [_INIT]
        each = plain[:-1]
        if digests.get("twice", each) != each or (self._facts["stream"] and self._here.generators):
            if self._here.generators:
                return [_own_generator(self._here.generators)]
            return [self._state_kept("a second reading of the same sample gives something else")]
        if digests.get("second pass", each) != each:
            return [self._state_kept("the stream's second pass gives something else")]
        if digests.get("reversed", each) != each:
            return [self._state_kept("the same samples, read in another order, are others")]
        workers = (digests.get("worker 0", each), digests.get("worker 1", each))
        if workers[0] != workers[1] or workers[0] != each:
            return [_WORKER]
        return []

    def _state_kept(self, shown: str) -> Diagnosis:
        changed, containers = self._here.changed, self._here.containers
        if self._here.arrays and not containers:
            return Diagnosis(
                "samples are changed in place",
                f"{shown[0].upper()}{shown[1:]}: reading changes {_listed(self._here.arrays)}.",
                "Change a copy (.clone(), .copy()), and not what the dataset holds.",
            )
        where = f" Reading changes {_listed(changed)}." if changed else ""
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
            causes = self._frozen(_BUILDING, same, pairs=True)
            if not causes:
                return [_UNKNOWN_BUILDING]
            return [_of_building(cause, what) for cause in causes]
        if not same(self._here, self._elsewhere):
            # The two before are forks of one process; this is none, and has their environment.
            probe = Probe(self._subject, self._samples, whole=False)
            (apart,) = self._run("finding out why", [Task(None, probe, _APART, _SECONDS)])
            return [_ENVIRONMENT if same(self._here, _found(apart)) else _ADDRESS]
        if not all(same(self._here, other) for other in self._other_hashes):
            return [_HASH]
        return []

    def _frozen(
        self, sources: Sequence[str], holds: Callable[..., bool], *, pairs: bool = False
    ) -> list[str]:
        """The sources of chance without which it holds; fewer are better."""
        tasks = [
            Task(None, Probe(self._subject, self._samples, (source,), whole=False), "one", _SECONDS)
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
        changed = f" It changes {_listed(self._here.changed)}." if self._here.changed else ""
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
        return [_shared_file(found.files)]
    threads = [case for case in faults if "thread" in case.setting]
    if threads and len(threads) == len(faults):
        return [_shared_by_threads(found.draws) if found.draws else _THREADS]
    if not facts.get("in_order", True) and all("no workers" not in one.setting for one in faults):
        return [_OUT_OF_ORDER]
    if facts["ours"]:
        # The samples are sound, so that what is left is the state that the stream gives itself.
        return [_OF_STREAM] if facts["stream"] and facts["keeps_state"] else []
    resumed = [case for case in faults if not _is_beyond_resume(case) and case.name != "left alone"]
    if not resumed and all(map(_is_beyond_resume, faults)):
        dies = [case for case in faults if case.name == _KILLED_WORKER]
        stay = [_number_of_workers(str(facts["loader"]))] if len(dies) < len(faults) else []
        return [*stay, *([_WORKER_DIES] if dies else [])]
    firsts = [case.comparison.first for case in resumed if case.comparison is not None]
    begun = [first for first in firsts if first is not None]
    if begun and all(first.epoch > 0 and first.step == 0 for first in begun):
        return [_next_epoch(str(facts["loader"]))]
    if found.draws:
        return [_not_saved(found.draws, str(facts["loader"]))]
    return []


def _is_beyond_resume(case: Case) -> bool:
    """Whether it asks for more than to go on with as many workers, all of them alive."""
    return case.name == _KILLED_WORKER or ", as " in case.name or ", from " in case.name


def _alike(digests: Mapping[str, Any], one: str, other: str) -> bool:
    return one in digests and digests.get(one) == digests.get(other)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _own_generator(names: Sequence[str]) -> Diagnosis:
    return Diagnosis(
        "a generator of the dataset's own",
        f"A sample read twice differs, and is the same when {_listed(names)} is put back in "
        "between. Such a generator goes on from sample to sample, in each worker by itself, and "
        "its state is in no checkpoint.",
        "Draw from dataporter.sample_rng(), or from the global generators, which are seeded before "
        "each sample.",
    )


def _of_building(source: str, what: str) -> Diagnosis:
    cause, shown, remedy = _BUILT_FROM[source]
    return Diagnosis(
        f"{cause} when the loader is made",
        f"A new process makes {what}, and the same {shown}.",
        remedy,
    )


_SEED_OF_ITS_OWN = (
    "Give what is drawn when the dataset is made a seed of its own: random.Random(7), "
    "numpy.random.default_rng(7), torch.Generator().manual_seed(7); or seed it first thing in the "
    "program."
)
_BUILT_FROM = {
    "python": ("unseeded Python random", "when Python's random is seeded", _SEED_OF_ITS_OWN),
    "numpy": ("unseeded NumPy random", "when numpy.random is seeded", _SEED_OF_ITS_OWN),
    "torch": ("unseeded torch random", "when torch is seeded", _SEED_OF_ITS_OWN),
    "time": (
        "the time",
        "when the clock stands still",
        "Take a seed from the configuration, and not from the clock.",
    ),
    "pid": (
        "the process id",
        "when os.getpid() is always the same",
        "Take a seed from the configuration, and not from the process.",
    ),
    "entropy": (
        "fresh randomness",
        "when unseeded generators, os.urandom and uuid4 give the same",
        _SEED_OF_ITS_OWN,
    ),
}

_OF_READING = {
    "time": Diagnosis(
        "the time is part of a sample",
        "The same sample, read twice from the same objects, differs, and does not when the clock "
        "stands still.",
        "Leave the clock out of samples, and seed nothing with it.",
    ),
    "pid": Diagnosis(
        "the process id is part of a sample",
        "The same sample, read in two processes from the same objects, differs, and does not when "
        "os.getpid() is always the same.",
        "Use dataporter.sample_rng() where chance is wanted, and the index where an identity is.",
    ),
    "entropy": Diagnosis(
        "fresh randomness in a sample",
        "The same sample, read twice from the same objects, differs, and does not when unseeded "
        "generators, os.urandom and uuid4 always give the same: one is made while it is read.",
        "Draw from dataporter.sample_rng() instead of a new generator without a seed.",
    ),
}

_UNKNOWN_INFLUENCE = Diagnosis(
    "something outside the process",
    "The same sample, read twice from the same objects, differs, whatever of clock, process id and "
    "fresh randomness is held still.",
    "Look at what it reads: a file that is written to, a network, a race between threads.",
)
_UNKNOWN_BUILDING = Diagnosis(
    "something outside the process",
    "A new process makes other samples, whatever of seeds, clock, process id and fresh randomness "
    "is held still.",
    "Look at what the dataset is made from: the order of a directory listing, a file that changes, "
    "the address of an object (id(), or a set of objects without __hash__).",
)
_INIT = Diagnosis(
    "worker_init_fn",
    "The same samples differ each time that worker_init_fn has run before.",
    "Let it set nothing by the clock or by chance: DataPorter seeds the generators before each "
    "sample, so that it need not seed at all.",
)
_WORKER = Diagnosis(
    "the worker is part of a sample",
    "A sample differs by the worker that reads it (get_worker_info()): which worker that is "
    "changes with their number, and with a resume.",
    "Use dataporter.sample_rng() where chance is wanted; of a dataset with an index, workers need "
    "not share anything out.",
)
_ENVIRONMENT = Diagnosis(
    "the environment",
    "Processes with another environment (the variables of a restarted job: SLURM_JOB_ID, "
    "TORCHELASTIC_RUN_ID, HOSTNAME) make other samples.",
    "Take what the samples depend on from the configuration, which is there after a restart.",
)
_OF_STREAM = Diagnosis(
    "the stream's own state does not hold all",
    "Left alone, it gives the same samples in each process; after its load_state_dict(), others.",
    "Let its state_dict() hold all that decides what comes next: buffers, generators, its place in "
    "each file; and let the next pass after load_state_dict() begin there.",
)
_ADDRESS = Diagnosis(
    "the address of an object",
    "Processes that were forked from one another make the same samples, and others do not, though "
    "they have the same environment and PYTHONHASHSEED: so behave id(), and a set of objects "
    "without a __hash__ of their own.",
    "Use names or numbers in place of id(), and a list or a dict in place of such a set.",
)
_HASH = Diagnosis(
    "hash randomisation",
    "Processes with the same PYTHONHASHSEED make the same samples, and others do not: a set of "
    "strings is gone through, or hash() is taken of one.",
    "Go through sorted(the_set), or a dict, and use hashlib or zlib.crc32 in place of hash().",
)
_THREADS = Diagnosis(
    "threads that share the dataset",
    "It differs with threads only: two of them read from the same objects at the same time.",
    "Let a reading use only what is its own (a file handle of each thread, no buffer in self), or "
    'use worker_kind="process".',
)
_OUT_OF_ORDER = Diagnosis(
    "in_order=False",
    "Batches come in the order in which workers finish them, another one each time.",
    "Leave in_order=True where the order is to be the same; each sample comes once in either case.",
)
_WORKER_DIES = Diagnosis(
    "a worker's death ends the training",
    "All else is exact; when a worker is killed, this loader raises.",
    "Restart from the last checkpoint, or use a ResumableDataLoader, which replaces the worker.",
)


def _shared_by_threads(draws: Sequence[str]) -> Diagnosis:
    return Diagnosis(
        "global generators in threads",
        f"It differs with threads only, and samples draw from {_listed(draws)}, which all threads "
        "share.",
        'Draw from dataporter.sample_rng(), or use worker_kind="process".',
    )


def _shared_file(names: Sequence[str]) -> Diagnosis:
    return Diagnosis(
        "an open file that the workers share",
        f"It differs with worker processes only, and {_listed(names)} is open when they start: its "
        "place in the file is one for all of them, and moves under a worker that reads.",
        "Open it at a worker's first reading, in each by itself, or read with os.pread().",
    )


def _number_of_workers(loader: str) -> Diagnosis:
    return Diagnosis(
        "the number of workers has to stay",
        f"With its number of workers kept, a {loader} goes on as it should; with another number it "
        "gives other batches, or refuses the state.",
        "Resume with as many workers as before (--workers with one number goes through that one "
        "alone), or use a ResumableDataLoader.",
    )


def _next_epoch(loader: str) -> Diagnosis:
    return Diagnosis(
        "the next epoch's order is not in the state",
        "What is left of the epoch comes as it should, and the epoch after it in another order: "
        f"what a {loader} draws it from does not stand, after a resume, where it stood.",
        "Set the generator anew before each epoch, from a seed and the epoch's number, or use a "
        "ResumableDataLoader.",
    )


def _not_saved(draws: Sequence[str], loader: str) -> Diagnosis:
    return Diagnosis(
        "global generators that the state does not hold",
        f"Samples draw from {_listed(draws)}; a {loader} does not seed these by sample, and their "
        "state, in the training process and in each worker, is not part of its own.",
        "Use a ResumableDataLoader, which seeds them before each sample, or derive all chance from "
        "the index and the epoch.",
    )
