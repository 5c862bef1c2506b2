"""The states of a stream: of this rank's shards, or joined, of all ranks' shards (C5, C6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dataporter.state.format import Resumption
from dataporter.state.ledger import NO_FAILURES, Ledger
from dataporter.state.resume import OnMismatch
from dataporter.state.strategies import ResumptionStrategy
from dataporter.streams import state as states
from dataporter.streams.identity import fingerprint_between_ranks
from dataporter.streams.mixture_resume import with_present_blend
from dataporter.streams.request import StreamProgress
from dataporter.streams.resume import resume_at
from dataporter.streams.shard import ShardState
from dataporter.streams.stream import Stream

__all__ = ["StreamFormat"]


@dataclass(frozen=True, slots=True)
class StreamFormat:
    """Reads and writes the states of one rank's loader over a stream.

    Attributes:
        stream: as this rank reads it.
        strategy: says what may change on resume.
    """

    stream: Stream
    strategy: ResumptionStrategy

    def terms(self) -> Mapping[str, Any]:
        terms = asdict(self._identity())
        if self.stream.sharding.name == "workers":  # ranks may have different data
            del terms["dataset_fingerprint"]
        else:
            terms["dataset_fingerprint"] = fingerprint_between_ranks(self.stream)
        return terms

    def build(
        self, seed: int, progress: StreamProgress, ledger: Ledger = NO_FAILURES
    ) -> dict[str, Any]:
        rank = self.stream.rank if self.stream.world_size > 1 else None
        progress = self._with_first_states(progress)
        return states.build(states.StreamState(self._identity(), seed, rank, progress, ledger))

    def resume(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        saved = states.parse(state)
        seed, progress = resume_at(
            saved,
            self._identity(),
            self.strategy,
            self.stream.rank,
            self.stream.shards(),
            given_seed,
            on_mismatch,
        )
        shards = with_present_blend(self.stream.sharding.dataset, progress.shards, on_mismatch)
        progress = replace(progress, shards=shards, limit=self.stream.steps_per_epoch)
        terms = {"epoch": progress.epoch, "step": progress.step, "seed": seed}
        if saved.rank is None:
            terms = states.build(replace(saved, ledger=NO_FAILURES))
        return Resumption(seed, progress, terms, saved.ledger)

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        parsed = [states.parse(part) for part in parts]
        return states.build(states.joined(parsed, self.stream.shards_of))

    def _with_first_states(self, progress: StreamProgress) -> StreamProgress:
        """With the state of the dataset for the shards that no pass has begun yet."""
        shards = self.stream.shards()
        if all(shard in progress.shards for shard in shards):
            return progress
        first = self.stream.sharding.first_state()
        if first is None:
            return progress
        begun = {shard: ShardState(shard, beginning=first) for shard in shards}
        return replace(progress, shards={**begun, **progress.shards})

    def _identity(self) -> states.StreamIdentity:
        stream, sharding = self.stream, self.stream.sharding
        shards = len(sharding.shards(0, 1, stream.num_workers))
        return states.StreamIdentity(
            strategy=self.strategy.name,
            sharding=sharding.name,
            num_shards=shards if sharding.name == "shards" else None,
            num_workers=shards if sharding.name == "workers" else None,
            dataset_fingerprint=stream.fingerprint,
            batch_size=stream.batch_size,
            world_size=stream.world_size,
            tail="drop" if stream.drop_last else "uneven",
        )
