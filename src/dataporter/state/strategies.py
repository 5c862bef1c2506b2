"""Strategies: what a state counts, what may change at a resume, how seeding is done (C6-C8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dataporter.errors import ConfigurationError
from dataporter.schedule.progress import Progress
from dataporter.schedule.schedule import Recount
from dataporter.state.schema import Identity, Mismatch, State, differences

__all__ = [
    "AdvancedResumptionStrategy",
    "DistributedResumptionStrategy",
    "ResumptionStrategy",
    "SimpleResumptionStrategy",
    "explain",
    "strategy_named",
]


@dataclass(frozen=True, slots=True)
class ResumptionStrategy:
    """The base of the three strategies; holds no state, so one object may serve many loaders.

    Attributes:
        name: how ``strategy=`` and the state call it.
        counts: what a resume goes by.
        seeds_each: random generators are seeded before each sample, or once a batch.
        may_change: fields of the state in which the resuming loader may differ.
        kin: strategies that count and seed alike, so that their states are as good as its own.
    """

    name: ClassVar[str]
    counts: ClassVar[Literal["samples", "batches"]]
    seeds_each: ClassVar[Literal["sample", "batch"]]
    may_change: ClassVar[frozenset[str]]
    kin: ClassVar[frozenset[str]] = frozenset()

    def mismatches(self, saved: Any, present: Any) -> list[Mismatch]:
        """What differs between save and load although this strategy needs it equal.

        Both are identities of one kind: of a dataset with an index, or of a stream.
        """
        may_change = self.may_change
        if saved.strategy in self.kin:
            # What either of the two is for: a state of ``distributed`` is good for any world.
            may_change |= strategy_named(saved.strategy).may_change | {"strategy"}
        return [
            difference
            for difference in differences(saved, present)
            if difference.field not in may_change
        ]

    def resume(self, state: State, present: Identity, schedule: Recount, seed: int) -> Progress:
        """The progress at which a loader goes on that has ``present`` for its identity.

        Exact when the state has no mismatches. Otherwise (``on_mismatch="warn"``) as near as the
        strategy's count gets: the same batch, or the same sample.
        """
        saved, progress = state.identity, state.progress
        counted_alike = all(
            getattr(saved, field) == getattr(present, field)
            for field in ("strategy", "batch_size", "world_size")
        )
        if self.counts == "batches" and not counted_alike:
            step = min(progress.step, schedule.epoch_steps())
            return schedule.progress_at(progress.epoch, step, seed)
        return progress


@dataclass(frozen=True, slots=True)
class SimpleResumptionStrategy(ResumptionStrategy):
    """Counts batches. Works with every sampler, seeds random generators once a batch.

    The batch size and the world size must stay. Where the loader has a sampler of the user's own,
    a resume draws its indices again up to the position; no data is read for that.
    """

    name: ClassVar[str] = "simple"
    counts: ClassVar[Literal["samples", "batches"]] = "batches"
    seeds_each: ClassVar[Literal["sample", "batch"]] = "batch"
    may_change: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class AdvancedResumptionStrategy(ResumptionStrategy):
    """Counts samples, seeds random generators before each. The batch size may change.

    Its state goes on in ``distributed`` as well, in any world, and that of ``distributed`` in it.
    """

    name: ClassVar[str] = "advanced"
    counts: ClassVar[Literal["samples", "batches"]] = "samples"
    seeds_each: ClassVar[Literal["sample", "batch"]] = "sample"
    may_change: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    kin: ClassVar[frozenset[str]] = frozenset({"distributed"})


@dataclass(frozen=True, slots=True)
class DistributedResumptionStrategy(ResumptionStrategy):
    """Counts samples over all ranks. The batch size and the number of ranks may change."""

    name: ClassVar[str] = "distributed"
    counts: ClassVar[Literal["samples", "batches"]] = "samples"
    seeds_each: ClassVar[Literal["sample", "batch"]] = "sample"
    may_change: ClassVar[frozenset[str]] = frozenset({"batch_size", "world_size"})
    kin: ClassVar[frozenset[str]] = frozenset({"advanced"})


_STRATEGIES: tuple[ResumptionStrategy, ...] = (
    SimpleResumptionStrategy(),
    AdvancedResumptionStrategy(),
    DistributedResumptionStrategy(),
)


def strategy_named(strategy: str | ResumptionStrategy) -> ResumptionStrategy:
    """The strategy of this name; a strategy object is returned as it is."""
    if isinstance(strategy, ResumptionStrategy):
        return strategy
    for known in _STRATEGIES:
        if known.name == strategy:
            return known
    names = ", ".join(repr(known.name) for known in _STRATEGIES)
    raise ConfigurationError(f"strategy={strategy!r}: expected {names} or a ResumptionStrategy")


def explain(mismatches: list[Mismatch]) -> str:
    """What to tell of a state that belongs to another loader: every difference, and the way out."""
    lines = "".join(
        f"\n  - {difference.field}: the state has {difference.saved!r}, this loader has "
        f"{difference.present!r} ({difference.advice or _ADVICE[difference.field]})"
        for difference in mismatches
    )
    return (
        f"the state belongs to another loader:{lines}\n"
        "A refused state changes nothing. Build the loader as it was when the state was saved, or "
        'pass load_state_dict(state, on_mismatch="warn") to go on all the same.'
    )


_ADVICE = {
    "strategy": "build the loader with the strategy of the state",
    "order": "set order=, shuffle= or the sampler as they were",
    "order_version": "use the release of dataporter, or of the order, that saved the state",
    "dataset_length": "resume on the dataset that the state was saved with",
    "dataset_fingerprint": "the data changed; resume on the dataset that the state was saved with",
    "sharding": "the dataset now offers shards, or no longer does; resume on the class that the "
    "state was saved with",
    "num_shards": "pass num_shards= as it was",
    "num_workers": "each worker reads a stream like this by itself, so their number is part of the "
    "state; give the dataset num_shards and shard(), see dataporter.ShardedStream, to change it",
    "batch_size": "strategy='advanced' can change it at a resume",
    "world_size": "strategy='distributed' can change it at a resume",
    "tail": "set tail= or drop_last= as it was",
    "seed": "leave seed= out to take the state's, or pass the state's",
    "order_digest": "the sampler gives other indices than when the state was saved: it keeps "
    "random state of its own; take its randomness from set_epoch, from an attribute `generator`, "
    "or from the global generators, all of which the loader sets",
}
