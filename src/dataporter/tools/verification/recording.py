"""A recording: all that a loader delivers in a separate process, and how it is recorded."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataporter.errors import ConfigurationError, DataPorterError, StateMismatchError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.tools.target import in_one_line
from dataporter.tools.verification.digest import Leaf, leaves_of
from dataporter.tools.verification.factory import (
    CannotVaryError,
    Factory,
    Setting,
    facts_of,
    is_stateful,
)
from dataporter.tools.verification.imports import Imports, watched

__all__ = ["Event", "Job", "Recording", "last_saved", "record", "state_file", "write"]

# After so many empty passes in a row the loader has nothing left to deliver.
_MOST_EMPTY_PASSES = 2
# A kill comes at a random moment of so many steps, each of which takes as long as training would.
_MOST_PAUSES = 8
_PAUSE = 0.004
_WARNINGS_KEPT = 5
# Of batches, so that a difference can be shown.
_MOST_BYTES_KEPT = 16 << 20
_MOST_STEPS_WALKED = 500
_MOST_OF_NEXT_EPOCH = 50
# So many are recorded beyond the time limit, to have a middle, unless each takes very long.
_FEWEST_EVENTS = 4
_TIMES_LONGER = 8


@dataclass(frozen=True, slots=True)
class Job:
    """How to run a loader in a separate process, and what to record.

    Attributes:
        factory, setting: of the loader.
        events: number of batches and ends of passes to record; None: as ``steps`` says.
        steps: number of batches to record; None: an epoch and part of the next.
        state: file of the state to resume from; None: start from the beginning.
        replay: number of events to discard first, for a loader without a state.
        seek: step of the first epoch at which to begin; None: at the state.
        save: numbers of events after which to save the state.
        states: directory of the saved states.
        is_reference: list the libraries that the loader imports; and if it is this package's, save
            its state before the first batch, so that runs in other settings get the same seed.
        kill_after: number of events after which SIGKILL ends the process at a random moment; the
            state is saved after each further event.
        kill_worker_after: number of events after which SIGKILL ends a worker.
        seconds: time after the first event after which no further one is recorded; 0: no limit.
        store: file through which the ranks of a process group find each other.
    """

    factory: Factory
    setting: Setting
    events: int | None = None
    steps: int | None = None
    state: str | None = None
    replay: int = 0
    seek: int | None = None
    save: tuple[int, ...] = ()
    states: str | None = None
    is_reference: bool = False
    kill_after: int | None = None
    kill_worker_after: int | None = None
    seconds: float = 0.0
    store: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A batch that was delivered, or the end of a pass (which has no leaves).

    Attributes:
        epoch, step: of the batch; at the end of a pass, of the batch that does not exist.
        leaves: of the batch.
        indices: of its samples; None: the loader does not know them.
        repeats: for each sample, whether it is a repeat added as padding.
        is_end: whether this is the end of a pass.
    """

    epoch: int
    step: int
    leaves: tuple[Leaf, ...] = ()
    indices: tuple[Any, ...] | None = None
    repeats: tuple[bool, ...] = ()
    is_end: bool = False


@dataclass(slots=True)
class Recording:
    """The result of a job.

    Attributes:
        events: the batches and ends of passes that the loader delivered.
        error: why it ended early, in one line.
        stopped: whether it ended early for lack of time.
        imports: modules that it imported, if it is the reference and its workers are forks.
        refused: whether ``error`` says that the state of a custom sampler cannot be resumed.
        varied: False: the loader cannot have this setting, as ``error`` says.
        facts: about the loader: class, strategy, length, workers.
        state_seconds: duration of each ``state_dict()``.
        state_bytes: size of the largest state as ``torch.save`` writes it.
        resume_seconds: from before ``load_state_dict`` to the first batch.
        warnings: those that the loader gave.
    """

    events: list[Event] = field(default_factory=list)
    error: str | None = None
    stopped: bool = False
    imports: Imports = field(default_factory=Imports)
    refused: bool = False
    varied: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    state_seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    resume_seconds: float | None = None
    warnings: list[str] = field(default_factory=list)


