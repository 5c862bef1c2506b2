"""A repeated stream: begins again at its end, so that ranks and epochs may have any number of steps
(C10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from inspect import isgenerator
from typing import Any

from torch.utils.data import IterableDataset

from dataporter.checks import positive_number
from dataporter.datasets.fingerprint import explicit_fingerprint
from dataporter.errors import UnsupportedDatasetError
from dataporter.keywords import names_keywords
from dataporter.schedule import snapshot
from dataporter.schedule.snapshot import keeps_state
from dataporter.seeding.generators import isolated_generators, seed_generators
from dataporter.seeding.hashing import STREAM_OPENING, fold
from dataporter.seeding.samples import current_key, reseed
from dataporter.streams.shard import (
    always_draws,
    draws_in_threads,
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

__all__ = ["StreamRepeat"]


class StreamRepeat(IterableDataset[Any]):
    """A stream that begins again at its end: endlessly, or for a number of passes.

    The ranks of a stream end at different steps, since their shards have different lengths. Over an
    endless stream, ``ResumableDataLoader(..., steps_per_epoch=k)`` has epochs of exactly k steps on
    every rank, and each epoch continues where the one before has ended.

    Each shard repeats itself, so a rank reads its own shards again and again; any number of workers
    and ranks can take them over at a resume. The stream's ``set_epoch`` is called with the number
    of each pass. The state holds the pass and the stream's own state in it; if the stream has none,
    a resume rereads the samples of the present pass, and of no earlier one.

    Args:
        stream: an iterable dataset, with or without shards and a state.
        passes: number of passes; None repeats it without end.

    Raises:
        ConfigurationError: (a ``ValueError``) ``passes`` is no whole number of 1 or more.
        UnsupportedDatasetError: (a ``TypeError``) ``stream`` cannot be iterated over repeatedly.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"n": range(5)}).to_iterable_dataset()
        >>> loader = ResumableDataLoader(StreamRepeat(rows), batch_size=2, steps_per_epoch=3)
        >>> [batch["n"].tolist() for batch in loader]
        [[0, 1], [2, 3], [4, 0]]
        >>> [batch["n"].tolist() for batch in loader]
        [[1, 2], [3, 4], [0, 1]]
    """

    # Its states are those of passes, and so exact also where the stream's own are not.
    snapshots_are_exact = True

    @names_keywords
    def __init__(self, stream: Iterable[Any], passes: int | None = None) -> None:
        if not hasattr(stream, "__iter__") or isgenerator(stream):
            raise UnsupportedDatasetError(
                f"StreamRepeat expects an iterable dataset, which begins anew at each iter(), but "
                f"got a {type(stream).__name__}: pass an IterableDataset"
            )
        self.stream: Any = stream
        self.passes = None if passes is None else positive_number("passes", passes)
        self.epoch = 0
        # The stream's state at the start of a pass that has not ended.
        self._left: str | None = None

    @property
    def fingerprint(self) -> str:
        """Identifies the passes, and the stream if that has a fingerprint."""
        return f"repeated(passes={self.passes}) {explicit_fingerprint(self.stream)}"

    @property
    def reads_ahead(self) -> bool:
        """Whether the stream computes samples ahead of the requested one."""
        return reads_ahead(self.stream)

    @property
    def draws(self) -> bool:
        """Whether all generators are seeded before each sample, whatever it draws from."""
        return always_draws(self.stream)

    @property
    def draws_in_threads(self) -> bool:
        """Whether the stream draws random numbers in its own threads."""
        return draws_in_threads(self.stream)

    @property
    def unsplittable(self) -> str | None:
        """What in the stream a split into shards would change; None if nothing."""
        return unsplittable(self.stream)

    @property
    def num_shards(self) -> int | None:
        """The number of shards of the stream; None if it cannot be split."""
        return self.stream.num_shards if is_sharded(self.stream) else None

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """A shard of the stream, which repeats itself."""
        open_shard = partial(self.stream.shard, num_shards=num_shards, index=index)
        return self._repeated(open_shard)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from which the stream's epochs count on, one for each pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter(self._repeated(self._itself, self._end))

    def __len__(self) -> int:
        if self.passes is None:
            raise TypeError("a stream that repeats without end has no length")
        return self.passes * len(self.stream)

    def __getattr__(self, name: str) -> Any:
        if name == "__collate__" and "stream" in self.__dict__:  # of a wrapper, which pads
            return getattr(self.stream, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __whole__(self) -> Iterable[Any]:
        return self._repeated(partial(whole, self.stream))

    def __node__(self) -> Any:
        return node_of(self.stream)

    def __without_node__(self) -> StreamRepeat:
        rejoined = copy(self)
        rejoined.stream = without_node(self.stream)
        return rejoined

    def _repeated(
        self, open_part: Callable[[], Any], on_end: Callable[[], None] = lambda: None
    ) -> _Repeated:
        first = self.epoch * (self.passes or 1)
        is_exact = snapshots_are_exact(self.stream)
        return _Repeated(self.stream, open_part, first, self.passes, is_exact, on_end)

    def _itself(self) -> Any:
        """The stream, at its start also where an iteration over it was left."""
        if keeps_state(self.stream):
            if self._left is not None:
                self.stream.load_state_dict(snapshot.decode(self._left))
            self._left = _encoded_state(self.stream)
        return self.stream

    def _end(self) -> None:
        self._left = None


@dataclass(frozen=True, slots=True)
class _Repeated:
    """A shard, or all, of a stream that repeats itself.

    Attributes:
        stream: whose ``set_epoch`` is called for each pass.
        open_part: opens the shard for a pass.
        first: number of the first pass for ``set_epoch``.
        passes: number of passes; None without end.
        is_exact: the states of the stream resume at the exact next sample.
        on_end: is called at the end of each pass.
    """

    stream: Any
    open_part: Callable[[], Any]
    first: int
    passes: int | None
    is_exact: bool
    on_end: Callable[[], None]

    def open(self, number: int, key: int | None, states: Mapping[str, Any] | None = None) -> Source:
        """A pass, from its start or from the states of its source.

        Args:
            key: seeds what opening draws, such as the order of files; None outside a loader.
        """
        if key is None:
            return self._source_of(number, states, lambda _: None)
        opening = fold(key, number, STREAM_OPENING)

        def seed(word: int) -> None:
            seed_generators(fold(opening, word))

        with isolated_generators():
            return self._source_of(number, states, seed)

    def _source_of(
        self, number: int, states: Mapping[str, Any] | None, seed: Callable[[int], None]
    ) -> Source:
        seed(0)
        set_stream_epoch(self.stream, self.first + number)
        part = self.open_part()
        set_stream_epoch(part, self.first + number)
        return Source(part, states, partial(seed, 1))

    def __iter__(self) -> Iterator[Any]:
        key = current_key()
        source = self.open(0, key)
        # A stream that is itself repeated may have a state that lags behind its samples.
        is_present = source.keeps_state and source.samples_since_state is None
        return (_Passes if self.is_exact and is_present else _RereadPasses)(self, key, source)


class _Passes(Iterator[Any]):
    """The samples of a part of a stream, pass after pass. Its state holds that of the stream.

    A pass after the first is opened when its first sample is asked for, under seeds that follow
    from that sample, so that a resume opens it alike.
    """

    def __init__(self, part: _Repeated, key: int | None, source: Source) -> None:
        self._part = part
        self._number, self._key, self._given = 0, key, 0
        # The open pass; or what it is to be opened with.
        self._source: Source | None = source
        self._states: Mapping[str, Any] | None = None

    def __next__(self) -> Any:
        while True:
            source = self._opened()
            try:
                sample = next(source.iterator)
            except StopIteration:
                self._part.on_end()
                is_last = self._number + 1 == self._part.passes
                if is_last or not self._given:  # an empty pass would repeat for ever
                    raise
                self._number, self._key, self._given = self._number + 1, current_key(), 0
                self._source = self._states = None
            except Exception:  # the loader counts a sample that fails
                self._given += 1
                raise
            else:
                self._given += 1
                return sample

    def state_dict(self) -> dict[str, Any]:
        states = self._states if self._source is None else self._source.states()
        encoded = None if states is None else snapshot.encode(states)
        return {**self._place(), "given": self._given, "inner": encoded}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._number, self._key, self._given = state["pass"], state["key"], state["given"]
        inner = state["inner"]
        self._source, self._states = None, None if inner is None else snapshot.decode(inner)

    def _place(self) -> dict[str, Any]:
        return {"pass": self._number, "key": self._key}

    def _opened(self) -> Source:
        if self._source is None:
            self._source = self._part.open(self._number, self._key, self._states)
            self._states = None
            if self._number and not self._given:
                # The end of the pass before may have drawn, and a resume does not read it.
                reseed()
        return self._source


class _RereadPasses(_Passes):
    """Passes of a part that has no state: a resume rereads the present pass, and no earlier one."""

    @property
    def samples_since_state(self) -> int:
        """Number of samples after the state, which is of the start of the pass."""
        return self._given

    def state_dict(self) -> dict[str, Any]:
        return {**self._place(), "given": 0, "inner": None}


def _encoded_state(stream: Any) -> str | None:
    try:
        return snapshot.encode(stream.state_dict())
    except Exception:  # some have no state before they are iterated
        return None
