"""Probes: experiments on a loader in a process of its own, to find out why it is not exact.

Each experiment reads the same samples in a fork of the process in which the loader was made, so
that all of them begin with the very same objects. As DataPorter does, the global generators are
seeded before each sample, so that what still differs has another cause.
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
from dataporter.seeding.generators import global_state, seed_generators
from dataporter.seeding.hashing import sample_key
from dataporter.seeding.samples import reading
from dataporter.tools.target import in_one_line
from dataporter.tools.verification.digest import digest_of
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.randomness import fix
from dataporter.tools.verification.reachable import (
    Generators,
    generator_state,
    is_open_file,
    put_back,
    reachable,
    snapshot,
)
from dataporter.tools.verification.setting import Setting, loader_for

__all__ = ["Found", "Probe", "carry_out"]

_SECONDS_AN_EXPERIMENT = 20
# Clocks go on between two experiments.
_PAUSE = 0.003
_MOST_NAMED = 4
_GENERATORS = ("Python's random", "numpy.random", "torch's default generator")

Digests = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """What to find out, in one process.

    Attributes:
        factory: the loader.
        samples: which samples to read, of a dataset with an index; of a stream, how many.
        fixed: sources of chance that are taken away, see ``randomness.py``.
        whole: carry all experiments out, and not only the two that begin alike.
    """

    factory: Factory
    samples: tuple[Any, ...]
    fixed: tuple[str, ...] = ()
    whole: bool = True


@dataclass(slots=True)
class Found:
    """What a probe has found; an experiment that failed is not in it.

    Attributes:
        digests: of the samples read, by experiment, one for each; the last one is of the batch.
        draws: the global generators that reading draws from.
        generators: the dataset's own ones without which reading twice gives the same.
        changed: what reading changes about the dataset, by name.
        containers: those of them that grow.
        arrays: those of them that are tensors or arrays of many numbers.
        files: open files of the dataset's.
        has_init: whether there is a ``worker_init_fn``.
        order: a digest of the first indices, where a sampler of the user's own gives them.
        error: why nothing was found.
    """

    digests: dict[str, Digests] = field(default_factory=dict)
    draws: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    has_init: bool = False
    order: bytes | None = None
    error: str | None = None


def carry_out(probe: Probe) -> Found:
    """Carry the experiments of a probe out."""
    for source in probe.fixed:
        fix(source)
    try:
        return _Experiments(probe).carry_out()
    except (Exception, SystemExit) as error:
        return Found(error=in_one_line(error))


class _Experiments:
    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        loader = loader_for(probe.factory.load(), Setting(num_workers=0))
        self._loader = loader
        flow = getattr(loader, "_flow", None)
        self._data: Any = getattr(flow, "rows", getattr(loader, "dataset", None))
        if self._data is None:
            raise ValueError(f"a {type(loader).__name__} has no dataset to look at")
        self._is_stream = isinstance(self._data, IterableDataset)
        self._collate = getattr(loader, "collate_fn", None) or (lambda samples: samples)
        if isinstance(loader, DataLoader) and loader.batch_sampler is None and not self._is_stream:
            self._collate = list  # samples are handed out one by one
        self._init = getattr(loader, "worker_init_fn", None)
        self._roots = {
            "dataset": getattr(loader, "dataset", None),
            "collate_fn": getattr(loader, "collate_fn", None),
        }

    def carry_out(self) -> Found:
        found = Found(has_init=self._init is not None, order=self._in_fork(self._order))
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
        known = {index: place for place, index in enumerate(self._probe.samples)}
        positions = np.arange(len(self._probe.samples), dtype=np.int64)
        samples = []
        stream = iter(self._data) if self._is_stream else None
        with reading(1, 0, positions) as current:
            for index in wanted:
                place = known[index]
                if seeded:
                    seed_generators(sample_key(1, 0, place))
                    current.generators.pop(place, None)
                current.offset = place
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
        # A loader with the same arguments, so that "workers" is all that is new.
        become_worker(number, 2, number, getattr(self._loader, "dataset", None))
        return tuple(map(digest_of, self._samples()))

    def _read_after_init(self) -> Digests:
        assert self._init is not None
        become_worker(0, 2, 0, getattr(self._loader, "dataset", None))
        assert get_worker_info() is not None
        seed_generators(0)
        self._init(0)
        # Unseeded where the loader does not seed either: then it counts what it has seeded.
        seeded = isinstance(self._loader, ResumableDataLoader)
        return tuple(map(digest_of, self._samples(seeded=seeded)))

    def _read_after_others(self) -> Digests:
        """The batch of all samples but the last, by itself and after batches of the others."""
        samples = self._samples()
        collated = self._in_fork(lambda: self._collated(samples[:1]))
        for place in range(1, len(samples)):
            self._collated(samples[place : place + 1])
        self._collated(samples)
        return (collated or b"", self._collated(samples[:1]))

    def _order(self) -> bytes | None:
        if self._is_stream or not isinstance(self._loader, DataLoader):
            return None
        if isinstance(self._loader, ResumableDataLoader) and self._loader.order is not None:
            return None
        if isinstance(self._loader, ResumableDataLoader):
            seed_generators(0)  # as it does itself; what seeds another's is part of the question
        sampler: Any = self._loader.batch_sampler or self._loader.sampler
        return digest_of(list(islice(sampler, 64)))

    # ---- looking

    def _draws(self) -> tuple[str, ...]:
        seed_generators(0)
        before = global_state()
        samples = self._samples(seeded=False)
        self._collate(samples)
        pairs = zip(_GENERATORS, before, global_state())
        return tuple(name for name, was, now in pairs if was != now)

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
        """Whether a sample read twice is the same when these are put back in between."""
        index = self._probe.samples[:1]
        states = {name: generator_state(thing) for name, thing in generators.items()}
        first = [digest_of(sample) for sample in self._samples(index)]
        for name, thing in generators.items():
            put_back(thing, states[name])
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
        """What an experiment gives in a fork of this process; None where it fails or hangs."""
        reads, writes = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(_SECONDS_AN_EXPERIMENT)
                given = pickle.dumps(experiment())
                with os.fdopen(writes, "wb") as pipe:
                    pipe.write(given)
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads, "rb") as pipe:
            given = pipe.read()
        os.waitpid(pid, 0)
        return pickle.loads(given) if given else None


def _array(thing: Any) -> Any:
    return thing if isinstance(thing, torch.Tensor | np.ndarray) else 0


def _plain(generator: Any) -> Any:
    state = generator_state(generator)
    return state.numpy() if hasattr(state, "numpy") else state
