"""Requests for batches of a stream, and the progress that delivering them makes (C1, C10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple
from uuid import uuid4

from dataporter.streams.leftovers import Leftover
from dataporter.streams.shard import ShardState

__all__ = ["JoinRequest", "StreamProgress", "StreamRequest"]


class StreamRequest(NamedTuple):
    """One batch of a shard: ``length`` samples from an offset on.

    Attributes:
        seed: of the loader.
        epoch: in which the stream was opened.
        step: of the batch on this rank; it is lower if shards end before it.
        pass_id: identifies the passes that share the open shards: readers of others are not reused.
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
        continued: how many epochs before this one the stream was opened. Such epochs were ended by
            ``steps_per_epoch``, or left, and each continues where the one before has come to.
        earlier: samples of these epochs, on this rank.
        limit: ``steps_per_epoch`` of the loader; None where an epoch ends with the data.
        pass_id: identifies the passes that share the open shards.
    """

    epoch: int = 0
    step: int = 0
    shards: Mapping[int, ShardState] = field(default_factory=dict)
    continued: int = 0
    earlier: int = 0
    limit: int | None = None
    pass_id: str = field(default_factory=lambda: uuid4().hex, compare=False, repr=False)

    @property
    def opened_in(self) -> int:
        """The epoch in which the stream was opened; its order and its random values are of it."""
        return self.epoch - self.continued

    @property
    def continues(self) -> bool:
        return self.step == 0 and bool(self.shards)

    def after(self, delivers: Sequence[ShardState] | None) -> StreamProgress:
        """The progress once a batch is delivered that leaves shards in these states.

        None is for a batch that failed and was passed over: the shards' states are unknown then.
        """
        if delivers is None:
            return self
        shards = dict(self.shards)
        for state in delivers:
            shards[state.shard] = state
        # Once a batch, and replace() takes three times as long.
        return StreamProgress(
            self.epoch,
            self.step + 1,
            shards,
            self.continued,
            self.earlier,
            self.limit,
            self.pass_id,
        )

    def start_of(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> StreamProgress:
        """The start of an epoch that was set, with what the workers' datasets carry to it."""
        carried = {
            shard: ShardState(shard, beginning=state.beginning)
            for shard, state in self.shards.items()
            if state.beginning is not None
        }
        return StreamProgress(epoch, shards=carried, limit=self.limit)

    def closed(self, delivers: Sequence[ShardState]) -> StreamProgress:
        """The progress at the end of a pass, which leaves shards in these states."""
        return replace(self, shards={**self.shards, **{state.shard: state for state in delivers}})

    def following(self, epoch: int, *, chosen: bool = False, ended: bool = False) -> StreamProgress:
        """The start of an epoch whose pass follows this one.

        With a limit of steps it continues the stream, unless the data have ended before the limit.
        """
        if self.limit is None or (ended and self.step < self.limit):
            return self.start_of(epoch)
        continued = self.continued + epoch - self.epoch
        return replace(self, epoch=epoch, step=0, continued=continued, earlier=self.since_opened)

    @property
    def position(self) -> int:
        """As :attr:`delivered`: a shard's samples are delivered in sequence."""
        return self.delivered

    @property
    def delivered(self) -> int:
        """Number of delivered samples of this epoch."""
        return max(0, self.since_opened - self.earlier)

    @property
    def since_opened(self) -> int:
        """Number of delivered samples since the stream was opened."""
        return sum(state.offset for state in self.shards.values())
