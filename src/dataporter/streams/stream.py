"""A stream as one rank reads it, and its schedule: the rank's shards in turns (C10)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dataporter.errors import ConfigurationError, UnsupportedDatasetError, warn
from dataporter.streams.request import StreamProgress
from dataporter.streams.shard import ShardState
from dataporter.streams.sharding import Sharding
from dataporter.streams.turns import TurnOptions, Turns

__all__ = ["Stream", "StreamLookup", "StreamSchedule", "warn_of_length"]


@dataclass(frozen=True, slots=True)
class Stream:
    """An iterable dataset, divided into shards, as one rank of a world reads it.

    Attributes:
        sharding: opens the shards.
        rank, world_size, batch_size: as in the loader.
        num_workers: number of readers on this rank; 1 if the training process reads.
        drop_last: drop the last batch if it is incomplete.
        in_order: deliver the batches in an order that depends on the shards alone.
        snapshot_every: number of batches of a shard per snapshot.
        carries: each pass reads the dataset that the one before has left: in this process, or in
            persistent workers.
        fingerprint: identifies the data; None if the dataset has none.
        steps_per_epoch: as in the loader.
    """

    sharding: Sharding
    rank: int
    world_size: int
    batch_size: int | None
    num_workers: int
    drop_last: bool
    in_order: bool
    snapshot_every: int
    carries: bool
    fingerprint: str | None
    steps_per_epoch: int | None

    def shards(self) -> range:
        """The shards that this rank reads."""
        return self.shards_of(self.rank)

    def shards_of(self, rank: int) -> range:
        """The shards that a rank reads."""
        return self.sharding.shards(rank, self.world_size, self.num_workers)

    def with_workers(self, num_workers: int, progress: StreamProgress) -> Stream:
        """This stream with another number of workers, which users may set between two passes.

        Raises:
            ConfigurationError: the workers iterate over the dataset, in the middle of an epoch.
        """
        num_workers = max(1, num_workers)
        moved = self.sharding.name == "workers" and num_workers != self.num_workers
        if moved and any(state.offset for state in progress.shards.values()):
            raise ConfigurationError(
                f"num_workers was {self.num_workers} when this epoch of the stream began, but is "
                f"{num_workers} now: each worker iterates over this stream, so restore the number "
                "or start another epoch (set_epoch)"
            )
        return replace(self, num_workers=num_workers)

    @property
    def joins(self) -> bool:
        """Whether the leftovers of the shards are joined into batches.

        Workers that iterate over the dataset end with an incomplete batch each, as torch's do.
        """
        return self.sharding.name == "shards" and self.batch_size is not None

    def steps_of(self, samples: int) -> int:
        """Number of steps for this many samples, shared by the ranks that share the dataset."""
        # Ranks may have unequal shards, and workers incomplete batches, so the true number may be
        # another.
        batch = (self.batch_size or 1) * self.sharing
        return samples // batch if self.drop_last else -(-samples // batch)

    @property
    def sharing(self) -> int:
        """Number of ranks that share the dataset."""
        return self.world_size if self.sharding.name == "shards" else 1


@dataclass(frozen=True, slots=True)
class StreamSchedule:
    """The requests of a stream: its shards in turns, one batch at a time."""

    stream: Stream

    def requests(self, progress: StreamProgress, seed: int) -> Turns:
        starts = {
            shard: progress.shards.get(shard, ShardState(shard)) for shard in self.stream.shards()
        }
        stream = self.stream
        options = TurnOptions(
            stream.batch_size or 1,
            joins=stream.joins,
            drop_last=stream.drop_last,
            in_order=stream.in_order,
            num_workers=stream.num_workers,
        )
        return Turns(progress, starts, seed, options)

    def ahead(self, progress: Any, seed: int) -> None:
        # A worker has one position in each shard; reading the next epoch would lose it.
        return None

    def steps(self, progress: StreamProgress) -> int:
        """Number of batches in the rest of the epoch, by the dataset's length.

        Raises:
            Exception: what ``len(dataset)`` raises, as in torch's loader.
        """
        stream, dataset = self.stream, self.stream.sharding.dataset
        ended = {shard for shard, state in progress.shards.items() if state.ended}
        # The samples of other ranks' shards are unknown, so this is the only certain zero.
        if ended.issuperset(stream.shards()):
            return 0
        # Counted by samples, because earlier steps may have had another batch size.
        left = len(dataset) - progress.since_opened * stream.sharing
        if left <= 0 and progress.continued and not progress.step:
            left = len(dataset)  # the pass begins over
        return stream.steps_of(max(0, left))


@dataclass(frozen=True, slots=True)
class StreamLookup:
    """The lookup of a stream, which refuses: steps are known only once they are read."""

    dataset: Any

    def check(self, epoch: int, step: int) -> NoReturn:
        self._refuse()

    def progress_at(self, epoch: int, step: int, seed: int) -> NoReturn:
        self._refuse()

    def samples_at(self, origin: Any, step: int, seed: int) -> NoReturn:
        self._refuse()

    def padding(self, origin: Any, step: int) -> NDArray[np.bool_]:
        self._refuse()

    def seen(self, progress: Any, origin: Any, seed: int) -> NDArray[np.int64]:
        self._refuse()

    def unseen(self, progress: Any, origin: Any, seed: int) -> NDArray[np.int64]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedDatasetError(
            f"dataset of type {type(self.dataset).__name__} is an IterableDataset: its samples are "
            "known only once they are read, so none can be looked up or jumped to; "
            "state_dict() and load_state_dict() resume it"
        )


def warn_of_length(dataset: Any, announced: int, delivered: int) -> None:
    """Warn, as torch does, about more batches than ``len()`` announced."""
    if delivered > announced:
        warn(
            f"len() of this loader over a {type(dataset).__name__} is {announced} batches, but "
            f"this is number {delivered}: the dataset has more samples than its __len__ says, "
            "ranks have unequal shards, or several workers end with an incomplete batch",
            UserWarning,
        )
