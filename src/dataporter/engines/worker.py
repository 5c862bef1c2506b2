"""The loop of a worker process: requests come in, batches go out through the ring."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any

import numpy as np
import torch

from dataporter._torch import become_worker, is_observed, numpy_seed, stack_with
from dataporter.engines.channel import CAN_SEND_MEMORY, Channel
from dataporter.engines.messages import STARTED, WAKE, Answer, Failure, Task, unpacked
from dataporter.engines.packing import Packer, packed_whole
from dataporter.engines.permits import Permits
from dataporter.engines.placing import Placing, stacked
from dataporter.engines.ring import Slot, WorkerSlots
from dataporter.engines.starting import Parcel
from dataporter.engines.tasks import Tasks
from dataporter.errors import TooManyOpenFilesError, add_note
from dataporter.fetch.fetch import Fetch
from dataporter.schedule.request import EngineRequest
from dataporter.seeding.seeded import notice_of_seeding

__all__ = ["WorkerSpec", "run"]

_CHECKS_PARENT_EVERY = 1.0  # s


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The arguments of a worker process.

    Attributes:
        build_fetch: builds the fetch. Called after ``worker_init_fn``, with ``whole=``: the context
            to enter while a batch is made as a whole, and ``empty=``: the function that creates
            tensors for converted values, in the slot if possible.
        dataset: the value of ``get_worker_info().dataset``.
        worker_init_fn: called with the worker's number.
        num_workers: how many workers there are.
        base_seed: worker i's generators start from ``base_seed + i``, as in torch. Each fetch seeds
            them again, so only draws of ``worker_init_fn`` depend on it. Where that seeds them, the
            first worker's first answer says so.
    """

    build_fetch: Callable[..., Fetch]
    dataset: Any
    worker_init_fn: Callable[[int], None] | None
    num_workers: int
    base_seed: int


def run(
    parcel: Parcel[WorkerSpec],
    worker_id: int,
    channel: Channel,
    permits: Permits | None,
    close_others: Sequence[Callable[[], None]],
    blocked: frozenset[int],
) -> None:
    """Serve requests until the training process closes the channel.

    Args:
        parcel: the arguments that all workers share.
        worker_id: the worker's number.
        channel: to the training process.
        permits: what it takes before it begins a request; None if none is ever withdrawn.
        close_others: close ends of other channels, which a fork has copied.
        blocked: signals that the training process blocks, beside those blocked for this start.
    """
    # Ctrl-C reaches the whole foreground group; the training process decides how to react.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The training's handlers (save, raise) must not run here, although a fork inherits them and a
    # cluster may send a signal to all processes of a job.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            # Not SIG_IGN, which programs that a dataset starts would inherit.
            signal.signal(number, _do_nothing)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for close in close_others:
        close()
    # Objects from before a fork lie in pages that both processes share until one writes to them,
    # which the garbage collector would do when it looks for cycles.
    gc.freeze()
    _end_with_training()
    worker = _Worker(WorkerSlots() if CAN_SEND_MEMORY else None)
    fetch = _begin(parcel, worker_id, worker)
    tasks = Tasks(permits)
    with contextlib.suppress(EOFError, ConnectionError):
        channel.send(pickle.dumps(Answer(STARTED)))
        while True:
            for message in channel.receive(wait=not tasks.is_ready()):
                if message == WAKE:
                    channel.expect()
                    continue
                received = unpacked(message)
                if isinstance(received, Task):
                    worker.release(received)
                tasks.receive(received)
            if (task := tasks.begin()) is not None:
                worker.answer(task, fetch, channel)


def _do_nothing(*_: object) -> None:
    """Handle a signal."""


def _begin(parcel: Parcel[WorkerSpec], worker_id: int, worker: _Worker) -> Fetch:
    torch.set_num_threads(1)
    try:
        spec = parcel.opened()
        seed = spec.base_seed + worker_id
        random.seed(seed)
        torch.manual_seed(seed)
        np.random.seed(numpy_seed(spec.base_seed, worker_id))
        become_worker(worker_id, spec.num_workers, seed, spec.dataset)
        worker.torchs_stack = stack_with(worker.stack)
        if spec.worker_init_fn is not None:
            notice = notice_of_seeding(spec.worker_init_fn, worker_id)
            worker.notice = notice if worker_id == 0 else None
        return spec.build_fetch(whole=worker.placing, empty=worker.placing.empty)
    except BaseException as error:
        add_note(error, f"while worker {worker_id} was starting")
        return _FailedStart(error)


