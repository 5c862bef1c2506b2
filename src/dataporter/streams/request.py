"""Requests to a stream, and the progress that delivering their batches makes (C1, C10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dataporter.streams.shard import ShardState

__all__ = ["StreamProgress", "StreamRequest"]


class StreamRequest(NamedTuple):
    """One batch of a shard: be at an offset, and read so many samples from there.

    Attributes:
        seed, epoch, step: the loader's seed, and which batch this will be on this rank, unless
            shards end before.
        pass_id: tells the passes of a loader apart: a reader that an earlier one has left is not
            where it seems.
        reader: says who serves it: always the same worker, since it has the shard open.
        batches: how many batches of the shard come before it.
        offset: of the first sample.
        length: how many samples; 0 to come to the offset and no further.
        start: a state of the shard at or before that offset, for who has not got it open.
    """

    seed: int
    epoch: int
    step: int
    pass_id: str
    reader: int
    batches: int
    offset: int
    length: int
    start: ShardState

    @property
    def indices(self) -> tuple[()]:
        """Of what the batch is made is seen only when it is read."""
        return ()

    def packed(self) -> StreamRequest:
        """For a worker."""
        return self

    def unpacked(self) -> StreamRequest:
        """In the worker."""
        return self

    def described(self) -> str:
        """For people."""
        return (
            f"{self.length} samples of shard {self.start.shard} of the stream from offset "
            f"{self.offset} (epoch {self.epoch})"
        )


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """How far an epoch of a stream has come.

    Attributes:
        epoch: number of the epoch.
        step: batches delivered on this rank.
        shards: by number, those that something was delivered of.
    """

    epoch: int = 0
    step: int = 0
    shards: Mapping[int, ShardState] = field(default_factory=dict)

    def after(self, delivers: ShardState | None) -> StreamProgress:
        """The progress once a batch is delivered that leaves its shard in this state.

        None is for a batch that failed and was passed over: the shard's state is unknown then.
        """
        state = delivers
        if state is None:
            return self
        shards = {**self.shards, state.shard: state}
        return StreamProgress(self.epoch, self.step + 1, shards)

    @property
    def position(self) -> int:
        """As :attr:`delivered`: a shard's samples are delivered in sequence."""
        return self.delivered

    @property
    def delivered(self) -> int:
        """How many samples."""
        return sum(state.offset for state in self.shards.values())
