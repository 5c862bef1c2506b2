"""A shuffled stream: shuffled a window at a time, so that a resume need not keep a buffer (C10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from dataporter.checks import positive_number, seed_checked
from dataporter.datasets.rows import fingerprint_of
from dataporter.errors import DatasetChangedError, UnsupportedDatasetError
from dataporter.orders import ShuffledOrder
from dataporter.seeding.generators import global_state, isolated_generators, seed_generators
from dataporter.seeding.hashing import STREAM_SHARD, fold, sample_key
from dataporter.seeding.samples import reading
from dataporter.streams import snapshot
from dataporter.streams.shard import (
    ShardedStream,
    reads_ahead,
    set_stream_epoch,
    snapshots_are_exact,
)
from dataporter.streams.source import Source

__all__ = ["ShuffledStream"]


class ShuffledStream(IterableDataset[Any]):
    """A stream of shards, each shuffled within windows of consecutive samples.

    A shuffle buffer, as streams usually have it, is lost in a checkpoint, or has to be part of it.
    Here each shard is read a window at a time, and the window's samples come in an order that
    follows from (seed, epoch, shard, window). So the state is a place: that of the window, and how
    far it is. A resume reads one window again, whatever came before it.

    How well this mixes: a sample can land anywhere in its window, and the loader's batches take
    turns among the shards. What is sorted by file is mixed by having many shards, and within a
    file by windows that are large beside its runs.

    Args:
        stream: a :class:`ShardedStream`, such as a Hugging Face ``IterableDataset`` that was not
            shuffled with a buffer.
        window: samples that are held and mixed, for each shard that is read.
        seed: of the order, 0..2**63-1.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong.
        UnsupportedDatasetError: (a ``TypeError``) the stream does not come in shards.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"n": range(12)}).to_iterable_dataset(num_shards=2)
        >>> loader = ResumableDataLoader(ShuffledStream(rows, window=6), batch_size=3)
        >>> [batch["n"].tolist() for batch in loader]
        [[5, 3, 1], [8, 10, 7], [2, 4, 0], [9, 6, 11]]
    """

    def __init__(self, stream: ShardedStream, window: int = 1000, seed: int = 0) -> None:
        if not isinstance(stream, ShardedStream):
            raise UnsupportedDatasetError(
                f"ShuffledStream takes a stream that comes in shards, and a "
                f"{type(stream).__name__} has no num_shards and shard(num_shards, index); see "
                "dataporter.ShardedStream"
            )
        self.stream = stream
        self.window = positive_number("window", window)
        self.seed = seed_checked(seed) or 0
        self.epoch = 0

    @property
    def fingerprint(self) -> str:
        """Tells one order from another, and the stream from others if it has a fingerprint."""
        return f"shuffled(window={self.window}, seed={self.seed}) {fingerprint_of(self.stream)}"

    @property
    def num_shards(self) -> int:
        """Those of the stream."""
        return self.stream.num_shards

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """A shard of the stream, shuffled."""
        set_stream_epoch(self.stream, self.epoch)
        shard = self.stream.shard(num_shards=num_shards, index=index)
        set_stream_epoch(shard, self.epoch)
        return _Shard(
            shard,
            self.window,
            fold(self.seed, self.epoch, index, STREAM_SHARD),
            snapshots_are_exact(self.stream),
            reads_ahead(self.stream),
        )

    def set_epoch(self, epoch: int) -> None:
        """The epoch by which the next shards are shuffled."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)


class _Shard:
    """A shard of the stream; iterated over, it comes in shuffled windows."""

    def __init__(
        self, shard: Iterable[Any], window: int, key: int, exact: bool, reads_ahead: bool
    ) -> None:
        self._shard = shard
        self._window = window
        self._key = key
        self._exact = exact
        self._reads_ahead = reads_ahead

    def __iter__(self) -> Iterator[Any]:
        windows = _Windows(self._shard, self._window, self._key, self._reads_ahead)
        # Without a state of the shard's own there is no place to go back to. The chain hides ours.
        return windows if self._exact and windows.keeps_place else chain(windows)


class _Windows(Iterator[Any]):
    """The samples of a shard, by shuffled windows.

    A window is read at once, at whatever sample of it comes first after a start. What the shard
    draws for its samples is therefore seeded here, for each by its own place.
    """

    def __init__(self, shard: Iterable[Any], window: int, key: int, watched: bool) -> None:
        self._shard = shard
        self._window = window
        self._key = key
        self._watched = watched
        self._source = Source(shard)
        self._drawn = False
        self._begin(0)

    @property
    def keeps_place(self) -> bool:
        return self._source.states() is not None

    def __next__(self) -> Any:
        self._fill()
        if self._given == len(self._held):
            if self._ended:
                raise StopIteration
            self._begin(self._number + 1)
            self._fill()
            if not self._held:
                raise StopIteration
        index = int(self._order[self._given])
        sample, self._held[index] = self._held[index], None
        self._given += 1
        return sample

    def state_dict(self) -> dict[str, Any]:
        return {
            "window": self._number,
            "start": self._start,
            "start_window": self._start_number,
            "given": self._given,
            "failed": self._failed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._source = Source(self._shard, snapshot.decode(state["start"]))
        for number in range(state["start_window"], state["window"]):
            self._begin(number)
            self._known_failures = self._window
            self._fill()
        self._begin(state["window"])
        self._given, self._known_failures = state["given"], state["failed"]
        self._fill()
        if self._given > len(self._held):
            raise DatasetChangedError(
                f"window {self._number} of a shuffled shard has {len(self._held)} samples, and "
                f"{self._given} of it had been delivered when the state was saved: resume on the "
                "data that the state was saved with"
            )

    def _begin(self, number: int) -> None:
        self._number = number
        # What was drawn may be part of samples that are yet to come, and of no state.
        if not self._drawn:
            # As text at once: what a dataset gives may be what it goes on changing.
            self._start, self._start_number = snapshot.encode(self._source.states()), number
        self._held: list[Any] = []
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._given = self._failed = self._known_failures = 0
        self._whole = self._ended = False

    def _fill(self) -> None:
        """Read what is still to be read of the window, as far as a sample that raises."""
        if self._whole:
            return
        first, done = self._number * self._window, len(self._held) + self._failed
        offsets = range(first, first + self._window)
        with isolated_generators(), reading(self._key, 0, offsets) as current:
            for current.offset in range(done, self._window):
                seed_generators(sample_key(self._key, 0, offsets[current.offset]))
                before = global_state() if self._watched and not self._drawn else None
                try:
                    self._held.append(next(self._source.iterator))
                except StopIteration:
                    self._ended = True
                    break
                except Exception:
                    self._failed += 1
                    if self._failed > self._known_failures:
                        raise
                finally:
                    if before is not None:
                        self._drawn = bool(current.generators) or global_state() != before
        self._whole = True
        count = len(self._held)
        self._order = ShuffledOrder().indices(
            np.arange(count), seed=self._key >> 1, epoch=self._number, dataset_length=count
        )
