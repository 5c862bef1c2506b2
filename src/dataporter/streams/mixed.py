"""A shard of a mixture of streams: samples of its sources by weight, and a state (C10, C14)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from dataporter.errors import ConfigurationError, StateMismatchError
from dataporter.orders.mixture.phase import Blend
from dataporter.seeding.samples import reseed
from dataporter.streams.mixture_part import Part
from dataporter.streams.mixture_turns import Share, Since, Step, since, step_at, turns_from

__all__ = ["Mixed"]


class Mixed(Iterator[Any]):
    """The samples of a mixture's shard.

    A position falls into a period, in which each source has its share, in an order drawn from the
    key. Its turn takes the next sample of that source's own shard, whatever the other sources are.
    So what came of a source is a prefix of its stream, and the state is a position and each
    source's own state.

    A source without a state can be read again only from the start of its pass. Then the state is
    that of the last position at which no such source was in the middle of a pass, and a resume
    reads on from there.

    Args:
        parts: of the sources.
        blend: how they are mixed.
        share: which shard it is.
        key: draws the order of the sources; a function of (seed, epoch, shard).
        source_key: the key under which each sample has the name of its source.

    Attributes:
        has_gaps: after the state it yielded None for samples of a source that was left out, which
            were delivered before.
        is_broken: the source that raised last is a generator, which has ended with that.
    """

    # The weights of a shard's first samples are known before a snapshot is taken.
    records_its_start = True

    def __init__(
        self,
        parts: Mapping[str, Part],
        blend: Blend,
        share: Share,
        key: int,
        source_key: str | None,
    ) -> None:
        self._parts = dict(parts)
        self._blend, self._share, self._key, self._source_key = blend, share, key, source_key
        self._blends = [Since(0, blend)]
        # Position of the first of the turns, and where their weights began to hold.
        self._position = self._origin = 0
        self._turns: list[int] = []
        self._at = 0
        self._takes: list[Callable[[], Any]] = []
        self._over = self._was_behind = self._was_loaded = False
        # A state to be read on from, and its position.
        self._anchor: tuple[int, dict[str, Any]] | None = None
        self.has_gaps = self.is_broken = False
        self._open_all()

    def __next__(self) -> Any:
        while True:
            if self._at == len(self._turns):
                self._plan()
                if self._was_loaded:
                    self._was_loaded = False
                    if self._was_behind:
                        reseed()
            try:
                sample = self._takes[self._turns[self._at]]()
            except StopIteration:
                self._end_pass()
                continue
            except ConfigurationError:
                raise
            except Exception:
                self.is_broken = self._part.is_generator
                self._at += 1  # the loader counts a sample that fails
                raise
            self._at += 1
            return sample

    # ---- the state

    @property
    def samples_since_state(self) -> int | None:
        """Number of samples after the state; None where that is always the present one."""
        if not self._reads_again:
            return None
        at = self._position + self._at
        return 0 if self._anchor is None else at - self._anchor[0]

    @property
    def _reads_again(self) -> bool:
        """Whether a source has no state that resumes within its pass."""
        limits = dict(zip(self._blend.names, self._blend.limits))
        return any(
            part.keeps_state is False and not self._has_ended(name, limits.get(name))
            for name, part in self._parts.items()
        )

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        self.has_gaps = False
        if self._anchor is None or not self._reads_again:
            return self._present()
        return self._with_blends(*self._anchor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._key, self._position, self._origin = state["key"], state["position"], state["origin"]
        for name, entry in state["sources"].items():
            self._parts.setdefault(name, Part(name)).load(entry)
        self._turns, self._at, self._takes = [], 0, []
        self._anchor = (self._position, dict(state)) if state["lags"] else None
        self._was_loaded, self._was_behind = True, state["lags"]
        # The loader has added the present blend where it resumes; others begin it here.
        self._blends = since(state["blends"], self._blend, self._position)
        for name in (name for each in self._blends for name in each.blend.names):
            self._parts.setdefault(name, Part(name))

    def _present(self) -> dict[str, Any]:
        """The state before the first of the turns."""
        state = {
            "mixture": 1,
            "key": self._key,
            "position": self._position,
            "origin": self._origin,
            "sources": {name: part.state() for name, part in self._parts.items()},
        }
        return self._with_blends(self._position, state)

    def _with_blends(self, position: int, state: dict[str, Any]) -> dict[str, Any]:
        first = self._number_at(position)
        blends = [each.written() for each in self._blends[first:]]
        return {**state, "lags": self._reads_again, "blends": blends}

    # ---- turns

    @property
    def _since(self) -> Since:
        """What is mixed at the position of the turns."""
        return self._blends[self._number_at(self._position)]

    def _number_at(self, position: int) -> int:
        begun = [number for number, each in enumerate(self._blends) if each.begin <= position]
        return begun[-1] if begun else 0

    @property
    def _part(self) -> Part:
        """Whose turn it is."""
        return self._parts[self._since.blend.names[self._turns[self._at]]]

    def _settle(self) -> None:
        """Count the turns that were taken, and drop them."""
        if not self._at:
            return
        names = self._since.blend.names
        for number, count in Counter(self._turns[: self._at]).items():
            self._parts[names[number]].take(count)
        self._position += self._at
        self._turns, self._at = self._turns[self._at :], 0

    def _plan(self) -> None:
        """Work out the next turns.

        Raises:
            StopIteration: the shard has ended.
        """
        self._settle()
        number = self._number_at(self._position)
        begun, following = self._blends[number], self._blends[number + 1 : number + 2]
        blend = begun.blend
        step = step_at(blend.weights, self._share, self._position)
        end = step.end
        if isinstance(blend.stopping, int):
            last = self._share.of(blend.stopping)
            end = last if end is None else min(end, last)
            self._over = self._over or self._position >= last
        weights = tuple(
            0 if self._has_ended(name, limit) else weight
            for name, limit, weight in zip(blend.names, blend.limits, step.weights)
        )
        if self._over or not any(weights) or self._all_were_read(blend, step):
            self._over = True
            raise StopIteration
        self._origin = max(self._origin, begun.begin, step.begin)
        turns = turns_from(self._position, weights, origin=self._origin, end=end, key=self._key)
        self._turns = turns[: following[0].begin - self._position] if following else turns
        self._takes = [self._take_of(number) for number in range(len(blend.names))]

    def _has_ended(self, name: str, limit: int | None) -> bool:
        return limit is not None and self._parts[name].passes >= limit

    def _all_were_read(self, blend: Blend, step: Step) -> bool:
        """Whether each source has had the whole pass that the epoch is to have."""
        if blend.stopping != "all_exhausted":
            return False
        return all(self._parts[blend.names[number]].passes for number in step.later)

    def _end_pass(self) -> None:
        """Begin another pass of the source whose turn it is, or end it, or the shard.

        Raises:
            StopIteration: the shard has ended.
            ConfigurationError: the pass had no sample.
        """
        self._settle()
        part, number, blend = self._part, self._turns[0], self._since.blend
        part.end_pass()
        # The end of the pass may have drawn, and a resume does not read it.
        reseed()
        if has_ended := self._has_ended(part.name, blend.limits[number]):
            # The others share its turns from here on.
            self._origin, self._turns = self._position, []
        self._move_anchor()
        step = step_at(blend.weights, self._share, self._position)
        if blend.stopping == "first_exhausted" or self._all_were_read(blend, step):
            self._over, self._turns = True, []
            raise StopIteration
        if not has_ended:
            self._takes[number] = self._take_of(number)

    def _move_anchor(self) -> None:
        """Read on from here, unless a source without a state is in the middle of a pass."""
        stateless = [part for part in self._parts.values() if part.keeps_state is False]
        if self._anchor is None or any(part.given for part in stateless):
            return
        is_open = any(part.is_open for part in stateless)
        self._anchor = (self._position, self._present()) if is_open else None

    # ---- samples

    def _open_all(self) -> None:
        """Open the sources with a weight, which shows whether they have a state."""
        for number, name in enumerate(self._blend.names):
            if any(weights[number] for _, weights in self._blend.weights.knots):
                self._open(self._parts[name])

    def _open(self, part: Part) -> Callable[[], Any]:
        before = None if part.keeps_state or self._anchor else self._present()
        take = part.open()
        if part.keeps_state is False and before is not None:
            self._anchor = self._position, before
        return take

    def _take_of(self, number: int) -> Callable[[], Any]:
        """What takes the next sample of a source."""
        part = self._parts[self._since.blend.names[number]]
        if part.is_absent:
            return partial(self._left_out, part, number)
        if not part.is_open:
            return partial(self._opened_first, part, number)
        if part.keeps_state is False and not part.given:
            return partial(self._first_of_pass, part, number)
        return self._with_name(part)

    def _opened_first(self, part: Part, number: int) -> Any:
        self._settle()
        self._open(part)
        self._takes[number] = self._take_of(number)
        return self._takes[number]()

    def _first_of_pass(self, part: Part, number: int) -> Any:
        # A resume may begin here, within a batch that has one seed.
        reseed()
        self._takes[number] = self._with_name(part)
        return self._takes[number]()

    def _with_name(self, part: Part) -> Callable[[], Any]:
        take = self._open(part)
        return take if self._source_key is None else partial(self._named, take, part.name)

    def _named(self, take: Callable[[], Any], name: str) -> Any:
        sample, key = take(), self._source_key
        if not isinstance(sample, Mapping):
            raise ConfigurationError(
                f"source_key={key!r}: a sample of source {name!r} is a {type(sample).__name__}, "
                "but only a dict can hold the name of its source; leave source_key= out, or let "
                "the source yield dicts"
            )
        if key in sample:
            raise ConfigurationError(
                f"source_key={key!r}: samples of source {name!r} already have this key; choose "
                "another one"
            )
        return {**sample, key: name}

    def _left_out(self, part: Part, number: int) -> None:
        """Stands for a sample of a source that was left out, which was delivered before."""
        limit = self._since.blend.limits[number]
        lags = self._was_behind or self._reads_again
        if lags or (limit is not None and part.passes + 1 >= limit):
            reason = (
                "some sources have no state, so the resume reads this shard again"
                if lags
                else "it is in its last pass by max_passes="
            )
            raise StateMismatchError(
                f"source {part.name!r} was left out of the mixture, but {reason}, and needs its "
                "samples: keep the source in the mixture with a weight of 0, in this run at least"
            )
        self.has_gaps = True
