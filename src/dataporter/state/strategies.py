"""Strategies: what a state counts, what may change on resume, and how seeding works (C6-C8)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from dataporter.checks import given
from dataporter.errors import ConfigurationError
from dataporter.orders.weighted.order import is_weighted
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
    """The base of the three strategies. It holds no state, so many loaders may share one object.

    Attributes:
        name: the name in ``strategy=`` and in the state.
        counts: the unit of the position on resume.
        seeds_each: whether each sample has a seed for its random numbers, or each batch.
        may_change: fields of the state in which the resuming loader may differ.
        kin: names of strategies that count and seed alike, whose states this one accepts.
    """

    name: ClassVar[str]
    counts: ClassVar[Literal["samples", "batches"]]
    seeds_each: ClassVar[Literal["sample", "batch"]]
    may_change: ClassVar[frozenset[str]]
    kin: ClassVar[frozenset[str]] = frozenset()

    def mismatches(self, saved: Any, present: Any) -> list[Mismatch]:
        """The fields that differ between save and load, but that this strategy needs equal.

        Both are identities of one kind: of a map-style dataset, or of a stream. A state without a
        fingerprint says nothing of the data; one with a fingerprint has to find it again.
        """
        may_change = self.may_change
        if saved.dataset_fingerprint is None:
            may_change |= {"dataset_fingerprint"}
        if saved.strategy in self.kin:
            # Either of the two may allow a change: a state of ``distributed`` fits any world.
            may_change |= strategy_named(saved.strategy).may_change | {"strategy"}
        return [
            _with_advice(difference)
            for difference in differences(saved, present)
            if difference.field not in may_change
        ]

    def resume(self, state: State, present: Identity, schedule: Recount, seed: int) -> Progress:
        """The progress at which a loader with the identity ``present`` resumes.

        Exact if the state has no mismatches; otherwise (``on_mismatch="warn"``) the nearest by the
        strategy's count: the same batch, or the same sample.
        """
        saved, progress = state.identity, state.progress
        counted_alike = all(
            getattr(saved, field) == getattr(present, field)
            for field in ("strategy", "batch_size", "world_size")
        )
        if self.counts == "batches" and not counted_alike:
            step = min(progress.step, schedule.epoch_steps(progress.epoch))
            return schedule.progress_at(progress.epoch, step, seed)
        return progress


@dataclass(frozen=True, slots=True)
class SimpleResumptionStrategy(ResumptionStrategy):
    """Counts batches. Works with every sampler; a batch has one seed for its random numbers.

    The batch size and the world size must stay. With a custom sampler, a resume draws its indices
    again up to the position, without reading data.
    """

    name: ClassVar[str] = "simple"
    counts: ClassVar[Literal["samples", "batches"]] = "batches"
    seeds_each: ClassVar[Literal["sample", "batch"]] = "batch"
    may_change: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class AdvancedResumptionStrategy(ResumptionStrategy):
    """Counts samples, each with a seed for its random numbers. The batch size may change.

    ``distributed`` accepts its states in any world, and it accepts those of ``distributed``.
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
    """The strategy with this name; a strategy object is returned unchanged."""
    if isinstance(strategy, ResumptionStrategy):
        return strategy
    for known in _STRATEGIES:
        if isinstance(strategy, str) and known.name == strategy:
            return known
    names = ", ".join(repr(known.name) for known in _STRATEGIES)
    raise ConfigurationError(
        f"{given('strategy', strategy)}: expected {names} or a ResumptionStrategy"
    )


def explain(mismatches: list[Mismatch], consequences: str | None = None) -> str:
    """The message for a state of another loader: every difference, and what to do.

    Args:
        consequences: of loading it all the same, which is about to be done; None if it is refused.
    """
    lines = "".join(
        f"\n  - {difference.field}: the state has {difference.saved!r}, this loader has "
        f"{difference.present!r} ({difference.advice or _ADVICE[difference.field]})"
        for difference in mismatches
    )
    if consequences is not None:
        return (
            f"the state belongs to another loader:{lines}\n"
            f'It is loaded all the same, as on_mismatch="warn" says. {consequences} '
            "dataporter.remainder(dataset, state) gives the rest of the epoch over a dataset that "
            "grew or shrank, each sample once."
        )
    return (
        f"the state belongs to another loader:{lines}\n"
        "The loader is unchanged. Build it as it was when the state was saved. To continue anyway, "
        'call load_state_dict(state, on_mismatch="warn") or, if a framework calls it, build the '
        'loader with on_mismatch="warn".'
    )


def _with_advice(difference: Mismatch) -> Mismatch:
    if difference.field == "order" and is_weighted(difference.saved):
        return replace(
            difference,
            advice="the digest is of the weights: pass the weights, samples= and replacement= that "
            "the state was saved with",
        )
    if difference.field != "dataset_fingerprint" or difference.present is not None:
        return difference
    return replace(
        difference,
        advice="nothing is known of the content of this dataset; pass fingerprint= as it was, or "
        "give the dataset an attribute of this name",
    )


_ADVICE = {
    "strategy": "build the loader with the strategy of the state",
    "order": "set order=, shuffle= or the sampler as they were",
    "order_version": "use the release of dataporter, or of the order, that saved the state",
    "dataset_length": "resume on the dataset that the state was saved with",
    "dataset_fingerprint": "the data changed: other samples, or the same ones in another order; "
    "resume on the data that the state was saved with; where the content may change, name the data "
    "by fingerprint=",
    "sharding": "the dataset can now be split into shards, or no longer; resume with the class "
    "that the state was saved with",
    "num_shards": "pass num_shards= as it was",
    "num_workers": "each worker iterates over this stream, so their number is part of the state; "
    "to change it, give the dataset num_shards and shard(), see dataporter.ShardedStream",
    "batch_size": "strategy='advanced' allows another one on resume",
    "world_size": "strategy='distributed' allows another one on resume",
    "tail": "set tail= or drop_last= as it was",
    "seed": "leave seed= out to use the state's, or pass the same seed",
    "order_digest": "load a state that is not damaged",
}
