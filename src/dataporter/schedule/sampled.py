"""The schedule of a custom sampler: its indices are walked through, not jumped to."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from dataporter.errors import ConfigurationError
from dataporter.schedule.progress import Delivered, Progress
from dataporter.schedule.request import Request, Scheduled
from dataporter.schedule.sampler_epochs import SamplerEpochs, parts_of_sampler
from dataporter.schedule.schedule import Requests
from dataporter.seeding.generators import isolated_generators, seed_generators
from dataporter.seeding.hashing import STREAM_SAMPLER, fold

__all__ = ["SampledSchedule"]


class SampledSchedule:
    """A custom sampler's requests, made a function of (seed, epoch) as far as that is possible.

    Before each batch of indices the global generators are seeded, and restored afterwards. At the
    start of an epoch ``set_epoch`` is called on the sampler (and on what it wraps in an attribute
    ``sampler``), and its ``generator`` is reset to its state at construction (epoch 0) or seeded
    (later ones). A sampler may keep other random state, so a digest of all indices goes into the
    state, and a resume on other indices is refused.

    Args:
        sampler: yields a batch of indices at a time, or single indices (``batched=False``).
        rank, world_size: the share of each global batch that the sampler gives. They only count
            positions and keep the ranks' random augmentations apart.
    """

    def __init__(
        self, sampler: Iterable[Any], *, batched: bool, rank: int, world_size: int
    ) -> None:
        self._sampler = sampler
        self._batched = batched
        self._rank = rank
        self._world_size = world_size
        parts = parts_of_sampler(sampler)
        self.epochs = SamplerEpochs(parts)
        self._generators = [
            (generator, generator.get_state())
            for part in parts
            if isinstance(generator := getattr(part, "generator", None), Generator)
        ]

    def requests(self, progress: Progress, seed: int) -> Requests:
        return Requests(self, progress, seed)

    def scheduled(self, progress: Progress, seed: int) -> Iterator[Scheduled]:
        """The requests themselves: the sampler is walked through up to the progress."""
        done, walk = progress.done, self._walk(progress.epoch, seed)
        if not done:
            # By the step, since a batch sampler may give an empty batch, which moves no position.
            yield from islice(walk, progress.step, None)
            return
        for scheduled in walk:
            start, stop, _ = scheduled.delivers[0]
            if stop > progress.position and not any(a <= start and stop <= b for a, b in done):
                yield scheduled

    def ahead(self, epoch: int, seed: int) -> None:
        # A sampler has one position, which a walk through a later epoch would lose.
        return None

    def steps(self, progress: Progress) -> int:
        return max(0, len(self._sampler) - progress.step)  # type: ignore[arg-type]  # Sized or a TypeError, as in torch

    def epoch_steps(self) -> int:
        return self.steps(Progress())

    def check(self, epoch: int, step: int) -> None:
        """A custom sampler has to be walked through to see where it ends."""

    def progress_at(self, epoch: int, step: int, seed: int) -> Progress:
        if step == 0:
            return Progress(epoch)
        delivered = self._scheduled_at(epoch, step - 1, seed).delivers[0]
        return Progress(epoch, step, delivered.stop, (), delivered.digest)

    def samples_at(self, origin: Progress, step: int, seed: int) -> list[Any]:
        request: Any = self._scheduled_at(origin.epoch, step, seed).request
        return list(request.indices)

    def padding(self, origin: Progress, step: int) -> NDArray[np.bool_]:
        raise ConfigurationError(
            f"padding() is unknown for a custom sampler (a {type(self._sampler).__name__}): it "
            "decides which samples are repeated; use order= or shuffle= to have the loader shard"
        )

    def within(self, progress: Progress) -> Progress:
        return progress

    def counted_at(self, progress: Progress, seed: int) -> tuple[int, int]:
        step, position, digest = 0, 0, 0
        with self._undisturbed():
            for scheduled in self._walk(progress.epoch, seed):
                delivered = scheduled.delivers[0]
                # Empty batches move no position, so the step says how many of them are done.
                if delivered.stop > progress.position or (
                    delivered.stop == position and step >= progress.step
                ):
                    break
                step, position, digest = step + 1, delivered.stop, delivered.digest
        if progress.early:
            step = progress.step
        return (step if position == progress.position else -1), digest

    def _scheduled_at(self, epoch: int, step: int, seed: int) -> Scheduled:
        with self._undisturbed():
            scheduled = next(islice(self._walk(epoch, seed), step, None), None)
        if scheduled is None:
            raise ConfigurationError(
                f"step {step} of epoch {epoch}: the sampler {type(self._sampler).__name__} ends "
                "before it; the last step is one less than len(loader)"
            )
        return scheduled

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Walk through the sampler without disturbing an iteration of it that is under way."""
        epochs = self.epochs.saved()
        states = [generator.get_state() for generator, _ in self._generators]
        try:
            yield
        finally:
            self.epochs.restore(epochs)
            for (generator, _), state in zip(self._generators, states):
                generator.set_state(state)

    def _walk(self, epoch: int, seed: int) -> Iterator[Scheduled]:
        key = fold(seed, epoch, STREAM_SAMPLER)
        self._start_epoch(epoch, key)
        position, digest, step = 0, 0, 0
        with isolated_generators():
            seed_generators(key)
            batches = iter(self._sampler)
        while True:
            with isolated_generators():
                seed_generators(fold(key, step))
                try:
                    drawn = next(batches)
                except StopIteration:
                    return
            indices = list(drawn) if self._batched else [drawn]
            positions = np.arange(position, position + len(indices), dtype=np.int64)
            # The ranks of a world have different indices, and share one state.
            digest = _digest(indices, digest) if self._world_size == 1 else 0
            stop = position + len(indices)
            yield Scheduled(
                Request(seed, epoch, step, positions * self._world_size + self._rank, indices),
                (Delivered(position * self._world_size, stop * self._world_size, digest),),
            )
            position, step = stop, step + 1

    def _start_epoch(self, epoch: int, key: int) -> None:
        self.epochs.begin(epoch)
        for generator, built_with in self._generators:
            if epoch == 0:
                generator.set_state(built_with)
            else:
                generator.manual_seed(key)


def _digest(indices: list[Any], before: int) -> int:
    text = repr(indices)
    # An object that prints its address prints another one in the next process.
    return before if " at 0x" in text else zlib.crc32(text.encode(), before)
