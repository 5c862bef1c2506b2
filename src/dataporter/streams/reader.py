"""A reader: one shard, read sample by sample from where a state says (C8, C10, C12)."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import isgenerator
from typing import Any, Literal, NamedTuple

import numpy as np

from dataporter.errors import DatasetChangedError, SampleError, StateMismatchError, add_note
from dataporter.fetch import OnError, Skipped
from dataporter.rng import STREAM_SHARD, fold, reading, sample_keys, seed_generators
from dataporter.streams import snapshot
from dataporter.streams.shard import Cut, ShardState

__all__ = ["Reader", "Reading"]

# Replayed samples are seeded and read so many at a time.
_REPLAYED_AT_ONCE = 1024


class Reading(NamedTuple):
    """How a stream is read; the same for all its shards.

    Attributes:
        batch_size: samples of a batch.
        seeds_each: seed the global generators before each sample, or once a batch.
        on_error: what becomes of a sample that raises.
    """

    batch_size: int
    seeds_each: Literal["sample", "batch", "nothing"]
    on_error: OnError


class Reader:
    """Reads a shard from a state on.

    Args:
        cut: gives the shard.
        start: where it was left.
        seed, epoch: the loader's.
        how: how it is read.

    Attributes:
        place: how many samples of the shard were read, or failed.
        ended: there are no more.
    """

    def __init__(self, cut: Cut, start: ShardState, seed: int, epoch: int, how: Reading) -> None:
        self.place = start.marked
        self.ended = False
        self._cut = cut
        self._shard = start.shard
        self._epoch = epoch
        self._key = fold(seed, start.shard, STREAM_SHARD)
        self._how = how
        with cut.reading():
            self._iterable = cut.open(start.shard, epoch)
            self._iterator = _iterator_at(self._iterable, start)
        self.return_to(start.place)

    def return_to(self, place: int) -> None:
        """Read again what was read before, up to a place.

        Raises:
            DatasetChangedError: the shard ends before it.
        """
        self.advance(place)
        if self.place < place:
            raise DatasetChangedError(
                f"shard {self._shard} of the stream ended at sample {self.place} (epoch "
                f"{self._epoch}), and {place} samples of it had been delivered when the state was "
                "saved: resume on the data that the state was saved with"
            )

    def stands_at(self, place: int) -> bool:
        """Whether the sample at this place comes next, or none does because the shard has ended."""
        return self.place == place or (self.ended and self.place < place)

    def advance(self, place: int) -> None:
        """Read up to a place and throw it away; less where the shard ends before."""
        while self.place < place and not self.ended:
            self._read(min(place - self.place, _REPLAYED_AT_ONCE), keep=False)

    def read(self, count: int) -> tuple[list[Any], tuple[Skipped, ...]]:
        """The next so many samples, less where the shard ends, and those that were left out."""
        return self._read(count, keep=True)

    def capture(self) -> str | None:
        """A snapshot of where the shard stands, if the dataset offers any that can be relied on."""
        if not self._cut.snapshots:
            return None
        with self._cut.reading():
            states = {
                name: part.state_dict()
                for name, part in _parts(self._iterable, self._iterator).items()
                if _keeps_state(part)
            }
            return snapshot.encode(states) if states else None

    def _read(self, count: int, *, keep: bool) -> tuple[list[Any], tuple[Skipped, ...]]:
        samples: list[Any] = []
        skipped: list[Skipped] = []
        if self.ended:
            return samples, ()
        first = self.place
        places = np.arange(first, first + count)
        seeds_at = 1 if self._how.seeds_each == "sample" else self._how.batch_size
        keys = sample_keys(self._key, self._epoch, places).tolist()
        seeded = self._how.seeds_each != "nothing"
        iterator = self._iterator
        with self._cut.reading(), reading(self._key, self._epoch, places) as current:
            for offset in range(count):
                current.place = offset
                if seeded and (first + offset) % seeds_at == 0:
                    seed_generators(keys[offset])
                try:
                    sample = next(iterator)
                except StopIteration:
                    self.ended = True
                    break
                except Exception as error:
                    self._take_failure(error, samples, skipped, keep=keep)
                else:
                    if keep:
                        samples.append(sample)
                self.place = first + offset + 1
        if keep and skipped and not samples:
            raise SampleError(
                f"on_error='skip' left nothing of a batch of the stream: {len(skipped)} samples of "
                f"shard {self._shard} from place {first} failed (epoch {self._epoch}), the first "
                f"with {skipped[0].error}"
            )
        return samples, tuple(skipped)

    def _take_failure(
        self, error: Exception, samples: list[Any], skipped: list[Skipped], *, keep: bool
    ) -> None:
        on_error = self._how.on_error
        shown = f"sample {self.place} of shard {self._shard} of the stream (epoch {self._epoch})"
        if on_error == "raise":
            add_note(error, f"while reading {shown}")
            raise error
        if isgenerator(self._iterator):
            raise SampleError(
                f"{shown} raised {error!r}, and a generator cannot go on behind that, so on_error= "
                "cannot leave it out: catch the exception inside the generator, or make the stream "
                "an iterator with __next__"
            ) from error
        if not keep:
            return
        index = (self._shard, self.place)
        if on_error == "skip":
            skipped.append(Skipped(index, self.place, repr(error)))
        else:
            samples.append(on_error(error, index))


def _iterator_at(iterable: Any, start: ShardState) -> Iterator[Any]:
    states = {} if start.snapshot is None else snapshot.decode(start.snapshot)
    if "dataset" in states:
        _restore(iterable, states["dataset"], start)
    iterator: Iterator[Any] = iter(iterable)
    if "iterator" in states:
        _restore(iterator, states["iterator"], start)
    return iterator


def _restore(part: Any, state: Any, start: ShardState) -> None:
    if not _keeps_state(part):
        raise StateMismatchError(
            f"the state has a snapshot of shard {start.shard} of the stream, and a "
            f"{type(part).__name__} has no load_state_dict to take it: resume with the class that "
            "the state was saved with"
        )
    part.load_state_dict(state)


def _parts(iterable: Any, iterator: Any) -> dict[str, Any]:
    # What is its own iterator has one state, and not the same one twice.
    return (
        {"dataset": iterable}
        if iterator is iterable
        else {"dataset": iterable, "iterator": iterator}
    )


def _keeps_state(part: Any) -> bool:
    return callable(getattr(part, "state_dict", None)) and callable(
        getattr(part, "load_state_dict", None)
    )
