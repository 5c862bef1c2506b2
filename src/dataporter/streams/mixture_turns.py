"""Turns: from which source each sample of a mixture's shard comes (C14)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from dataporter.errors import InvalidStateError
from dataporter.orders.mixture.apportion import Apportionment
from dataporter.orders.mixture.interleave import interleaved, period_for
from dataporter.orders.mixture.phase import Blend
from dataporter.orders.mixture.weights import Weights
from dataporter.seeding.hashing import fold_each
from dataporter.state.schema import DAMAGED, shown

__all__ = ["Share", "Since", "Step", "blend_of", "found_in", "since", "step_at", "turns_from"]

# At least so many turns are worked out at a time, which takes about 0.1 µs for each.
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Share:
    """A shard of a mixture: its number among all shards."""

    index: int
    num_shards: int

    def of(self, samples: int) -> int:
        """Its share of so many samples; the shares of all shards sum to these."""
        before = samples * self.index // self.num_shards
        return samples * (self.index + 1) // self.num_shards - before


class Step(NamedTuple):
    """Constant weights within a shard.

    Attributes:
        begin, end: positions in the shard; without an end None.
        weights: of the sources, as whole numbers.
        later: the numbers of the sources that have a weight in this step or a later one.
    """

    begin: int
    end: int | None
    weights: tuple[int, ...]
    later: frozenset[int]


def blend_of(blend: Blend) -> Blend:
    """The blend with its sources by name: how a user lists them does not count."""
    by_name = sorted(range(len(blend.names)), key=blend.names.__getitem__)

    def sorted_of(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[number] for number in by_name)

    knots = tuple((at, sorted_of(weights)) for at, weights in blend.weights.knots)
    return Blend(
        sorted_of(blend.names),
        sorted_of(blend.lengths),
        Weights(knots, blend.weights.linear),
        sorted_of(blend.limits),
        blend.stopping,
    )


@lru_cache(maxsize=256)
def _steps(weights: Weights, num_shards: int) -> tuple[Step, ...]:
    """The steps in one of so many shards, which come to their positions together."""
    begins = {begin // num_shards: whole for begin, whole in weights.steps()}
    later: frozenset[int] = frozenset()
    steps: list[Step] = []
    end = None
    for begin, whole in sorted(begins.items(), reverse=True):
        later |= {number for number, weight in enumerate(whole) if weight}
        steps.append(Step(begin, end, whole, later))
        end = begin
    return tuple(reversed(steps))


def step_at(weights: Weights, share: Share, position: int) -> Step:
    """The step in which a position of a shard lies."""
    steps = _steps(weights, share.num_shards)
    return next(step for step in reversed(steps) if step.begin <= position)


@lru_cache(maxsize=256)
def _apportionment(weights: tuple[int, ...]) -> tuple[Apportionment, int]:
    shares = Apportionment.of(weights)
    return shares, period_for(shares.total, sum(weight > 0 for weight in weights))


def turns_from(
    position: int, weights: tuple[int, ...], *, origin: int, end: int | None, key: int
) -> list[int]:
    """The numbers of the sources from a position on, up to the end of a period.

    Args:
        weights: as whole numbers, not all 0.
        origin: where these weights began to hold.
        end: no turn lies at this position or beyond; the last period before it is shorter.
        key: of the shard and its epoch.
    """
    shares, period = _apportionment(weights)
    first = (position - origin) // period
    starts = origin + (first + np.arange(-(-_AT_ONCE // period), dtype=np.int64)) * period
    stops = starts + period
    if end is not None:
        starts = starts[starts < end]
        stops = np.minimum(stops[: len(starts)], end)
    counts = shares.counts(np.concatenate((starts, stops)) - origin).reshape(-1, 2, len(starts))
    keys = fold_each(np.array([key], dtype=np.uint64), starts.astype(np.uint64))
    sources, _ = interleaved(counts[:, 1] - counts[:, 0], keys)
    # Only the last period can be shorter than the others.
    found: list[int] = sources.ravel()[: int(stops[-1] - starts[0])].tolist()
    return found[position - int(starts[0]) :]


# ---- in a state


def _written(blend: Blend) -> list[Any]:
    """A blend as JSON types."""
    knots = [[at, list(weights)] for at, weights in blend.weights.knots]
    return [
        list(blend.names),
        knots,
        blend.weights.linear,
        list(blend.limits),
        blend.stopping,
    ]


def _read(value: Any) -> Blend:
    """The blend that was written.

    Raises:
        InvalidStateError: the value is something else.
    """
    try:
        names, knots, linear, limits, stopping = value
        read = tuple((at, tuple(weights)) for at, weights in knots)
        sizes = {len(limits), *(len(weights) for _, weights in read)}
        if sizes != {len(names)} or read[0][0] != 0:
            raise ValueError
        lengths = (0,) * len(names)
        return Blend(tuple(names), lengths, Weights(read, linear), tuple(limits), stopping)
    except (TypeError, ValueError, IndexError):
        raise InvalidStateError(
            f"the state of a mixture of streams holds {shown(value)} as its weights: {DAMAGED}"
        ) from None


@dataclass(frozen=True, slots=True)
class Since:
    """A blend from a position of a shard on."""

    begin: int
    blend: Blend

    def written(self) -> list[Any]:
        """As JSON types."""
        return [self.begin, _written(self.blend)]

    @classmethod
    def read(cls, value: Any) -> Since:
        """What was written."""
        begin, blend = value
        return cls(begin, _read(blend))


def since(written: Iterable[Any], present: Blend, position: int) -> list[Since]:
    """The blends of a state, and the present one from a position on unless it is in force."""
    known = [Since.read(each) for each in written]
    if known[-1].blend == present:
        return known
    return [*(each for each in known if each.begin < position), Since(position, present)]


def found_in(states: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The state of a mixture's shard in a snapshot; None if it is of another stream."""
    iterator = (states or {}).get("iterator")
    return iterator if isinstance(iterator, Mapping) and "mixture" in iterator else None