def state_file(directory: str | Path, after: int) -> Path:
    """The file of the state that was saved after so many events."""
    return Path(directory) / f"state-{after}.pt"


def last_saved(directory: str | Path, *, default: int) -> int:
    """Number of events before the last state in a directory."""
    saved = [int(path.stem.partition("-")[2]) for path in Path(directory).glob("state-*.pt")]
    return max(saved, default=default)


def record(job: Job) -> Recording:
    """Run the loader of a job, and record what it delivers.

    An exception of the loader ends the recording and is part of it.
    """
    recording = Recording()
    imports = Imports()
    watching = watched(job.factory, imports) if job.is_reference else nullcontext()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            with watching:
                _record(job, recording)
        except CannotVaryError as error:
            recording.varied, recording.error = False, in_one_line(error)
        except (Exception, SystemExit) as error:
            recording.error = in_one_line(error)
            # What a custom sampler yields is the user's; any other mismatch is between processes.
            is_mismatch = isinstance(error, StateMismatchError)
            recording.refused = is_mismatch and bool(recording.facts.get("own_sampler"))
    if recording.facts.get("forks"):
        recording.imports = imports
    texts = dict.fromkeys(" ".join(str(one.message).split()) for one in caught)
    recording.warnings = list(texts)[:_WARNINGS_KEPT]
    return recording


def _record(job: Job, recording: Recording) -> None:
    if job.store is not None:
        _join_ranks(job)
        loader = job.factory.loader(Setting(strategy=job.setting.strategy))
    else:
        loader = job.factory.loader(job.setting)
    if not hasattr(loader, "__iter__"):
        raise ConfigurationError(
            f"{job.factory.name} returned a {type(loader).__name__}: expected a loader, which is "
            "an iterable of batches"
        )
    recording.facts = facts_of(loader)
    begun = time.perf_counter()
    if job.state is not None:
        loader.load_state_dict(torch.load(job.state, weights_only=True))
    if job.seek is not None:
        loader.seek(step=job.seek)
    others = set(multiprocessing.active_children())
    events = _events(loader, resumed=job.state is not None)
    for _ in range(job.replay):
        next(events, None)
    started = time.monotonic()
    enough = _Enough(job)
    kept = 0
    if 0 in job.save or (job.is_reference and recording.facts["ours"]):
        _save_state(loader, job, 0, recording)
    for count, (event, batch) in enumerate(events, 1):
        if count == 1 and not event.is_end:
            recording.resume_seconds = time.perf_counter() - begun
        leaves = () if event.is_end else tuple(leaves_of(batch))
        size = sum(_size_of(leaf) for leaf in leaves)
        if kept + size > _MOST_BYTES_KEPT:
            leaves = tuple(leaf.without_value() for leaf in leaves)
        else:
            kept += size
        if not event.is_end:
            event = _described(event, leaves, loader)
        recording.events.append(event)
        if count == 1:
            # The first batch may wait for imports, workers and caches, which come once.
            started = time.monotonic()
        _draw_as_training_does()
        if count in job.save or (job.kill_after is not None and count >= job.kill_after):
            _save_state(loader, job, count, recording)
        if job.kill_after is not None and count >= job.kill_after:
            if count == job.kill_after:
                left = (job.events or 0) - count - 1
                _kill_soon(_PAUSE * min(left, _MOST_PAUSES))
            time.sleep(_PAUSE)
        if count == job.kill_worker_after:
            _kill_a_worker(others)
        if enough.is_reached(event):
            break
        late = time.monotonic() - started
        if job.seconds and late > job.seconds * (1 if count >= _FEWEST_EVENTS else _TIMES_LONGER):
            recording.stopped = True
            break
    if recording.facts["ours"]:
        recording.facts["seed"] = loader.seed
    if job.kill_after is not None:
        os.kill(os.getpid(), signal.SIGKILL)


