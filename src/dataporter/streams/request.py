"""Requests for batches of a stream, and the progress that delivering them makes (C1, C10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dataporter.streams.leftovers import Leftover
from dataporter.streams.shard import ShardState

__all__ = ["JoinRequest", "StreamProgress", "StreamRequest"]


class StreamRequest(NamedTuple):
    """One batch of a shard: ``length`` samples from an offset on.

    Attributes:
        seed: of the loader.
        epoch, step: of the batch on this rank; the step is lower if shards end before it.
        pass_id: identifies the loader's pass: readers of an earlier pass are not reused.
        reader: selects the worker: the same one for all requests of a shard, which it keeps open.
        batches: number of batches of the shard before this one.
        offset: of the first sample in the shard.
        length: number of samples; 0 only moves the reader to the offset.
        start: a state of the shard at or before the offset, for a worker that has to open it.
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
        """Empty: the samples of a batch are known only once they are read."""
        return ()

    def packed(self) -> StreamRequest:
        """The request as it is sent to a worker."""
        return self

    def unpacked(self) -> StreamRequest:
        """The request as the worker uses it."""
        return self

    def described(self) -> str:
        """The request in words, for errors."""
        return (
            f"{self.length} samples of shard {self.start.shard} of the stream from offset "
            f"{self.offset} (epoch {self.epoch})"
        )


class JoinRequest(NamedTuple):
    """One batch of samples that were left over by shards, which come with the request.

    Attributes:
        seed, epoch, step, reader: as in a :class:`StreamRequest`.
        leftovers: the samples.
    """

    seed: int
    epoch: int
    step: int
    reader: int
    leftovers: tuple[Leftover, ...]

    @property
    def indices(self) -> tuple[()]:
        """Empty, as for a :class:`StreamRequest`."""
        return ()

    def packed(self) -> JoinRequest:
        """The request as it is sent to a worker, without the failures, which are known here."""
        return self._replace(leftovers=tuple(one._replace(failures=()) for one in self.leftovers))

    def unpacked(self) -> JoinRequest:
        """The request as the worker uses it."""
        return self

    def described(self) -> str:
        """The request in words, for errors."""
        parts = [f"{one.length} of shard {one.shard} from {one.first}" for one in self.leftovers]
        return f"leftover samples of the stream ({', '.join(parts)}; epoch {self.epoch})"


@dataclass(frozen=True, slots=True)
class StreamProgress:
    """The progress of an epoch of a stream.

    Attributes:
        epoch: number of the epoch.
        step: batches delivered on this rank.
        shards: by number, the states of the shards that have delivered a batch.
    """

    epoch: int = 0
    step: int = 0
    shards: Mapping[int, ShardState] = field(default_factory=dict)

    def after(self, delivers: Sequence[ShardState] | None) -> StreamProgress:
        """The progress once a batch is delivered that leaves shards in these states.

        None is for a batch that failed and was passed over: the shards' states are unknown then.
        """
        if delivers is None:
            return self
        shards = {**self.shards, **{state.shard: state for state in delivers}}
        return StreamProgress(self.epoch, self.step + 1, shards)

    def start_of(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> StreamProgress:
        """The start of an epoch."""
        return StreamProgress(epoch)

    @property
    def position(self) -> int:
        """As :attr:`delivered`: a shard's samples are delivered in sequence."""
        return self.delivered

    @property
    def delivered(self) -> int:
        """Number of delivered samples."""
        return sum(state.offset for state in self.shards.values())
