"""A part: what a shard of a mixture has of one source, pass after pass (C10, C14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import isgenerator
from typing import Any

from dataporter.errors import ConfigurationError, StateMismatchError
from dataporter.orders.mixture.order import source_seed
from dataporter.schedule import snapshot
from dataporter.seeding.generators import isolated_generators, seed_generators
from dataporter.seeding.hashing import STREAM_OPENING, fold
from dataporter.seeding.samples import reading
from dataporter.streams.shard import set_stream_epoch, snapshots_are_exact
from dataporter.streams.source import Source

__all__ = ["Part"]


class Part:
    """A source's samples in a shard of a mixture. Each pass over them is opened when it begins.

    Args:
        name: of the source.
        stream: the source, whose ``set_epoch`` is called for each pass; None if it was left out of
            the mixture, of which only the state is kept.
        open_shard: opens what the shard has of it.
        first_epoch: the number of the first pass for ``set_epoch``.
        key: seeds what opening draws; None outside a loader.
        fingerprint: identifies the source, so that its state is not loaded into another one.

    Attributes:
        passes: whole passes.
        given: samples of the pass under way.
        count: samples over all passes.
        keeps_state: whether its state is always that of the next sample; None until it was opened.
    """

    def __init__(
        self,
        name: str,
        stream: Any = None,
        open_shard: Callable[[], Any] = lambda: (),
        first_epoch: int = 0,
        key: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.name = name
        self.passes = self.given = self.count = 0
        self.keeps_state: bool | None = None
        self._stream = stream
        self._open_shard = open_shard
        self._first_epoch = first_epoch
        self._key = None if key is None else source_seed(key, name)
        self._source: Source | None = None
        # The state of the source with which the pass is opened, and how many samples lie between
        # that and the next one: they were delivered while the source was not part of the mixture.
        self._inner: str | None = None
        self._behind = 0
        self._fingerprint = fingerprint

    @property
    def is_absent(self) -> bool:
        """Whether the source was left out of the mixture."""
        return self._stream is None

    @property
    def is_open(self) -> bool:
        return self._source is not None

    @property
    def is_generator(self) -> bool:
        """Whether the source cannot continue after an exception."""
        return self._source is not None and isgenerator(self._source.iterator)

    def open(self) -> Callable[[], Any]:
        """Open the pass under way; returns a function that returns the next sample."""
        if self._source is None:
            states = None if self._inner is None else snapshot.decode(self._inner)
            if self.given and states is None:
                raise StateMismatchError(
                    f"the state has no snapshot of source {self.name!r} in the middle of a pass: "
                    "it is damaged or was edited; load another one"
                )
            self._source, self._inner = self._opened(states), None
            while self._behind:
                self._discard()
        return partial(next, self._source.iterator)

    def take(self, count: int) -> None:
        """Count samples that were taken."""
        self.count += count
        if self.is_absent:
            self._behind += count
        else:
            self.given += count

    def end_pass(self) -> None:
        """Begin another pass with the next sample.

        Raises:
            ConfigurationError: the pass had no sample.
        """
        if not self.given:
            raise ConfigurationError(
                f"source {self.name!r} of the mixture has a weight, but no samples in this shard "
                "of it: give the source a weight of 0, or mix fewer shards (num_shards= of the "
                "loader), so that each has samples of all sources"
            )
        self.passes, self.given, self._source = self.passes + 1, 0, None

    def state(self) -> list[Any]:
        """Where it is, as JSON types."""
        inner = self._inner
        if self._source is not None and self.given:
            # At the start of a pass, where many streams have no state, none is needed.
            inner = snapshot.encode(self._source.states())
        return [self.passes, self.given, self.count, self._behind, inner, self._fingerprint]

    def load(self, state: Any) -> None:
        """Continue where a state says."""
        self._source = None
        *numbers, self._inner, fingerprint = state
        self.passes, self.given, self.count, self._behind = numbers
        if self.is_absent:
            self._fingerprint = fingerprint

    def _opened(self, states: Mapping[str, Any] | None) -> Source:
        if self._key is None:
            source = self._source_of(states, lambda _: None)
        else:
            opening = fold(self._key, self.passes, STREAM_OPENING)

            def seed(word: int) -> None:
                seed_generators(fold(opening, word))

            # What opening draws must not depend on the sample before which it happens.
            with isolated_generators(), reading(opening, 0, range(1)):
                source = self._source_of(states, seed)
        is_present = source.keeps_state and source.samples_since_state is None
        self.keeps_state = snapshots_are_exact(self._stream) and is_present
        return source

    def _source_of(self, states: Mapping[str, Any] | None, seed: Callable[[int], None]) -> Source:
        epoch = self._first_epoch + self.passes
        seed(0)
        set_stream_epoch(self._stream, epoch)
        shard = self._open_shard()
        set_stream_epoch(shard, epoch)
        return Source(shard, states, partial(seed, 1))

    def _discard(self) -> None:
        assert self._source is not None
        try:
            next(self._source.iterator)
        except StopIteration:
            self.end_pass()
            self._source = self._opened(None)
            return
        except Exception:  # it was counted when it failed
            pass
        self.given += 1
        self._behind -= 1
