"""Causes: what a diagnosis says of each, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence

from dataporter.tools.verification.report import Diagnosis

__all__ = [
    "ADDRESS",
    "ENVIRONMENT",
    "HASH",
    "INIT",
    "OF_READING",
    "OF_STREAM",
    "OUT_OF_ORDER",
    "SEED_OF_ITS_OWN",
    "THREADS",
    "UNKNOWN_BUILDING",
    "UNKNOWN_INFLUENCE",
    "WORKER",
    "WORKER_DIES",
    "listed",
    "next_epoch",
    "not_saved",
    "number_of_workers",
    "of_building",
    "own_generator",
    "shared_by_threads",
    "shared_file",
]


def listed(names: Sequence[str]) -> str:
    """Names, for a sentence."""
    return ", ".join(names)


def own_generator(names: Sequence[str]) -> Diagnosis:
    """Of generators that are the dataset's, by name."""
    return Diagnosis(
        "a generator of the dataset's own",
        f"A sample read twice differs, and is the same when {listed(names)} is put back in "
        "between. Such a generator goes on from sample to sample, in each worker by itself, and "
        "its state is in no checkpoint.",
        "Draw from dataporter.sample_rng(), or from the global generators, which are seeded before "
        "each sample.",
    )


def of_building(source: str, what: str) -> Diagnosis:
    """Of a source of chance that the loader was made from; ``what`` it gives each time."""
    cause, shown, remedy = _BUILT_FROM[source]
    return Diagnosis(
        f"{cause} when the loader is made",
        f"A new process makes {what}, and the same {shown}.",
        remedy,
    )


SEED_OF_ITS_OWN = (
    "Give what is drawn when the dataset is made a seed of its own: random.Random(7), "
    "numpy.random.default_rng(7), torch.Generator().manual_seed(7); or seed it first thing in the "
    "program."
)
_BUILT_FROM = {
    "python": ("unseeded Python random", "when Python's random is seeded", SEED_OF_ITS_OWN),
    "numpy": ("unseeded NumPy random", "when numpy.random is seeded", SEED_OF_ITS_OWN),
    "torch": ("unseeded torch random", "when torch is seeded", SEED_OF_ITS_OWN),
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
        SEED_OF_ITS_OWN,
    ),
}

OF_READING = {
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

UNKNOWN_INFLUENCE = Diagnosis(
    "something outside the process",
    "The same sample, read twice from the same objects, differs, whatever of clock, process id and "
    "fresh randomness is held still.",
    "Look at what it reads: a file that is written to, a network, a race between threads.",
)
UNKNOWN_BUILDING = Diagnosis(
    "something outside the process",
    "A new process makes other samples, whatever of seeds, clock, process id and fresh randomness "
    "is held still.",
    "Look at what the dataset is made from: the order of a directory listing, a file that changes, "
    "the address of an object (id(), or a set of objects without __hash__).",
)
INIT = Diagnosis(
    "worker_init_fn",
    "The same samples differ each time that worker_init_fn has run before.",
    "Let it set nothing by the clock or by chance: DataPorter seeds the generators before each "
    "sample, so that it need not seed at all.",
)
WORKER = Diagnosis(
    "the worker is part of a sample",
    "A sample differs by the worker that reads it (get_worker_info()): which worker that is "
    "changes with their number, and with a resume.",
    "Use dataporter.sample_rng() where chance is wanted; of a dataset with an index, workers need "
    "not share anything out.",
)
ENVIRONMENT = Diagnosis(
    "the environment",
    "Processes with another environment (the variables of a restarted job: SLURM_JOB_ID, "
    "TORCHELASTIC_RUN_ID, HOSTNAME) make other samples.",
    "Take what the samples depend on from the configuration, which is there after a restart.",
)
OF_STREAM = Diagnosis(
    "the stream's own state does not hold all",
    "Left alone, it gives the same samples in each process; after its load_state_dict(), others.",
    "Let its state_dict() hold all that decides what comes next: buffers, generators, its place in "
    "each file; and let the next pass after load_state_dict() begin there.",
)
ADDRESS = Diagnosis(
    "the address of an object",
    "Processes that were forked from one another make the same samples, and others do not, though "
    "they have the same environment and PYTHONHASHSEED: so behave id(), and a set of objects "
    "without a __hash__ of their own.",
    "Use names or numbers in place of id(), and a list or a dict in place of such a set.",
)
HASH = Diagnosis(
    "hash randomisation",
    "Processes with the same PYTHONHASHSEED make the same samples, and others do not: a set of "
    "strings is gone through, or hash() is taken of one.",
    "Go through sorted(the_set), or a dict, and use hashlib or zlib.crc32 in place of hash().",
)
THREADS = Diagnosis(
    "threads that share the dataset",
    "It differs with threads only: two of them read from the same objects at the same time.",
    "Let a reading use only what is its own (a file handle of each thread, no buffer in self), or "
    'use worker_kind="process".',
)
OUT_OF_ORDER = Diagnosis(
    "in_order=False",
    "Batches come in the order in which workers finish them, another one each time.",
    "Leave in_order=True where the order is to be the same; each sample comes once in either case.",
)
WORKER_DIES = Diagnosis(
    "a worker's death ends the training",
    "With its workers alive it goes on as it should; when one is killed, this loader raises.",
    "Restart from the last checkpoint, or use a ResumableDataLoader, which replaces the worker.",
)


def shared_by_threads(draws: Sequence[str]) -> Diagnosis:
    """Of global generators that samples draw from in threads."""
    return Diagnosis(
        "global generators in threads",
        f"It differs with threads only, and samples draw from {listed(draws)}, which all threads "
        "share.",
        'Draw from dataporter.sample_rng(), or use worker_kind="process".',
    )


def shared_file(names: Sequence[str]) -> Diagnosis:
    """Of open files of the dataset's, by name."""
    return Diagnosis(
        "an open file that the workers share",
        f"It differs with worker processes only, and {listed(names)} is open when they start: its "
        "place in the file is one for all of them, and moves under a worker that reads.",
        "Open it at a worker's first reading, in each by itself, or read with os.pread().",
    )


def number_of_workers(loader: str) -> Diagnosis:
    """Of a loader that needs as many as it had."""
    return Diagnosis(
        "the number of workers has to stay",
        f"With its number of workers kept, a {loader} goes on as it should; with another number it "
        "gives other batches, or refuses the state.",
        "Resume with as many workers as before (--workers with one number goes through that one "
        "alone), or use a ResumableDataLoader.",
    )


def next_epoch(loader: str) -> Diagnosis:
    """Of a loader that is exact to the end of its epoch."""
    return Diagnosis(
        "the next epoch's order is not in the state",
        "What is left of the epoch comes as it should, and the epoch after it in another order: "
        f"what a {loader} draws it from does not stand, after a resume, where it stood.",
        "Set the generator anew before each epoch, from a seed and the epoch's number, or use a "
        "ResumableDataLoader.",
    )


def not_saved(draws: Sequence[str], loader: str) -> Diagnosis:
    """Of global generators that samples draw from, with a loader that does not seed them."""
    return Diagnosis(
        "global generators that the state does not hold",
        f"Samples draw from {listed(draws)}; a {loader} does not seed these by sample, and their "
        "state, in the training process and in each worker, is not part of its own.",
        "Use a ResumableDataLoader, which seeds them before each sample, or derive all chance from "
        "the index and the epoch.",
    )
