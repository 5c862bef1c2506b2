"""Probes: experiments on a loader in a separate process, to find why it is not exact.

Each experiment reads the same samples in a fork of the process that made the loader, so that all
of them start with the same objects. The global generators are seeded before each sample, as
DataPorter does, so that a remaining difference has another cause.
"""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dataporter._torch import become_worker
from dataporter.loader.loader import ResumableDataLoader
from dataporter.seeding.generators import GENERATORS, saved_generators, seed_generators
from dataporter.seeding.hashing import sample_key
from dataporter.seeding.samples import reading
from dataporter.tools.target import in_one_line
from dataporter.tools.verification.digest import digest_of
from dataporter.tools.verification.factory import Factory, Setting
from dataporter.tools.verification.forks import renew_server
from dataporter.tools.verification.randomness import (
    Generators,
    fix,
    generator_state,
    restore_generator,
)
from dataporter.tools.verification.reachable import is_open_file, reachable, snapshot

__all__ = ["Found", "Probe", "run_probe"]

_SECONDS_AN_EXPERIMENT = 20
# Clocks must advance between two experiments.
_PAUSE = 0.003
_MOST_NAMED = 4

Digests = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """The experiments of one process.

    Attributes:
        factory: makes the loader.
        samples: indices of the samples to read; of a stream, one for each sample to read.
        fixed: sources of randomness to fix, see ``randomness.py``.
        whole: run all experiments, rather than only read the samples twice.
    """

    factory: Factory
    samples: tuple[Any, ...]
    fixed: tuple[str, ...] = ()
    whole: bool = True


@dataclass(slots=True)
class Found:
    """The results of a probe; experiments that failed are missing.

    Attributes:
        digests: by experiment, a digest of each sample, and one of the batch at the end.
        draws: global generators from which reading draws.
        generators: generators of the dataset that make a sample differ when it is read twice.
        changed: names of the dataset's objects that reading changes.
        containers: those of them that are containers or caches.
        arrays: those of them that are tensors or arrays with dimensions.
        files: names of the dataset's open files.
        order: a digest of the first indices of a custom sampler; None: there is none.
        error: why there are no results.
    """

    digests: dict[str, Digests] = field(default_factory=dict)
    draws: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    order: bytes | None = None
    error: str | None = None


def run_probe(probe: Probe) -> Found:
    """Run the experiments of a probe."""
    for source in probe.fixed:
        fix(source)
    try:
        return _Experiments(probe).run()
    except (Exception, SystemExit) as error:
        return Found(error=in_one_line(error))


