"""The plan: an order's positions cut into batches for a batch size and a world (C4, C7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plan", "Stretch"]

# A stretch of an epoch's positions: the first and the one after the last.
Stretch = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """(step, rank) → positions, for one epoch or for what is left of one.

    A global batch is a run of ``batch_size * world_size`` positions, in which each rank takes
    ``batch_size`` neighbours; so the same global batch size gives the same sets of samples for
    every world size. An incomplete last global batch is dropped (``drop_last``) or shared evenly:
    all ranks take as many, and as few samples as it takes to make that possible are repeated from
    the start of the epoch, as ``torch.utils.data.DistributedSampler`` does.

    Attributes:
        length: positions of a whole epoch.
        batch_size: samples of a batch on one rank.
        world_size: number of data-parallel ranks.
        drop_last: leave an incomplete last global batch out.
        first_step: number of the plan's first step within the epoch.
        first_position: the positions before it are done.
        done: stretches after ``first_position`` that are done as well.
    """

    length: int
    batch_size: int
    world_size: int = 1
    drop_last: bool = False
    first_step: int = 0
    first_position: int = 0
    done: tuple[Stretch, ...] = ()

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    @property
    def left(self) -> int:
        """How many positions the plan still has to hand out."""
        return self.length - self.first_position - sum(stop - start for start, stop in self.done)

    @property
    def last_step(self) -> int:
        """Number of the step after the plan's last."""
        whole, rest = divmod(self.left, self.global_batch_size)
        return self.first_step + whole + (1 if rest and not self.drop_last else 0)

    @property
    def rank_length(self) -> int:
        """How many samples one rank gets, repeats included."""
        whole, rest = divmod(self.left, self.global_batch_size)
        share = 0 if self.drop_last else -(-rest // self.world_size)
        return whole * self.batch_size + share

    def resumed(self, step: int, position: int, done: tuple[Stretch, ...] = ()) -> Plan:
        """The plan for what is left after ``step`` batches and ``position`` samples of the epoch.

        Whatever the batch size and world the samples before were handed out with: each position
        that is left comes exactly once. Where the cut falls between two batches of this plan, it
        is this plan.
        """
        if not done and step <= self.last_step and position == self.position_before(step):
            return self
        return replace(self, first_step=step, first_position=position, done=done)

    def position_before(self, step: int) -> int:
        """Position at which ``step`` begins; the end of the epoch for steps past the last."""
        place = min((step - self.first_step) * self.global_batch_size, self.left)
        if place == self.left:
            return self.length
        return int(self._positions_of(np.array([place], dtype=np.int64))[0])

    def stretches(self, step: int) -> tuple[Stretch, ...]:
        """The positions of this step over all ranks, without repeats, as ascending stretches."""
        begin = (step - self.first_step) * self.global_batch_size
        end = min(begin + self.global_batch_size, self.left)
        if not self.done:
            return ((self.first_position + begin, self.first_position + end),)
        positions = self._positions_of(np.arange(begin, end))
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(positions, breaks))

    def blocks(
        self, rank: int, step: int, block_length: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """From ``step`` on: a block's first step, and its positions of shape (steps, batch).

        Blocks hold about ``block_length`` positions, so that an order computes many batches in one
        go; the first is one step alone and each other at most twice the one before, so that the
        first batches do not wait for later ones. An incomplete last batch is a block of its own.
        """
        whole_steps = self.left // self.global_batch_size
        end_of_whole = self.first_step + whole_steps
        steps_at_once = 1
        while step < end_of_whole:
            count = min(steps_at_once, end_of_whole - step)
            starts = np.arange(
                step - self.first_step, step - self.first_step + count, dtype=np.int64
            )
            starts = starts * self.global_batch_size + rank * self.batch_size
            places = starts[:, None] + np.arange(self.batch_size, dtype=np.int64)
            yield step, self._positions_of(places)
            step += count
            steps_at_once = min(2 * steps_at_once, max(1, block_length // self.batch_size))
        if step < self.last_step:
            begin = whole_steps * self.global_batch_size
            share = -(-(self.left - begin) // self.world_size)
            begin += rank * share
            yield step, self._positions_of(np.arange(begin, begin + share, dtype=np.int64))[None]

    def positions(self, step: int, rank: int) -> NDArray[np.int64]:
        """Positions of one batch of one rank, shape (batch,)."""
        _, block = next(self.blocks(rank, step, self.batch_size))
        positions: NDArray[np.int64] = block[0]
        return positions

    def _positions_of(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places among what is left → positions; places past the end wrap to the epoch's start."""
        positions = places + self.first_position
        if self.done:
            starts, stops = np.array(self.done, dtype=np.int64).T
            skipped = np.cumsum(stops - starts)
            # The place at which each done stretch would have begun, had none before it been done.
            thresholds = starts - self.first_position - (skipped - (stops - starts))
            passed = np.searchsorted(thresholds, places, side="right")
            positions += np.concatenate(([0], skipped))[passed]
        repeated = places >= self.left
        if repeated.any():
            positions[repeated] = (places[repeated] - self.left) % self.length
        return positions
