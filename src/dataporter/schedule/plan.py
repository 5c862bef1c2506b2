"""The plan: an order's positions cut into batches for a batch size and a world (C4, C7)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plan", "Stretch", "Tail"]

# A stretch of an epoch's positions: the first and the one after the last.
Stretch = tuple[int, int]
# The treatment of an incomplete last global batch.
Tail = Literal["pad", "drop", "uneven"]


@dataclass(frozen=True, slots=True)
class Plan:
    """(step, rank) → positions, for one epoch or for what is left of one.

    A global batch is a run of ``batch_size * world_size`` positions, in which each rank takes
    ``batch_size`` neighbours; so the same global batch size gives the same sets of samples for
    every world size.

    An incomplete last global batch, the tail, is dropped (``"drop"``) or shared. ``"pad"``: all
    ranks take as many, and as few samples as it takes to make that possible are repeated from the
    start of the epoch, as ``torch.utils.data.DistributedSampler`` does. ``"uneven"``: nothing is
    repeated, the lower ranks take one sample more, and ranks that nothing is left for have one step
    fewer.

    Attributes:
        length: positions of a whole epoch.
        batch_size: samples of a batch on one rank.
        world_size: number of data-parallel ranks.
        tail: the treatment of an incomplete last global batch.
        first_step: number of the plan's first step within the epoch.
        first_position: the positions before it are done.
        done: stretches after ``first_position`` that are done as well.
        repeats_from: the position from which ``"pad"`` repeats samples.
    """

    length: int
    batch_size: int
    world_size: int = 1
    tail: Tail = "pad"
    first_step: int = 0
    first_position: int = 0
    done: tuple[Stretch, ...] = ()
    repeats_from: int = 0

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    @property
    def left(self) -> int:
        """Number of positions that the plan has batches for."""
        return self.length - self.first_position - sum(stop - start for start, stop in self.done)

    @property
    def last_step(self) -> int:
        """Number of the step after the plan's last, over all ranks."""
        return self.end(rank=0)

    def end(self, rank: int) -> int:
        """Number of the step after the last one in which this rank has a batch."""
        whole = self.left // self.global_batch_size
        return self.first_step + whole + (1 if self._share(rank)[1] else 0)

    def rank_length(self, rank: int) -> int:
        """How many samples this rank gets, repeats included."""
        whole = self.left // self.global_batch_size
        return whole * self.batch_size + self._share(rank)[1]

    @property
    def total_length(self) -> int:
        """How many samples all ranks get together, repeats included."""
        rest = self.left % self.global_batch_size
        whole = self.left - rest
        if self.tail == "drop":
            return whole
        if self.tail == "pad":
            return whole + -(-rest // self.world_size) * self.world_size
        return whole + rest

    def resumed(self, step: int, position: int, done: tuple[Stretch, ...] = ()) -> Plan:
        """The plan for what is left after ``step`` batches and ``position`` samples of the epoch.

        Each remaining position appears exactly once, whatever batch size and world the samples
        before had. Where the position lies between two batches of this plan, it is this plan.
        """
        if not done and step <= self.last_step and position == self.position_before(step):
            return self
        return replace(self, first_step=step, first_position=position, done=done)

    def position_before(self, step: int) -> int:
        """Position at which ``step`` begins; the end of the epoch for steps past the last."""
        offset = min((step - self.first_step) * self.global_batch_size, self.left)
        if offset == self.left:
            return self.length
        if not self.done:
            return self.first_position + offset
        return int(self._positions_of(np.array([offset], dtype=np.int64))[0])

    def stretches(self, step: int) -> tuple[Stretch, ...]:
        """The positions of this step over all ranks, without repeats, as ascending stretches."""
        return next(self.stretches_from(step))

    def stretches_from(self, step: int) -> Iterator[tuple[Stretch, ...]]:
        """:meth:`stretches` of this step and all that follow, at less cost than step by step."""
        size, left = self.global_batch_size, self.left
        begin = (step - self.first_step) * size
        while True:
            end = min(begin + size, left)
            if self.done:
                positions = self._positions_of(np.arange(begin, end))
                breaks = np.flatnonzero(np.diff(positions) != 1) + 1
                runs = np.split(positions, breaks)
                yield tuple((int(run[0]), int(run[-1]) + 1) for run in runs)
            else:
                yield ((self.first_position + begin, self.first_position + end),)
            begin += size

    def blocks(
        self, rank: int, step: int, block_length: int
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """From ``step`` on: a block's first step, and its positions of shape (steps, batch).

        Blocks hold about ``block_length`` positions, so that an order computes many batches at
        once. The first is one batch, and each other at most four times the one before, so that the
        first batches do not wait for later ones. An incomplete last batch is one block.
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
            offsets = starts[:, None] + np.arange(self.batch_size, dtype=np.int64)
            yield step, self._positions_of(offsets)
            step += count
            steps_at_once = min(4 * steps_at_once, max(1, block_length // self.batch_size))
        if step < self.end(rank):
            yield step, self._positions_of(self._offsets(step, rank))[None]

    def positions(self, step: int, rank: int) -> NDArray[np.int64]:
        """Positions of one batch of one rank, shape (batch,)."""
        return self._positions_of(self._offsets(step, rank))

    def padding(self, step: int, rank: int) -> NDArray[np.bool_]:
        """Which samples of one batch of one rank are repeats, bool of shape (batch,)."""
        return self._offsets(step, rank) >= self.left

    def _offsets(self, step: int, rank: int) -> NDArray[np.int64]:
        """One batch of one rank, counted from the plan's first position."""
        begin = (step - self.first_step) * self.global_batch_size
        if begin + self.global_batch_size <= self.left:
            start, count = begin + rank * self.batch_size, self.batch_size
        else:
            start, count = self._share(rank)
        return np.arange(start, start + count, dtype=np.int64)

    def _share(self, rank: int) -> tuple[int, int]:
        """This rank's share of the tail: the first sample's offset, and the number of samples."""
        rest = self.left % self.global_batch_size
        begin = self.left - rest
        if self.tail == "drop":
            return begin, 0
        if self.tail == "pad":
            count = -(-rest // self.world_size)
            return begin + rank * count, count
        count, more = divmod(rest, self.world_size)
        return begin + rank * count + min(rank, more), count + (rank < more)

    def _positions_of(self, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets in the plan → positions; offsets past the end wrap to ``repeats_from``."""
        positions = offsets + self.first_position
        if self.done:
            starts, stops = np.array(self.done, dtype=np.int64).T
            skipped = np.cumsum(stops - starts)
            # The offset at which each done stretch would begin, if none before it were done.
            thresholds = starts - self.first_position - (skipped - (stops - starts))
            passed = np.searchsorted(thresholds, offsets, side="right")
            positions += np.concatenate(([0], skipped))[passed]
        repeated = offsets >= self.left
        if repeated.any():
            again = (offsets[repeated] - self.left) % (self.length - self.repeats_from)
            positions[repeated] = self.repeats_from + again
        return positions