class _FailedStart:
    """Answers each request with the exception that kept the worker from starting."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self._traceback = error.__traceback__

    def __call__(self, request: EngineRequest) -> Any:
        # Without the frames of earlier requests.
        raise self._error.with_traceback(self._traceback)


class _Worker:
    """Makes batches and writes them to slots; without slots, to messages."""

    def __init__(self, slots: WorkerSlots | None) -> None:
        self._slots = slots
        self.placing = Placing()
        self._usual_size = 0  # bytes, of the last batch
        self.notice: str | None = None  # for the next answer
        self.torchs_stack: Callable[..., torch.Tensor] | None = None

    def release(self, task: Task) -> None:
        if self._slots is not None:
            self._slots.release(task.reusable, task.spent)

    def answer(self, task: Task, fetch: Fetch, channel: Channel) -> None:
        slots, slot = self._slots, None
        if slots is None:
            answer = _packed_whole(task, fetch)._replace(
                notice=self.notice, is_observed=is_observed()
            )
            self.notice = None
            channel.send(pickle.dumps(answer))
            return
        try:
            packer, slot = self._packed(task.request, fetch, slots)
            answer = Answer(task.ticket, packer.message)
        except BaseException as error:  # sys.exit() too: raised in the training, as without workers
            answer = Answer(task.ticket, failure=Failure.from_exception(error))
        descriptors: tuple[int, ...] = ()
        if slot is not None:
            slots.send(slot)
            descriptors = () if slot.descriptor is None else (slot.descriptor,)
            answer = answer._replace(slot=slot.number, size=packer.size, is_new=bool(descriptors))
        answer = answer._replace(
            given_up=slots.given_up(), notice=self.notice, is_observed=is_observed()
        )
        self.notice = None
        try:
            channel.send(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL), descriptors)
        except TooManyOpenFilesError as error:
            assert slot is not None
            slots.take_back(slot)
            failure = Failure.from_exception(error)
            answer = answer._replace(packed=b"", slot=None, size=0, is_new=False, failure=failure)
            channel.send(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
            return
        if slot is not None:
            slots.forget_descriptor(slot)

    def _packed(
        self, request: EngineRequest, fetch: Fetch, slots: WorkerSlots
    ) -> tuple[Packer, Slot | None]:
        """A batch, and its slot if a part of it lies in one."""
        slot = slots.take(self._usual_size)
        try:
            packer = self._made(request, fetch, slot)
            target = self._written(packer, slot, slots) if packer.size else None
        except BaseException as error:
            if slot is not None:
                slots.put_back(slot)
            # torch resizes only memory that it has allocated: make the batch again in that.
            if _is_about_resizing(error) and self.placing.switch_off():
                return self._packed(request, fetch, slots)
            raise
        if slot is not None and target is None:
            slots.put_back(slot)
        elif slot is not None and target is not slot:
            slots.give_up(slot)
        self._usual_size = packer.size or self._usual_size
        return packer, target

    def _written(self, packer: Packer, slot: Slot | None, slots: WorkerSlots) -> Slot:
        """Write the batch to this slot, or to another if it is missing, too small or held."""
        if slot is None or packer.size > slot.size:
            larger = slots.make(packer.size)
            packer.write(larger, moved=True)
            return larger
        packer.write(slot, moved=False)
        if not slot.is_held:
            return slot
        # The dataset keeps a tensor in the slot, and may write to it while the training reads it.
        self.placing.avoid_slots()
        other = slots.make(packer.size)
        ctypes.memmove(other.address, slot.address, packer.size)
        return other

    def _made(self, request: EngineRequest, fetch: Fetch, slot: Slot | None) -> Packer:
        placing = self.placing
        arena = placing.begin(slot)
        try:
            packer = Packer(tuple(fetch(request)), arena)
        finally:
            placing.end()
        placing.learn(packer.size, packer.wasted)
        return packer

    def stack(self, samples: Sequence[torch.Tensor], *, collate_fn_map: Any = None) -> torch.Tensor:
        """``torch.stack``, directly into the slot if that changes nothing about the result."""
        first = samples[0]
        if first.layout is not torch.strided or first.is_nested:
            assert self.torchs_stack is not None
            return self.torchs_stack(samples, collate_fn_map=collate_fn_map)
        arena = self.placing.arena
        out = None if arena is None else stacked(arena, samples)
        return torch.stack(tuple(samples)) if out is None else out


def _is_about_resizing(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "resizable" in repr(error.args)


def _packed_whole(task: Task, fetch: Fetch) -> Answer:
    """The answer if memory cannot be shared: the message holds the whole batch."""
    try:
        return Answer(task.ticket, packed_whole(tuple(fetch(task.request))))
    except BaseException as error:
        return Answer(task.ticket, failure=Failure.from_exception(error))


def _end_with_training() -> None:
    """Exit soon after the training process has ended, even in the middle of a fetch."""
    # Under fork, later workers also hold the pipe that shows the training's end; under forkserver,
    # the parent process is the server. So check both.
    parent, training = os.getppid(), parent_process()

    def look() -> None:
        while os.getppid() == parent and (training is None or training.is_alive()):
            time.sleep(_CHECKS_PARENT_EVERY)
        os._exit(1)

    threading.Thread(target=look, name="dataporter-parent", daemon=True).start()
