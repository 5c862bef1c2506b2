"""A walk through a custom sampler: its batches of indices, counted and summed up."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator
from torch.utils.data import BatchSampler

from dataporter.errors import DataPorterError, warn
from dataporter.schedule.sampler_epochs import SamplerEpochs
from dataporter.schedule.sampler_parts import generators_of, is_known, parts_of_sampler, shared_by
from dataporter.schedule.sampler_record import Place, Snapshot, Way
from dataporter.schedule.snapshot import decode, encode, keeps_state
from dataporter.seeding.generators import isolated_generators, seed_generators
from dataporter.seeding.hashing import STREAM_SAMPLER, fold

__all__ = ["Differs", "Walk", "WalkedSampler", "reached"]


class Differs(Exception):
    """A sampler did not yield again what it had yielded; holds the walk, where it ended."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk


@dataclass(frozen=True)
class WalkedSampler:
    """A custom sampler with its parts, and how its batches are counted.

    Attributes:
        batches: yields a batch of indices at a time, or single indices (``batched=False``).
        world_size: number of ranks, each of which has a sampler like this one.
        shared: objects that a copy of the sampler shares with it, such as the dataset.
        built_with: the states at construction of the generators in the parts.
    """

    batches: Iterable[Any]
    batched: bool
    world_size: int
    shared: Sequence[Any]
    parts: list[Any]
    epochs: SamplerEpochs
    generators: list[Generator]
    built_with: list[torch.Tensor]

    @classmethod
    def of(
        cls, batches: Iterable[Any], *, batched: bool, world_size: int, shared: Sequence[Any]
    ) -> WalkedSampler:
        """The sampler as it is at construction."""
        parts = parts_of_sampler(batches)
        generators = generators_of(parts)
        return cls(
            batches,
            batched,
            world_size,
            shared,
            parts,
            SamplerEpochs(parts),
            generators,
            [generator.get_state() for generator in generators],
        )

    @property
    def name(self) -> str:
        """The user's class, for errors."""
        batches: Any = self.batches
        return type(batches.sampler if type(batches) is BatchSampler else batches).__name__

    @property
    def is_known(self) -> bool:
        """Whether it consists of torch's own samplers, which have no memory."""
        return is_known(self.parts)

    def copied(self) -> WalkedSampler | None:
        """A copy that shares the data and nothing else; None where a part cannot be copied."""
        shared = [*self.shared, *shared_by(self.parts)]
        memo: dict[int, Any] = {id(one): one for one in shared}
        inner = (self.batches, self.parts, self.epochs, self.generators)
        try:
            batches, parts, epochs, generators = copy.deepcopy(inner, memo)
        except Exception:  # whatever the user's class raises
            return None
        return WalkedSampler(
            batches,
            self.batched,
            self.world_size,
            self.shared,
            parts,
            epochs,
            generators,
            self.built_with,
        )

    @contextmanager
    def looked_at(self) -> Iterator[WalkedSampler | None]:
        """A sampler to walk through that leaves this one as it is; None where there is none."""
        if not self.is_known:
            yield self.copied()
            return
        # Copies of these cost more, and epochs and generators are all that a walk moves.
        epochs = self.epochs.saved()
        states = [generator.get_state() for generator in self.generators]
        try:
            yield self
        finally:
            self.epochs.restore(epochs)
            for generator, state in zip(self.generators, states):
                generator.set_state(state)

    def start_generators(self, epoch: int, key: int) -> None:
        """Make the order a function of (seed, epoch), as far as the generators decide it."""
        for generator, built_with in zip(self.generators, self.built_with):
            if epoch == 0:
                generator.set_state(built_with)
            else:
                generator.manual_seed(key)

    # ---- the sampler's own state

    def holders(self) -> list[int]:
        """The parts that keep a state: the sampler, or else those in it."""
        found = [i for i, part in enumerate(self.parts) if keeps_state(part)]
        return [0] if 0 in found else found

    def states(self) -> dict[str, Any]:
        """The states of the parts that keep one."""
        return {str(i): self.parts[i].state_dict() for i in self.holders()}

    def load(self, states: dict[str, Any]) -> None:
        """Load what :meth:`states` returned."""
        for i, state in states.items():
            self.parts[int(i)].load_state_dict(state)


