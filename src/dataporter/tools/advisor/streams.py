"""Streams: reads the first samples of a stream, which keeps its place and state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from dataporter.engines import InlineEngine
from dataporter.errors import add_note
from dataporter.fetch.collate import collate_of
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.rebuild import rebuilt
from dataporter.schedule.snapshot import keeps_state

__all__ = ["Unmoved", "batches_of_loader", "batches_of_stream", "unmoved"]

# Larger arrays are data rather than a place, and a copy of them may not fit into memory.
_MOST_BYTES_COPIED = 1 << 20
_MOST_PARTS = 10_000

# Batches with their number of samples, and how many samples were left out of each.
Counted = Iterator[tuple[Any, int, int]]


class Unmoved:
    """A stream to read in the place of another.

    Attributes:
        stream: the stream to read.
        may_move: whether reading it may move the other one.
    """

    def __init__(self, stream: Any, *, may_move: bool) -> None:
        self.stream = stream
        self.may_move = may_move


@contextmanager
def unmoved(stream: Any) -> Iterator[Unmoved]:
    """A copy of a stream; else the stream itself, whose state is restored if it has one."""
    try:
        copied = copy.deepcopy(stream, {id(array): array for array in _large_arrays(stream)})
    except Exception:  # whatever the user's classes raise
        copied = None
    if copied is not None:
        yield Unmoved(copied, may_move=False)
        return
    try:
        state = copy.deepcopy(stream.state_dict()) if keeps_state(stream) else None
    except Exception:  # it is no state in our sense, such as one that needs arguments
        state = None
    try:
        yield Unmoved(stream, may_move=state is None)
    finally:
        if state is not None:
            stream.load_state_dict(state)


def batches_of_loader(loader: ResumableDataLoader[Any], stream: Any, samples: int) -> Counted:
    """The first batches that a loader makes of a stream, read in this process.

    Args:
        stream: the loader's, or a copy.
        samples: the batches have no more samples than this in all.
    """
    size = loader.batch_size
    # Of one rank, which needs no other and no seed: all that is read is the same.
    fresh = rebuilt(
        loader,
        dataset=stream,
        batch_size=size if size is None else min(size, samples),
        num_workers=0,
        rank=0,
        world_size=1,
        seed=0,
        steps_per_epoch=None,
        failures=None,
        max_failures=None,
    )
    setup, batched = fresh.setup, fresh.batch_sampler is not None
    collate: Callable[[Any], Any] = loader.collate_fn
    if batched and collate is default_collate:
        collate = collate_of(stream)
    fetch = setup.fetch(
        lambda read: (collate(read), len(read) if batched else 1),
        batched=batched,
        seeds_each="nothing",
        **setup.reacting(loader.on_error),
    )
    requests = setup.schedule.requests(setup.beginning(0), 0)
    replies = InlineEngine(lambda: fetch, lambda batch: batch).start(requests, None)
    for reply in requests.batches(replies):
        if reply.failure is not None:
            raise reply.failure
        assert reply.fetched is not None
        batch, count = reply.fetched.batch
        left_out = len(reply.fetched.failures) if loader.on_error == "skip" else 0
        yield batch, count, left_out


def batches_of_stream(
    stream: Any, samples: int, size: int, collate: Callable[[Any], Any]
) -> Counted:
    """The first batches of a stream, as torch makes them, of no more samples in all."""
    taken, samples_read = 0, iter(stream)
    while taken < samples:
        read: list[Any] = []
        try:
            read.extend(islice(samples_read, min(size, samples - taken)))
        except Exception as error:
            add_note(error, f"while reading the sample after the first {taken + len(read)}")
            raise
        if not read:
            return
        try:
            batch = collate(read)
        except Exception as error:
            add_note(error, f"while collating {len(read)} samples from number {taken} on")
            raise
        taken += len(read)
        yield batch, len(read), 0


def _large_arrays(stream: Any) -> Iterator[Any]:
    """The large tensors and arrays that a stream holds, in whatever attributes and containers."""
    waiting, seen = [stream], set[int]()
    while waiting and len(seen) < _MOST_PARTS:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor | np.ndarray):
            if part.nbytes > _MOST_BYTES_COPIED:
                yield part
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        else:
            held = getattr(part, "__dict__", None)
            waiting += held.values() if isinstance(held, dict) else ()
