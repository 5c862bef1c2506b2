"""A shuffled stream: shuffled within windows, so that a state needs no buffer (C10)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from dataporter.checks import positive_number, seed_checked
from dataporter.datasets.fingerprint import explicit_fingerprint
from dataporter.errors import DatasetChangedError, UnsupportedDatasetError
from dataporter.keywords import names_keywords
from dataporter.orders import ShuffledOrder
from dataporter.schedule import snapshot
from dataporter.seeding.generators import global_state, isolated_generators, seed_generators
from dataporter.seeding.hashing import STREAM_OPENING, STREAM_SHARD, fold, sample_key
from dataporter.seeding.samples import reading
from dataporter.streams.shard import (
    ShardedStream,
    is_sharded,
    node_of,
    reads_ahead,
    set_stream_epoch,
    snapshots_are_exact,
    unsplittable,
    whole,
    without_node,
)
from dataporter.streams.source import Source

__all__ = ["ShuffledStream"]


class ShuffledStream(IterableDataset[Any]):
    """A stream of shards, each shuffled within windows of consecutive samples.

    The usual shuffle buffer is lost in a checkpoint, or has to be stored in it. Here each shard is
    read one window at a time, and the order of the window's samples is a function of (seed, epoch,
    shard, window). So the state is a position: the window, and the number of its samples already
    delivered. A resume rereads one window per shard, wherever it is in the epoch.

    How well this mixes: a sample can land anywhere in its window, and the loader's batches take
    turns among the shards. If the data are sorted by file, use many shards; if they are sorted
    within files, use windows that are longer than the sorted runs.

    Args:
        stream: a :class:`ShardedStream`, such as a Hugging Face ``IterableDataset`` that was not
            shuffled with a buffer.
        window: number of samples held and mixed for each shard being read.
        seed: of the order, 0..2**63-1.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong.
        UnsupportedDatasetError: (a ``TypeError``) the stream cannot be split into shards.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"n": range(12)}).to_iterable_dataset(num_shards=2)
        >>> loader = ResumableDataLoader(ShuffledStream(rows, window=6), batch_size=3)
        >>> [batch["n"].tolist() for batch in loader]
        [[5, 3, 1], [8, 10, 7], [2, 4, 0], [9, 6, 11]]
    """

    @names_keywords
    def __init__(self, stream: ShardedStream, window: int = 1000, seed: int = 0) -> None:
        if not is_sharded(stream):
            raise UnsupportedDatasetError(
                f"ShuffledStream expects a stream that can be split into shards, but a "
                f"{type(stream).__name__} has no num_shards and shard(num_shards, index); see "
                "dataporter.ShardedStream"
            )
        self.stream = stream
        self.window = positive_number("window", window)
        self.seed = seed_checked(seed) or 0
        self.epoch = 0

    @property
    def fingerprint(self) -> str:
        """Identifies the order, and the stream if that has a fingerprint."""
        return (
            f"shuffled(window={self.window}, seed={self.seed}) {explicit_fingerprint(self.stream)}"
        )

    @property
    def num_shards(self) -> int:
        """The number of shards of the stream."""
        return self.stream.num_shards

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """A shard of the stream, shuffled within windows."""
        set_stream_epoch(self.stream, self.epoch)
        return self._mixed(self.stream.shard(num_shards=num_shards, index=index), index)

    @property
    def unsplittable(self) -> str | None:
        """What in the stream a split into shards would change; None if nothing."""
        return unsplittable(self.stream)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the order of the shards opened from now on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        if self.unsplittable is not None:
            yield from self.__whole__()
            return
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)

    def __whole__(self) -> Iterable[Any]:
        set_stream_epoch(self.stream, self.epoch)
        return self._mixed(whole(self.stream), 0)

    def __node__(self) -> Any:
        return node_of(self.stream)

    def __without_node__(self) -> ShuffledStream:
        rejoined = copy(self)
        rejoined.stream = without_node(self.stream)
        return rejoined

    def _mixed(self, shard: Iterable[Any], index: int) -> _Shard:
        """A shard that was opened, shuffled within windows."""
        set_stream_epoch(shard, self.epoch)
        return _Shard(
            shard,
            self.window,
            fold(self.seed, self.epoch, index, STREAM_SHARD),
            snapshots_are_exact(self.stream),
            reads_ahead(self.stream),
        )


class _Shard:
    """A shard of the stream that yields its samples in shuffled windows."""

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
        # A state of the windows builds on the shard's. The chain hides it where there is none.
        return windows if self._exact and windows.keeps_state else chain(windows)


class _Windows(Iterator[Any]):
    """The samples of a shard in shuffled windows.

    A window is read as a whole, whichever of its samples is requested first. So the generators are
    seeded here, for each sample by its offset in the shard.
    """

    def __init__(self, shard: Iterable[Any], window: int, key: int, watched: bool) -> None:
        self._shard = shard
        self._window = window
        self._key = key
        self._watched = watched
        self._source = self._opened()
        self._drawn = False
        self._begin(0)

    @property
    def keeps_state(self) -> bool:
        return self._source.keeps_state and self._source.samples_since_state is None

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
        self._source = self._opened(snapshot.decode(state["start"]))
        for number in range(state["start_window"], state["window"]):
            self._begin(number)
            self._known_failures = self._window
            self._fill()
        self._begin(state["window"])
        self._given, self._known_failures = state["given"], state["failed"]
        if not self._given:
            # The window may not be whole yet: a failure in its rest is for the next sample.
            return
        self._fill()
        if self._given > len(self._held):
            raise DatasetChangedError(
                f"window {self._number} of a shuffled shard has {len(self._held)} samples, but the "
                f"state counts {self._given} delivered samples of it: resume on the data that the "
                "state was saved with"
            )

    def _opened(self, states: Mapping[str, Any] | None = None) -> Source:
        key = sample_key(fold(self._key, STREAM_OPENING), 0, 0)
        with isolated_generators(), reading(key, 0, range(1)):
            return Source(self._shard, states, lambda: seed_generators(key))

    def _begin(self, number: int) -> None:
        self._number = number
        # Random values already drawn may belong to later samples, and no state holds them.
        if not self._drawn:
            # Encoded at once, because a dataset may return the object that it keeps changing.
            self._start, self._start_number = snapshot.encode(self._source.states()), number
        self._held: list[Any] = []
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._given = self._failed = self._known_failures = 0
        self._whole = self._ended = False

    def _fill(self) -> None:
        """Read the rest of the window, up to a sample that raises."""
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