class _Enough:
    """Whether all events that the job asks for are recorded."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._count = self._batches = 0
        self._epoch: int | None = None  # number of batches in the first epoch

    def is_reached(self, event: Event) -> bool:
        self._count += 1
        self._batches += not event.is_end
        if event.is_end and self._epoch is None:
            self._epoch = self._batches
        if self._job.events is not None:
            return self._count >= self._job.events
        if self._job.steps is not None:
            return self._batches >= self._job.steps
        if self._epoch is None:
            return False
        more = min(_MOST_OF_NEXT_EPOCH, max(2, self._epoch // 4))
        return self._batches - self._epoch >= more


def _events(loader: Any, *, resumed: bool) -> Iterator[tuple[Event, Any]]:
    """Batches and ends of passes, over as many passes as there are."""
    # The first pass from a state may have nothing left.
    empty, passes = -1 if resumed else 0, 0
    knows_step = isinstance(loader, ResumableDataLoader)
    while empty < _MOST_EMPTY_PASSES:
        step = 0
        for batch in loader:
            at = (loader.epoch, loader.step - 1) if knows_step else (passes, step)
            yield Event(at[0], at[1]), batch
            step += 1
        at = (loader.epoch, loader.step) if knows_step else (passes, step)
        yield Event(at[0], at[1], is_end=True), None
        passes += 1
        empty = 0 if step else empty + 1


def _described(event: Event, leaves: tuple[Leaf, ...], loader: Any) -> Event:
    indices: tuple[Any, ...] | None = None
    repeats: tuple[bool, ...] = ()
    is_indexed = isinstance(loader, ResumableDataLoader) and loader.setup.stream is None
    # Each look-up walks a custom sampler up to the step.
    if is_indexed and (loader.order is not None or event.step < _MOST_STEPS_WALKED):
        try:
            held = loader.samples_at(event.epoch, event.step)
        except DataPorterError:
            if loader.order is not None:
                raise
            # A custom sampler that keeps its place on itself cannot be looked at within a pass.
            return Event(event.epoch, event.step, leaves)
        plain = held.tolist() if isinstance(held, np.ndarray) else held
        indices = tuple(one if isinstance(one, int | str) else repr(one) for one in plain)
        if loader.world_size > 1 and loader.order is not None:
            repeats = tuple(loader.padding(event.step).tolist())
    return Event(event.epoch, event.step, leaves, indices, repeats)


def _size_of(leaf: Leaf) -> int:
    value = leaf.value
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    return 0 if value is None else len(value) if isinstance(value, str | bytes) else 8


def _draw_as_training_does() -> None:
    """Draw from the global generators between two batches, as dropout does."""
    random.random()
    np.random.random()
    torch.rand(1)


def _save_state(loader: Any, job: Job, count: int, recording: Recording) -> None:
    if job.states is None or not is_stateful(loader):
        return
    begun = time.perf_counter()
    state = loader.state_dict()
    recording.state_seconds.append(time.perf_counter() - begun)
    path = state_file(job.states, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    torch.save(state, written)
    recording.state_bytes = max(recording.state_bytes, written.stat().st_size)
    # A kill leaves the whole file or none.
    os.replace(written, path)


def _kill_soon(within: float) -> None:
    """Kill this process from a thread, in the middle of whatever it does then."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # A loader may save the state of the global generator, so this draws from another.
    timer = threading.Timer(random.SystemRandom().random() * within, kill)
    timer.daemon = True
    timer.start()


def _kill_a_worker(others: set[Any]) -> None:
    """Kill a child that is not one of these, which are the dataset's: a manager's, for example."""
    children = [child for child in multiprocessing.active_children() if child not in others]
    pids = [child.pid for child in children if child.pid is not None]
    if pids:
        os.kill(pids[0], signal.SIGKILL)


def _join_ranks(job: Job) -> None:
    import datetime

    import torch.distributed as dist

    setting = job.setting
    assert setting.rank is not None
    assert setting.world_size is not None
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.store}",
        rank=setting.rank,
        world_size=setting.world_size,
        timeout=datetime.timedelta(seconds=60),
    )


def write(result: Any, path: Path) -> None:
    """Write the result of a task, whole or not at all."""
    written = path.with_suffix(f".{os.getpid()}")
    with written.open("wb") as file:
        pickle.dump(result, file, protocol=pickle.HIGHEST_PROTOCOL)
    os.replace(written, path)