class Walk:
    """One pass over a sampler.

    The global generators are seeded before each batch of indices is drawn, and restored afterwards,
    and the sampler's generators are set at the start, so that the order is a function of (seed,
    epoch) as far as these decide it.

    Attributes:
        step, position, digest: what was drawn, as a progress counts it.
        start: the sampler's own state before the pass; None where it keeps none.
        ended: whether the sampler has no batches left.
        seeds_each: seed the global generators before each batch; otherwise the caller does, for a
            walk that is only compared with others of its kind.
    """

    def __init__(self, sampler: WalkedSampler, epoch: int, seed: int) -> None:
        self._sampler = sampler
        self._epoch = epoch
        self._key = fold(seed, epoch, STREAM_SAMPLER)
        self._iterator: Iterator[Any] = iter(())
        self._kept: list[list[Any]] = []
        self._keeps_state = False
        self._is_isolated = False
        self.seeds_each = True
        self.step, self.position, self.digest = 0, 0, 0
        self.start: str | None = None
        self.ended = False

    def begin(self, start: str | None = None) -> Walk:
        """Begin the pass, once the sampler has loaded its state before it, if there is one."""
        sampler = self._sampler
        if start is not None:
            with isolated_generators():
                sampler.load(decode(start))
        sampler.start_generators(self._epoch, self._key)
        if sampler.holders():
            self.start = self._encoded(sampler.states)
        self._iterate()
        return self

    def restore(self, snapshot: Snapshot) -> Walk:
        """Stand where a snapshot was taken."""
        states = decode(snapshot.text)
        self._sampler.start_generators(self._epoch, self._key)
        with isolated_generators():
            self._sampler.load(states["parts"])
        self._iterate()
        if "iterator" in states:
            with isolated_generators():
                self._iterator.load_state_dict(states["iterator"])  # type: ignore[attr-defined]
        self.step, self.position, self.digest, _ = snapshot
        return self

    def snapshot(self) -> Snapshot | None:
        """The sampler's own state now; None where it keeps none."""
        if self._kept or self.ended or not self._keeps_state:
            return None
        text = self._encoded(self._states)
        return None if text is None else Snapshot(self.step, self.position, self.digest, text)

    def draw(self) -> list[Any] | None:
        """The next batch of indices, or None at the end."""
        drawn = self._kept.pop() if self._kept else self._drawn()
        if drawn is not None:
            self.step += 1
            self.position += len(drawn) * self._sampler.world_size
            self.digest = _digest(drawn, self.digest)
        return drawn

    def skip_to(self, place: Place, *, by_position: bool = False) -> None:
        """Draw the batches before a place.

        Args:
            by_position: the step also counts batches past the position.
        """
        with self.isolated():
            while self.step < place.step or by_position:
                before = self.step, self.position, self.digest
                drawn = self.draw()
                if drawn is None:
                    return
                if by_position and self.position > place.position:
                    self.step, self.position, self.digest = before
                    self._kept.append(drawn)
                    return

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Restore the global generators once after many batches, which is faster."""
        self._is_isolated = True
        try:
            with isolated_generators():
                yield
        finally:
            self._is_isolated = False

    def _iterate(self) -> None:
        with isolated_generators():
            seed_generators(self._key)
            self._iterator = iter(self._sampler.batches)
        self._keeps_state = keeps_state(self._iterator) or bool(self._sampler.holders())

    def _drawn(self) -> list[Any] | None:
        if self.ended:
            return None
        try:
            with nullcontext() if self._is_isolated else isolated_generators():
                if self.seeds_each:
                    seed_generators(fold(self._key, self.step))
                drawn = next(self._iterator)
        except StopIteration:
            self.ended = True
            return None
        return list(drawn) if self._sampler.batched else [drawn]

    def _states(self) -> dict[str, Any]:
        states: dict[str, Any] = {"parts": self._sampler.states()}
        # A sampler that is its own iterator has one state, which is not saved twice.
        if keeps_state(self._iterator) and self._iterator is not self._sampler.batches:
            states["iterator"] = self._iterator.state_dict()  # type: ignore[attr-defined]
        return states

    def _encoded(self, states: Any) -> str | None:
        try:
            with isolated_generators():
                return encode(states())
        except (DataPorterError, TypeError, RecursionError) as error:
            self._keeps_state = False
            warn(
                f"the sampler {self._sampler.name} has a state_dict() that is no part of the "
                f"loader's state: {error}. The loader resumes it as a sampler without one",
                RuntimeWarning,
            )
            return None


def reached(
    sampler: WalkedSampler,
    place: Place,
    seed: int,
    ways: Sequence[Way],
    *,
    by_position: bool = False,
    unchecked: bool = False,
) -> Walk:
    """A walk through the sampler that stands at a place.

    Args:
        ways: to get there, tried one after the other.
        by_position: the place's step also counts batches past its position.
        unchecked: the place's digest is not this sampler's.

    Raises:
        Differs: the sampler has not yielded the place's indices, whichever way.
    """
    for way in ways:
        walk = Walk(sampler, place.epoch, seed)
        if way == "snapshot" and place.snapshot is not None:
            walk.restore(place.snapshot).start = place.start
        else:
            walk.begin(place.start if way == "start" else None)
        walk.skip_to(place, by_position=by_position)
        is_there = walk.position == place.position and (by_position or walk.step == place.step)
        if is_there and (unchecked or walk.digest == place.digest):
            return walk
    raise Differs(walk)


def _digest(indices: list[Any], before: int) -> int:
    text = repr(indices)
    # An object that prints its address prints another one in the next process.
    return before if " at 0x" in text else zlib.crc32(text.encode(), before)
