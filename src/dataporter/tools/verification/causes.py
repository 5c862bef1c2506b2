"""Causes: for each cause that a diagnosis can find, its evidence and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence

from dataporter.tools.verification.report import Diagnosis

__all__ = [
    "ADDRESS",
    "ENVIRONMENT",
    "HASH",
    "INIT",
    "OUT_OF_ORDER",
    "READING",
    "SEED_IT",
    "STREAM_STATE",
    "THREADS",
    "UNKNOWN_MAKING",
    "UNKNOWN_READING",
    "WORKER",
    "WORKER_DIES",
    "collate_state",
    "generator_in_dataset",
    "in_making",
    "kept_state",
    "missing_generators",
    "next_epoch",
    "number_of_workers",
    "shared_by_threads",
    "shared_file",
]

SEED_IT = (
    "Seed what is drawn when the dataset is made: random.Random(7), numpy.random.default_rng(7), "
    "torch.Generator().manual_seed(7); or seed the global generator at the start of the program."
)
# Source of randomness → what is random, and what had to be fixed to make it stop.
_MAKING = {
    "python": ("unseeded Python random", "Python's random is seeded", SEED_IT),
    "numpy": ("unseeded NumPy random", "numpy.random is seeded", SEED_IT),
    "torch": ("unseeded torch random", "torch is seeded", SEED_IT),
    "time": ("the time", "the clock stands still", "Take seeds from the configuration instead."),
    "pid": (
        "the process id",
        "os.getpid() is always the same",
        "Take seeds from the configuration instead.",
    ),
    "entropy": (
        "fresh randomness",
        "unseeded generators, os.urandom and uuid4 always yield the same values",
        SEED_IT,
    ),
}

READING = {
    "time": Diagnosis(
        "the time is part of a sample",
        "A sample read twice from the same objects differs, unless the clock stands still.",
        "Keep the clock out of samples and out of seeds.",
    ),
    "pid": Diagnosis(
        "the process id is part of a sample",
        "A sample read in two processes from the same objects differs, unless os.getpid() is "
        "always the same.",
        "Use dataporter.sample_rng() for randomness, and the index as an identity.",
    ),
    "entropy": Diagnosis(
        "fresh randomness in a sample",
        "A sample read twice from the same objects differs, unless unseeded generators, os.urandom "
        "and uuid4 always yield the same values: reading it uses one of these.",
        "Draw from dataporter.sample_rng() instead of a new unseeded generator.",
    ),
}

UNKNOWN_READING = Diagnosis(
    "something outside the process",
    "A sample read twice from the same objects differs, even if the clock, the process id and "
    "fresh randomness are fixed.",
    "Check what it reads: a file that another process writes, a network, a race between threads.",
)
UNKNOWN_MAKING = Diagnosis(
    "something outside the process",
    "A new process makes other samples, even if seeds, the clock, the process id and fresh "
    "randomness are fixed.",
    "Check what the dataset is made from: the order of a directory listing, a file that changes, "
    "the address of an object (id(), or a set of objects without __hash__).",
)
INIT = Diagnosis(
    "worker_init_fn",
    "The same samples differ after each call of worker_init_fn.",
    "Do not seed by the clock or at random in it: DataPorter seeds the generators before each "
    "sample, so worker_init_fn need not seed at all.",
)
WORKER = Diagnosis(
    "the worker is part of a sample",
    "A sample depends on the worker that reads it (get_worker_info()), which changes with the "
    "number of workers and after a resume.",
    "Use dataporter.sample_rng() for randomness; workers of a dataset with an index need not "
    "divide the work themselves.",
)
ENVIRONMENT = Diagnosis(
    "the environment",
    "Processes with other environment variables (those of a restarted job: SLURM_JOB_ID, "
    "TORCHELASTIC_RUN_ID, HOSTNAME) make other samples.",
    "Take what samples depend on from the configuration, which a restart keeps.",
)
STREAM_STATE = Diagnosis(
    "the stream's state is incomplete",
    "Without interruption the stream delivers the same samples in each process; after its "
    "load_state_dict() it delivers others.",
    "Include in its state_dict() all that decides what comes next: buffers, generators, the offset "
    "in each file; and start the next pass after load_state_dict() there.",
)
ADDRESS = Diagnosis(
    "the address of an object",
    "Forks of one process make the same samples, but separate processes with the same environment "
    "and PYTHONHASHSEED do not: id() behaves so, and a set of objects without __hash__.",
    "Use names or numbers instead of id(), and a list or a dict instead of such a set.",
)
HASH = Diagnosis(
    "hash randomisation",
    "Processes with the same PYTHONHASHSEED make the same samples, others do not: the dataset "
    "iterates over a set of strings, or calls hash() on one.",
    "Iterate over sorted(the_set) or a dict, and use hashlib or zlib.crc32 instead of hash().",
)
THREADS = Diagnosis(
    "threads that share the dataset",
    "It differs with threads only: two of them read from the same objects at the same time.",
    "Read with objects of each thread only (a file handle per thread, no buffer in self), or use "
    'worker_kind="process".',
)
OUT_OF_ORDER = Diagnosis(
    "in_order=False",
    "Workers deliver batches in the order in which they finish them, which varies.",
    "Leave in_order=True if the order matters; each sample appears exactly once in either case.",
)
WORKER_DIES = Diagnosis(
    "a worker's death ends the training",
    "The loader resumes correctly while its workers live; when one is killed, it raises.",
    "Restart from the last checkpoint, or use a ResumableDataLoader, which replaces the worker.",
)


def in_making(source: str, what: str) -> Diagnosis:
    """A source of randomness from which the loader is made; ``what`` differs each time."""
    cause, when, remedy = _MAKING[source]
    return Diagnosis(
        f"{cause} when the loader is made", f"A new process makes {what}, unless {when}.", remedy
    )


def generator_in_dataset(names: Sequence[str]) -> Diagnosis:
    """Generators of the dataset, by name."""
    return Diagnosis(
        "a generator in the dataset",
        f"A sample read twice differs, unless {_listed(names)} is restored in between. Such a "
        "generator advances from sample to sample, separately in each worker, and no checkpoint "
        "holds its state.",
        "Draw from dataporter.sample_rng(), or from the global generators, which are seeded before "
        "each sample.",
    )


def kept_state(
    shown: str, changed: Sequence[str], containers: Sequence[str], arrays: Sequence[str]
) -> Diagnosis:
    """Objects of the dataset that reading changes, by name.

    Args:
        shown: the experiment that shows it, as a clause.
        containers, arrays: those of the changed objects that are of this kind.
    """
    evidence = f"{shown[0].upper()}{shown[1:]}"
    if arrays and not containers:
        return Diagnosis(
            "samples are changed in place",
            f"{evidence}: reading changes {_listed(arrays)}.",
            "Change a copy (.clone(), .copy()) instead of what the dataset holds.",
        )
    where = f" Reading changes {_listed(changed)}." if changed else ""
    if containers:
        return Diagnosis(
            "a cache in the dataset",
            f"{evidence}: samples depend on what was read before.{where}",
            "Cache only values that are always the same (before random augmentation), do not "
            "change them, and fill the cache before the workers start, or do without it: each "
            "worker, and each process after a resume, starts with an empty cache.",
        )
    return Diagnosis(
        "state kept in the dataset",
        f"{evidence}: the dataset carries something from sample to sample.{where}",
        "Compute it from the index, or draw it from dataporter.sample_rng(): each worker has its "
        "own copy, and a resumed process starts anew.",
    )


def collate_state(changed: Sequence[str]) -> Diagnosis:
    """A ``collate_fn`` that depends on earlier batches."""
    where = f" It changes {_listed(changed)}." if changed else ""
    return Diagnosis(
        "collate_fn keeps state",
        "The same samples are collated to another batch (dtype, padding or values) after other "
        f"batches.{where}",
        "Make a batch from its own samples alone: pad to the longest of the batch, or to a fixed "
        "length.",
    )


def shared_by_threads(draws: Sequence[str]) -> Diagnosis:
    """Global generators from which samples draw in threads."""
    return Diagnosis(
        "global generators in threads",
        f"It differs with threads only, and samples draw from {_listed(draws)}, which all threads "
        "share.",
        'Draw from dataporter.sample_rng(), or use worker_kind="process".',
    )


def shared_file(names: Sequence[str]) -> Diagnosis:
    """Open files of the dataset, by name."""
    return Diagnosis(
        "an open file that the workers share",
        f"It differs with worker processes only, and {_listed(names)} is open when they start, so "
        "they share one file offset, which moves while another worker reads.",
        "Open the file in each worker when it first reads, or read with os.pread().",
    )


def number_of_workers(loader: str) -> Diagnosis:
    """A loader that cannot resume with another number of workers."""
    return Diagnosis(
        "the number of workers cannot change",
        f"A {loader} resumes correctly with the same number of workers; with another number it "
        "delivers other batches, or refuses the state.",
        "Resume with as many workers as before (--workers with a single number tries that one "
        "only), or use a ResumableDataLoader.",
    )


def next_epoch(loader: str) -> Diagnosis:
    """A loader that is exact to the end of its epoch only."""
    return Diagnosis(
        "the next epoch's order is not in the state",
        "The rest of the epoch is correct, but the next epoch has another order: the generator "
        f"from which a {loader} draws it is not restored.",
        "Seed the generator before each epoch, from a seed and the epoch's number, or use a "
        "ResumableDataLoader.",
    )


def missing_generators(draws: Sequence[str], loader: str) -> Diagnosis:
    """Global generators from which samples draw, under a loader that does not seed them."""
    return Diagnosis(
        "global generators missing from the state",
        f"Samples draw from {_listed(draws)}. A {loader} does not seed these for each sample, and "
        "its state does not include theirs, neither of the training process nor of each worker.",
        "Use a ResumableDataLoader, which seeds them before each sample, or derive all randomness "
        "from the index and the epoch.",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