class _Experiments:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        loader = probe.factory.loader(Setting(num_workers=0))
        self._loader = loader
        self._data: Any = getattr(loader, "dataset", None)
        if isinstance(loader, ResumableDataLoader) and loader.setup.stream is None:
            self._data = loader.setup.rows
        if self._data is None:
            raise ValueError(f"a {type(loader).__name__} has no dataset to look at")
        self._is_stream = isinstance(self._data, IterableDataset)
        self._collate = getattr(loader, "collate_fn", None) or (lambda samples: samples)
        if isinstance(loader, DataLoader) and loader.batch_sampler is None and not self._is_stream:
            self._collate = list  # samples are delivered one by one
        self._init = getattr(loader, "worker_init_fn", None)
        self._roots = {
            "dataset": getattr(loader, "dataset", None),
            "collate_fn": getattr(loader, "collate_fn", None),
        }

    def run(self) -> Found:
        found = Found(order=self._in_fork(self._order))
        experiments: dict[str, Callable[[], Any]] = {
            "plain": self._read,
            "again": self._read,
        }
        if self._probe.whole:
            experiments["collate after others"] = self._read_after_others
            if self._is_stream and not hasattr(self._data, "state_dict"):
                experiments["second pass"] = self._read_second_pass
            if not self._is_stream:
                experiments["twice"] = self._read_twice
                experiments["reversed"] = self._read_reversed
                experiments["worker 0"] = lambda: self._read_in_worker(0)
                experiments["worker 1"] = lambda: self._read_in_worker(1)
            if self._init is not None:
                experiments["init"] = self._read_after_init
                experiments["init again"] = self._read_after_init
        for name, experiment in experiments.items():
            time.sleep(_PAUSE)
            digests = self._in_fork(experiment)
            if digests is not None:
                found.digests[name] = digests
        if self._probe.whole:
            found.draws = self._in_fork(self._draws) or ()
            found.generators = self._in_fork(self._own_generators) or ()
            changes = self._in_fork(self._changes) or ((), (), ())
            found.changed, found.containers, found.arrays = changes
            found.files = self._in_fork(self._files) or ()
        return found

    # ---- reading

    def _samples(self, indices: Sequence[Any] | None = None, *, seeded: bool = True) -> list[Any]:
        wanted = list(self._probe.samples if indices is None else indices)
        offsets = {index: offset for offset, index in enumerate(self._probe.samples)}
        positions = np.arange(len(self._probe.samples), dtype=np.int64)
        samples = []
        stream = iter(self._data) if self._is_stream else None
        with reading(1, 0, positions) as current:
            for index in wanted:
                offset = offsets[index]
                if seeded:
                    seed_generators(sample_key(1, 0, offset))
                    current.generators.pop(offset, None)
                current.offset = offset
                if stream is None:
                    samples.append(self._data[index])
                else:
                    samples += islice(stream, 1)
        return samples

    def _read(self) -> Digests:
        samples = self._samples()
        digests = [digest_of(sample) for sample in samples]
        return (*digests, self._collated(samples))

    def _collated(self, samples: list[Any]) -> bytes:
        seed_generators(sample_key(1, 1, 0))
        with reading(1, 0, np.arange(len(samples), dtype=np.int64)):
            return digest_of(self._collate(samples))

    def _read_twice(self) -> Digests:
        digests = []
        for index in self._probe.samples:
            self._samples([index])
            digests += [digest_of(sample) for sample in self._samples([index])]
        return tuple(digests)

    def _read_second_pass(self) -> Digests:
        self._samples()
        return tuple(map(digest_of, self._samples()))

    def _read_reversed(self) -> Digests:
        samples = self._samples(self._probe.samples[::-1])[::-1]
        return tuple(map(digest_of, samples))

    def _read_in_worker(self, number: int) -> Digests:
        # Of a loader with the same arguments, so that only the worker is new.
        become_worker(number, 2, number, getattr(self._loader, "dataset", None))
        return tuple(map(digest_of, self._samples()))

    def _read_after_init(self) -> Digests:
        assert self._init is not None
        become_worker(0, 2, 0, getattr(self._loader, "dataset", None))
        assert get_worker_info() is not None
        seed_generators(0)
        self._init(0)
        # Not seeded if the loader does not seed either: then the seeds of worker_init_fn count.
        seeded = isinstance(self._loader, ResumableDataLoader)
        return tuple(map(digest_of, self._samples(seeded=seeded)))

    def _read_after_others(self) -> Digests:
        """The batch of the first sample, by itself and after batches of the others."""
        samples = self._samples()
        collated = self._in_fork(lambda: self._collated(samples[:1]))
        for sample in samples[1:]:
            self._collated([sample])
        self._collated(samples)
        return (collated or b"", self._collated(samples[:1]))

    def _order(self) -> bytes | None:
        if self._is_stream or not isinstance(self._loader, DataLoader):
            return None
        if isinstance(self._loader, ResumableDataLoader) and self._loader.order is not None:
            return None
        if isinstance(self._loader, ResumableDataLoader):
            seed_generators(0)  # as it does itself; whether others are seeded is to be found
        sampler: Any = self._loader.batch_sampler or self._loader.sampler
        return digest_of(list(islice(sampler, 64)))

    # ---- looking

    def _draws(self) -> tuple[str, ...]:
        seed_generators(0)
        before = saved_generators()
        samples = self._samples(seeded=False)
        self._collate(samples)
        pairs = zip(GENERATORS, before)
        return tuple(generator.name for generator, was in pairs if generator.save() != was)

    def _own_generators(self) -> tuple[str, ...]:
        held = {
            name: thing for name, thing in reachable(self._roots) if isinstance(thing, Generators)
        }
        if not held:
            return ()
        if self._is_stream:
            return self._drawn_from(held)
        found = [name for name, thing in held.items() if self._is_cause({name: thing})]
        if not found and self._is_cause(held):
            return self._drawn_from(held)
        return tuple(found[:_MOST_NAMED])

    def _is_cause(self, generators: dict[str, Any]) -> bool:
        """Whether a sample read twice is the same if these are restored in between."""
        index = self._probe.samples[:1]
        states = {name: generator_state(thing) for name, thing in generators.items()}
        first = [digest_of(sample) for sample in self._samples(index)]
        for name, thing in generators.items():
            restore_generator(thing, states[name])
        second = [digest_of(sample) for sample in self._samples(index)]
        third = [digest_of(sample) for sample in self._samples(index)]
        return first == second and second != third

    def _drawn_from(self, generators: dict[str, Any]) -> tuple[str, ...]:
        before = {name: pickle.dumps(_plain(thing)) for name, thing in generators.items()}
        self._samples()
        after = {name: pickle.dumps(_plain(thing)) for name, thing in generators.items()}
        return tuple(name for name in before if before[name] != after[name])[:_MOST_NAMED]

    def _files(self) -> tuple[str, ...]:
        names = [name for name, thing in reachable(self._roots) if is_open_file(thing)]
        return tuple(names[:_MOST_NAMED])

    def _changes(self) -> tuple[tuple[str, ...], ...]:
        before = snapshot(self._roots)
        self._collate(self._samples())
        after = snapshot(self._roots)
        names = [name for name, token in before.items() if after.get(name) != token]
        names = names or [name for name in after if name not in before]
        things = dict(reachable(self._roots))
        kinds = (dict, list, set, tuple)
        grown = [
            name
            for name in names
            if isinstance(things.get(name), kinds) or hasattr(things.get(name), "cache_info")
        ]
        arrays = [name for name in names if np.ndim(_array(things.get(name)))]
        return tuple(tuple(some[:_MOST_NAMED]) for some in (names, grown, arrays))

    # ---- forks

    def _in_fork(self, experiment: Callable[[], Any]) -> Any:
        """The result of an experiment in a fork of this process; None if it fails or hangs."""
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(_SECONDS_AN_EXPERIMENT)
                renew_server()
                result = pickle.dumps(experiment())
                with os.fdopen(writes, "wb") as pipe:
                    pipe.write(result)
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads, "rb") as pipe:
            result = pipe.read()
        os.waitpid(pid, 0)
        return pickle.loads(result) if result else None


def _array(thing: Any) -> Any:
    return thing if isinstance(thing, torch.Tensor | np.ndarray) else 0


def _plain(generator: Any) -> Any:
    state = generator_state(generator)
    return state.numpy() if hasattr(state, "numpy") else state
