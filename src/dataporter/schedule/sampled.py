"""The schedule of a custom sampler: its indices are walked through, not jumped to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import index as as_integer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError, StateMismatchError, warn
from dataporter.schedule.examination import OTHER_INDICES, Fault, examined, nearest
from dataporter.schedule.memory import has_memory
from dataporter.schedule.progress import Delivered, Progress
from dataporter.schedule.request import Request, Scheduled
from dataporter.schedule.sampler_record import Place, Resume, SamplerRecord, Way
from dataporter.schedule.schedule import Requests
from dataporter.schedule.walk import Differs, Walk, WalkedSampler, reached

__all__ = ["SampledSchedule"]


class SampledSchedule:
    """A custom sampler's requests, made a function of (seed, epoch) as far as that is possible.

    Before each batch of indices the global generators are seeded, and restored afterwards. At the
    start of an epoch each ``torch.Generator`` of the sampler is reset to its state at construction
    (epoch 0) or seeded (later ones). The sampler's own epoch is the user's. A sampler that keeps
    its place or other random state on itself resumes by its ``state_dict``; a digest of all indices
    goes into the state, and a pass on other indices is refused before its first batch.

    Args:
        batches: yields a batch of indices at a time, or single indices (``batched=False``).
        rank, world_size: the share of each global batch that the sampler gives. They only count
            positions and keep the ranks' random augmentations apart.
        shared: objects that copies of the sampler share with it, such as the dataset.
        snapshot_every: number of batches per ``state_dict()`` of the sampler.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        batched: bool,
        rank: int,
        world_size: int,
        shared: Sequence[Any] = (),
        snapshot_every: int = 1,
    ) -> None:
        self._own = WalkedSampler.of(batches, batched=batched, world_size=world_size, shared=shared)
        self.rank = rank
        self._snapshot_every = snapshot_every
        self.epochs = self._own.epochs
        # How many passes over the user's own sampler began here, and the last of them.
        self._begun = 0
        self._last: Walk | None = None
        # The sampler's epochs when a pass ended, as it may count them itself; with their number.
        self._end: tuple[int, tuple[int | None, ...]] | None = None
        self._has_memory: bool | None = None

    def requests(self, progress: Progress, seed: int) -> Requests:
        return Requests(self, progress, seed)

    def scheduled(self, progress: Progress, seed: int) -> Iterator[Scheduled]:
        """The requests themselves: the sampler is walked through up to the progress."""
        walk, record = self._begin(progress, seed)
        world_size, done = self._own.world_size, progress.done
        while True:
            step, start = walk.step, walk.position
            # From before the batch that it is delivered with, so that a resume sees one batch
            # again and can compare it; but many a sampler begins its pass with its first batch.
            due = step % self._snapshot_every == 0
            snapshot = walk.snapshot() if due and step else None
            if (indices := walk.draw()) is None:
                self._end = record.passes + 1, self.epochs.values()
                return
            snapshot = snapshot if step else walk.snapshot()
            if snapshot is not None:
                record = replace(record, snapshot=snapshot)
            stop = walk.position
            if any(before <= start and stop <= after for before, after in done):
                continue
            positions = start + self.rank + world_size * np.arange(len(indices), dtype=np.int64)
            yield Scheduled(
                Request(seed, progress.epoch, step, positions, indices),
                (Delivered(start, stop, walk.digest, record),),
            )

    def ahead(self, progress: Any, seed: int) -> None:
        # A sampler has one position, which a walk through a later epoch would lose.
        return None

    def steps(self, progress: Progress) -> int:
        batches: Any = self._own.batches  # Sized or a TypeError, as in torch
        return max(0, len(batches) - progress.step)

    # ---- states

    def examined(
        self, progress: Progress, seed: int, *, foreign: bool
    ) -> tuple[Progress, list[Fault]]:
        """How a saved progress is resumed on this sampler, and what speaks against it.

        Args:
            foreign: it is another rank's, whose sampler gives other indices.
        """
        return examined(self._own, progress, seed, begun=self._begun, foreign=foreign)

    def nearest(self, progress: Progress, seed: int) -> Progress:
        """The same batch of the epoch, whatever its indices are."""
        return nearest(self._own, progress, seed)

    def noted(self, progress: Progress) -> Progress:
        """The progress with what is known of the sampler between two passes."""
        record = progress.sampler or SamplerRecord()
        if progress.step == 0 and record.epochs is not None and self._end is not None:
            passes, epochs = self._end
            if passes == record.passes:
                record = replace(record, epochs=epochs)
        if progress.step == 0 and progress.epoch in (self.epochs.asked, self.epochs.pending()):
            record = replace(record, epochs=None, driven=True)
        return progress._replace(sampler=record)

    def first_digest(self, seed: int) -> int | None:
        """A digest of the sampler's first batches; None where it cannot be looked at."""
        try:
            with self._own.looked_at() as sampler:
                if sampler is None:
                    return None
                walk = Walk(sampler, self.epochs.set_at_construction() or 0, seed).begin()
                while walk.position < _COMPARED * self._own.world_size and walk.draw():
                    pass
        except Exception:  # it raises again in the pass, where it belongs
            return None
        return walk.digest if walk.position else None

    # ---- look-ups

    def check(self, epoch: int, step: int) -> None:
        """A custom sampler has to be walked through to see where it ends."""

    def progress_at(self, epoch: int, step: int, seed: int) -> Progress:
        if step == 0:
            return Progress(epoch)
        epochs = self.epochs.values()
        walk = self._looked_up(epoch, epochs, step - 1, seed, is_next=True)[0]
        record = SamplerRecord(epochs, self.epochs.driven, self._begun)
        return Progress(epoch, step, walk.position, (), walk.digest, record)

    def samples_at(self, origin: Progress, step: int, seed: int) -> list[Any]:
        is_next = self._is_next(origin)
        return self._looked_up(origin.epoch, self._epochs_in(origin), step, seed, is_next=is_next)[
            1
        ]

    def _is_next(self, origin: Progress) -> bool:
        """Whether an epoch is that of the pass that begins next, if none is under way."""
        first = self.epochs.set_at_construction() or 0
        if origin.sampler is not None and (resume := origin.sampler.resume) is not None:
            return resume.ways == ("walk",) and resume.replays is None
        return origin.sampler is not None or (origin.epoch == first and not self._begun)

    def padding(self, origin: Progress, step: int) -> NDArray[np.bool_]:
        raise ConfigurationError(
            f"padding() is unknown for a custom sampler (a {self._own.name}): it "
            "decides which samples are repeated; use order= or shuffle= to have the loader shard"
        )

    def seen(self, progress: Progress, origin: Progress, seed: int) -> NDArray[np.int64]:
        return self._divided("seen()", progress, origin, seed)[0]

    def unseen(self, progress: Progress, origin: Progress, seed: int) -> NDArray[np.int64]:
        return self._divided("unseen()", progress, origin, seed)[1]

    def _divided(
        self, call: str, progress: Progress, origin: Progress, seed: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The indices of an epoch that were delivered, and those that were not."""
        name, size = self._own.name, self._own.world_size
        if size > 1:
            raise ConfigurationError(
                f"{call}: the sampler {name} knows this rank's indices, and not those of the other "
                f"{size - 1}; use order= or shuffle= to have the loader shard"
            )
        try:
            steps = self.steps(Progress(progress.epoch))
        except (TypeError, NotImplementedError) as error:
            raise ConfigurationError(
                f"{call}: the sampler {name} has no length ({error}), and may have no end: give it "
                "__len__"
            ) from error
        parts: tuple[list[Any], list[Any]] = ([], [])
        epochs, is_next = self._epochs_in(origin), self._is_next(origin)
        what, epoch = f"{call} in epoch {progress.epoch}", progress.epoch
        with self._looking(what, epoch, epochs, seed, is_next) as walk:
            for _ in range(steps):
                start = walk.position
                if (indices := walk.draw()) is None:
                    break
                stop = walk.position
                early = any(first <= start and stop <= last for first, last in progress.done)
                parts[0 if early or stop <= progress.position else 1].extend(indices)
        try:
            seen, unseen = (np.array(list(map(as_integer, part)), dtype=np.int64) for part in parts)
        except TypeError as error:
            raise ConfigurationError(
                f"{call}: the sampler {name} gives other indices than whole numbers ({error})"
            ) from error
        return seen, unseen

    def _epochs_in(self, origin: Progress) -> tuple[int | None, ...]:
        """The epochs of the sampler's parts in a pass over an epoch."""
        present = self.epochs.values()
        if origin.sampler is None and self.epochs.driven:
            return (origin.epoch,) * len(present)
        return present

    def _looked_up(
        self, epoch: int, epochs: tuple[int | None, ...], step: int, seed: int, *, is_next: bool
    ) -> tuple[Walk, list[Any]]:
        """A walk after a step, and the step's indices, without disturbing the sampler.

        Args:
            is_next: it is of the pass that begins next, if none is under way.
        """
        with self._looking(f"step {step} of epoch {epoch}", epoch, epochs, seed, is_next) as walk:
            indices: list[Any] | None = None
            for _ in range(step + 1):
                if (indices := walk.draw()) is None:
                    break
        if indices is None:
            raise ConfigurationError(
                f"step {step} of epoch {epoch}: the sampler {self._own.name} ends "
                "before it; the last step is one less than len(loader)"
            )
        return walk, indices

    @contextmanager
    def _looking(
        self, what: str, epoch: int, epochs: tuple[int | None, ...], seed: int, is_next: bool
    ) -> Iterator[Walk]:
        """A walk from the start of an epoch that does not disturb the sampler."""
        at_rest = self._last is None or self._last.ended
        with self._own.looked_at() as sampler:
            if sampler is None:
                raise ConfigurationError(
                    f"{what}: the sampler {self._own.name} cannot be copied, "
                    f"and a look at it would change the batches that the loop receives; {_STATE}"
                )
            if not (is_next and at_rest) and self._remembers(epoch, epochs, seed):
                raise ConfigurationError(
                    f"{what}: the sampler {self._own.name} keeps its place "
                    "or its random state on itself, so that only the next epoch can be looked at, "
                    "between two passes; derive the order from set_epoch() alone to have all"
                )
            sampler.epochs.write(epochs)
            yield Walk(sampler, epoch, seed).begin()

    def _remembers(self, epoch: int, epochs: tuple[int | None, ...], seed: int) -> bool:
        if self._has_memory is None:
            copy = None if self._own.is_known else self._own.copied()
            self._has_memory = copy is not None and has_memory(copy, epochs, epoch, seed)
        return self._has_memory

    # ---- passes

    def _begin(self, progress: Progress, seed: int) -> tuple[Walk, SamplerRecord]:
        """A walk through the user's own sampler that stands at the progress."""
        record = progress.sampler or SamplerRecord()
        resume = record.resume or Resume(_ways_to(record))
        begun, self._begun = self._begun, self._begun + 1
        if progress.step:
            walk = self._reached(progress.place(), seed, resume, by_position=bool(progress.early))
        else:
            if resume.replays is not None and record.earlier is not None:
                present = self.epochs.values()
                self.epochs.write(record.earlier.epochs or ())
                walk = self._reached(record.earlier, seed, resume)
                if resume.replays == "end":
                    walk.draw()
                self.epochs.write(present)
            walk = Walk(self._own, progress.epoch, seed).begin()
        self._last, self.epochs.asked = walk, None
        self.epochs.begun_with = self.epochs.values()
        by_state = record.resume is not None and resume.ways != ("walk",)
        passes = record.passes if by_state else max(record.passes, begun)
        driven = record.driven or self.epochs.driven
        return walk, SamplerRecord(
            self.epochs.values(),
            driven,
            passes,
            walk.start,
            record.snapshot if progress.step else None,
            record.earlier,
        )

    def _reached(
        self, place: Place, seed: int, resume: Resume, *, by_position: bool = False
    ) -> Walk:
        try:
            return reached(
                self._own,
                place,
                seed,
                resume.ways,
                by_position=by_position,
                unchecked=resume.unchecked,
            )
        except Differs as differs:
            walk = differs.walk
            message = (
                f"{self._own.name}, the first {place.step} batches of epoch {place.epoch}: the "
                f"digest of their indices was {place.digest} when they were delivered, and is "
                f"{walk.digest} now; {OTHER_INDICES}"
            )
            if not resume.lenient:
                raise StateMismatchError(f"{message}. No batch was delivered.") from None
            warn(message, RuntimeWarning)
            walk.position = place.position
            return walk

    def __getstate__(self) -> dict[str, Any]:
        # The iterator of a pass belongs to that pass.
        return {**self.__dict__, "_last": None}


_COMPARED = 64
_STATE = "give it state_dict() and load_state_dict(), or __deepcopy__"


def _ways_to(record: SamplerRecord) -> tuple[Way, ...]:
    """What may bring a sampler that nobody has tried to the place of a record."""
    if record.snapshot is not None:
        return ("snapshot",) if record.start is None else ("snapshot", "start")
    return ("walk",) if record.start is None else ("start",)
