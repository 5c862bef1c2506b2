"""A stream: the flow of a dataset that is iterated over, as one rank of a world reads it (C10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from dataporter.engines import Engine, Reply
from dataporter.errors import ConfigurationError, UnsupportedDatasetError, warn
from dataporter.fetch.fetch import Fetch, OnError
from dataporter.loader.flow import Resumption
from dataporter.state.resume import OnMismatch
from dataporter.state.strategies import ResumptionStrategy
from dataporter.streams import state as states
from dataporter.streams import turns
from dataporter.streams.fetch import StreamFetch
from dataporter.streams.reader import ReadOptions
from dataporter.streams.request import StreamProgress
from dataporter.streams.resume import place_of
from dataporter.streams.shard import Sharding, ShardState

__all__ = ["Stream", "warn_of_length"]


@dataclass(frozen=True, slots=True)
class Stream:
    """A dataset that is iterated over, cut into shards, as one rank of a world reads it.

    Attributes:
        sharding: where the shards come from.
        strategy, rank, world_size, batch_size: as in the loader.
        num_workers: how many read on this rank, the training process itself where it has none.
        drop_last: leave out a shard's last batch where it is incomplete.
        snapshot_every: how many batches of a shard come with one snapshot.
        fingerprint: tells the data from other data, if anything does.
    """

    sharding: Sharding
    strategy: ResumptionStrategy
    rank: int
    world_size: int
    batch_size: int | None
    num_workers: int
    drop_last: bool
    snapshot_every: int
    fingerprint: str | None

    def beginning(self, epoch: int) -> StreamProgress:
        return StreamProgress(epoch)

    def terms(self) -> Mapping[str, Any]:
        terms = asdict(self._identity())
        if self.sharding.name == "workers":  # each rank may have been given data of its own
            del terms["dataset_fingerprint"]
        return terms

    def length(self) -> int:
        dataset: Any = self.sharding.dataset
        return self._steps_of(len(dataset))

    def remaining(self, progress: StreamProgress) -> int:
        dataset: Any = self.sharding.dataset
        done = {shard for shard, state in progress.shards.items() if state.ended}
        if done.issuperset(self._shards()):  # of another rank's, nobody knows how long they were
            return 0
        try:
            # By samples: the steps that were made may have been of another size.
            left = len(dataset) - progress.delivered * self._sharing
            return self._steps_of(max(0, left))
        except (TypeError, NotImplementedError) as error:
            raise UnsupportedDatasetError(
                f"a {type(self.sharding.dataset).__name__} is an IterableDataset that does not say "
                f"how long it is ({error}): give it __len__ to know how many batches are left"
            ) from error

    @property
    def _sharing(self) -> int:
        """How many ranks the dataset is shared out to."""
        return self.world_size if self.sharding.name == "shards" else 1

    def _steps_of(self, samples: int) -> int:
        # The last batch of each shard may be incomplete, so that it can come to more.
        batch = (self.batch_size or 1) * self._sharing
        return samples // batch if self.drop_last else -(-samples // batch)

    def requested_epoch(self) -> None:
        return None

    def overlook_requested_epoch(self) -> None:
        """There is none."""

    def fetch_builder(
        self,
        collate_fn: Callable[[Any], Any],
        *,
        batched: bool,
        seeds_each: Literal["sample", "batch", "nothing"],
        on_error: OnError,
    ) -> Callable[..., Fetch]:
        return partial(
            StreamFetch,
            self.sharding,
            collate_fn,
            ReadOptions(self.batch_size or 1, seeds_each, on_error),
            batched=batched,
            drop_last=self.drop_last,
            snapshot_every=self.snapshot_every,
        )

    def for_pass(self, num_workers: int, progress: StreamProgress) -> Stream:
        num_workers = max(1, num_workers)
        if self.sharding.name == "workers" and num_workers != self.num_workers and progress.shards:
            raise ConfigurationError(
                f"num_workers was {self.num_workers} when this epoch of the stream began, and is "
                f"{num_workers} now: each worker reads a stream like this by itself, so set it "
                "back, or begin another epoch (set_epoch)"
            )
        return replace(self, num_workers=num_workers)

    def serve(self, engine: Engine, progress: StreamProgress, seed: int) -> Iterator[Reply]:
        return turns.replies(
            partial(engine.start, ahead=None),
            progress,
            {shard: progress.shards.get(shard, ShardState(shard)) for shard in self._shards()},
            seed=seed,
            pass_id=uuid4().hex,
            batch_size=self.batch_size or 1,
        )

    def state(self, seed: int, progress: StreamProgress) -> dict[str, Any]:
        rank = self.rank if self.world_size > 1 else None
        return states.build(states.StreamState(self._identity(), seed, rank, progress))

    def joined(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        parsed = [states.parse(part) for part in parts]
        return states.build(states.joined(parsed, self._shards_of))

    def resumption(
        self, saved: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        parsed = states.parse(saved)
        seed, progress = place_of(
            parsed,
            self._identity(),
            self.strategy,
            self.rank,
            self._shards(),
            given_seed,
            on_mismatch,
        )
        common = {"epoch": progress.epoch, "step": progress.step, "seed": seed}
        return Resumption(seed, progress, dict(saved) if parsed.rank is None else common)

    def _shards(self) -> range:
        return self._shards_of(self.rank)

    def _shards_of(self, rank: int) -> range:
        return self.sharding.shards(rank, self.world_size, self.num_workers)

    def _identity(self) -> states.StreamIdentity:
        sharding, shards = self.sharding, len(self.sharding.shards(0, 1, self.num_workers))
        return states.StreamIdentity(
            strategy=self.strategy.name,
            sharding=sharding.name,
            num_shards=shards if sharding.name == "shards" else None,
            num_workers=shards if sharding.name == "workers" else None,
            dataset_fingerprint=self.fingerprint,
            batch_size=self.batch_size,
            world_size=self.world_size,
            tail="drop" if self.drop_last else "uneven",
        )


def warn_of_length(dataset: Any, said: int, delivered: int) -> None:
    """Tell, as torch does, when there are more batches than ``len()`` has promised."""
    if delivered > said:
        warn(
            f"len() of this loader over a {type(dataset).__name__} said {said} batches, and this "
            f"is number {delivered}: the dataset has more samples than its __len__ says, or ends "
            "in several incomplete batches, one for each shard or worker",
            UserWarning,
        )
