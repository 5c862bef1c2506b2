"""The setup: what a loader's arguments mean on one rank of a world; frozen, and a pure function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dataporter.datasets.fingerprint import explicit_fingerprint
from dataporter.datasets.mixture import Mixture
from dataporter.datasets.rows import length_if_any, length_of, rows_of
from dataporter.errors import ConfigurationError, DatasetChangedError
from dataporter.fetch.fetch import Fetch, fetch_for
from dataporter.fetch.on_error import OnError
from dataporter.loader.arguments import Arguments, tail_checked
from dataporter.orders import Order
from dataporter.orders.by_name import generator_seed, order_for, sampler_name
from dataporter.orders.mixture.order import MixtureOrder
from dataporter.ranks.agreement import Ranks
from dataporter.ranks.world import World, seed_of_sampler, world_of_sampler
from dataporter.schedule.limited import LimitedSchedule
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.plan import Tail
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.schedule.sampled import SampledSchedule
from dataporter.schedule.sampler_epochs import SamplerEpochs
from dataporter.schedule.schedule import Lookup, Schedule
from dataporter.state.format import IndexFormat, StateFormat
from dataporter.state.identified import Identified
from dataporter.state.mixed_format import MixedFormat
from dataporter.state.sampled_format import SampledFormat
from dataporter.state.schema import Identity
from dataporter.state.strategies import ResumptionStrategy, strategy_named
from dataporter.streams.fetch import StreamFetch
from dataporter.streams.format import StreamFormat
from dataporter.streams.reader import ReadOptions
from dataporter.streams.request import StreamProgress
from dataporter.streams.sharding import sharding_of, warn_of_idle_workers
from dataporter.streams.stream import Stream, StreamLookup, StreamSchedule

__all__ = ["Setup", "setup_of", "world_checked"]


@dataclass(frozen=True, slots=True)
class Setup:
    """All that a loader is made of, but for its position and its engine.

    Attributes:
        arguments: as given.
        ranks: the process group's ranks, which hold equal loaders.
        rank, world_size: of this loader.
        strategy, order, tail: as given, or by default; ``order`` is None with a custom sampler and
            with a stream.
        seed: the one that the arguments settle; None where it is drawn.
        rows: the dataset as something that is indexed by row; None for a stream.
        dataset_length: of the rows; None for a stream, and where a custom sampler needs none.
        identified: the identity of a map-style dataset's loader; None for a stream.
        stream: the dataset as this rank reads it; None for a map-style dataset.
        schedule: the requests from a progress on.
        lookup: answers about any step.
        format: reads and writes states.
        fetch: builds what turns requests into batches: takes ``collate_fn``, ``batched=``,
            ``seeds_each=``, what :meth:`reacting` returns, and in a worker ``whole=``.
        epochs: of the custom sampler, if there is one.
    """

    arguments: Arguments
    ranks: Ranks
    rank: int
    world_size: int
    strategy: ResumptionStrategy
    order: Order | None
    tail: Tail
    seed: int | None
    rows: Any
    dataset_length: int | None
    identified: Identified | None
    stream: Stream | None
    schedule: Schedule
    lookup: Lookup
    format: StateFormat
    fetch: Callable[..., Fetch]
    epochs: SamplerEpochs

    def beginning(self, epoch: int) -> Any:
        """The progress of an epoch of which nothing was delivered."""
        if self.stream is None:
            return Progress(epoch)
        return StreamProgress(epoch, limit=self.arguments.steps_per_epoch)

    def start(self, epoch: int, progress: Any) -> Any:
        """The start of an epoch of the run that a progress is of."""
        beginning = self.beginning(epoch)
        return beginning._replace(mixture=progress.mixture) if self.is_mixed else beginning

    def knowing(self, progress: Any) -> Setup:
        """This setup in the run that a progress is of: with the phases of its mixture."""
        schedule = self.lookup
        if not isinstance(schedule, MixedSchedule) or (known := schedule.at(progress)) is schedule:
            return self
        limited = _limited(known, self.arguments.steps_per_epoch)
        return replace(self, lookup=known, schedule=limited)

    def terms(self) -> dict[str, Any]:
        """By name, the values that must be equal on every rank that builds this loader."""
        arguments = self.arguments
        return {
            **self.format.terms(),
            "seed": self.seed,
            "steps_per_epoch": arguments.steps_per_epoch,
            "stop_together": arguments.stop_together,
        }

    def with_workers(self, num_workers: int, progress: Any) -> Setup:
        """This setup for another number of workers, on which a stream's shards depend."""
        if self.stream is None:
            return self
        carries = num_workers == 0 or self.arguments.persistent_workers
        if (max(1, num_workers), carries) == (self.stream.num_workers, self.stream.carries):
            return self
        stream = replace(self.stream.with_workers(num_workers, progress), carries=carries)
        return replace(
            self, **_parts_of_stream(stream, self.strategy, self.arguments.steps_per_epoch)
        )

    def reacting(self, on_error: OnError) -> dict[str, Any]:
        """The arguments of ``fetch`` for a reaction to samples that fail."""
        # The order goes to the workers only where they need it: a custom one may be large.
        if on_error == "replace" and isinstance(self.schedule, PlannedSchedule):
            return {"on_error": on_error, "replacement": self.schedule}
        return {"on_error": on_error}

    def follow(self, progress: Any) -> None:
        """Set the custom sampler's epoch to what it was in the pass that a state is of."""
        if self.stream is None and progress.sampler is not None:
            record = progress.sampler
            self.epochs.driven |= record.driven
            if record.epochs is not None:
                self.epochs.write(record.epochs)
            elif record.driven:
                self.epochs.set(progress.epoch)
        self.epochs.overlook()

    def identify(self) -> None:
        """Find the dataset's fingerprint, unless that was done before."""
        if self.identified is not None:
            self.identified.identity()

    def renewed(self) -> Setup:
        """The setup for the dataset as it is now: for its length and its content."""
        if self.identified is None or self.is_mixed:
            return self
        rows = rows_of(self.arguments.dataset)
        length = length_if_any(rows)
        rows = self.rows if length == self.dataset_length else rows
        schedule: Any = self.lookup
        if isinstance(schedule, PlannedSchedule):
            schedule = schedule.for_length(length_of(rows))
        identified = self.identified.renewed(length)
        return replace(
            self, **_parts_of_rows(rows, self.arguments, identified, self.strategy, schedule)
        )

    def of_present_length(self) -> Setup:
        """This setup, or the renewed one if the dataset has another length now."""
        if self.identified is None or self._present_length() == self.dataset_length:
            return self
        return self.renewed()

    def check_dataset(self) -> None:
        """Raise where a map-style dataset has another length than at the start of the epoch."""
        if self.identified is None or (present := self._present_length()) == self.dataset_length:
            return
        raise DatasetChangedError(
            f"the dataset had {self.dataset_length} samples when this epoch began and has "
            f"{present} now, in mid-epoch, so the rest of the epoch is no longer known: read it by "
            "dataporter.remainder(dataset, loader.state_dict()), or leave it out by "
            "loader.set_epoch(loader.epoch + 1), from which on the new length counts"
        )

    @property
    def is_mixed(self) -> bool:
        """Whether it reads a mixture, which knows its sources as they were at its construction."""
        return isinstance(self.lookup, MixedSchedule)

    def _present_length(self) -> int | None:
        if self.is_mixed:
            return self.dataset_length
        return length_if_any(rows_of(self.arguments.dataset))


def setup_of(arguments: Arguments, world: World, batches: Iterable[Any] | None = None) -> Setup:
    """The setup of a loader with these arguments.

    Args:
        world: as found; a custom sampler such as ``DistributedSampler`` may know another.
        batches: what gives a custom sampler's batches of indices, or single indices where
            ``batch_size`` is None: torch's ``BatchSampler`` or the sampler itself.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        UnsupportedDatasetError: (a ``TypeError``) the dataset has no length.
    """
    custom = arguments.custom_sampler
    if custom is not None:
        world = world_of_sampler(custom, world)
    strategy = _strategy_for(arguments.strategy, world, custom)
    tail = tail_checked(
        arguments.tail, drop_last=bool(arguments.drop_last), is_stream=arguments.is_stream
    )
    common: dict[str, Any] = {
        "arguments": arguments,
        "ranks": Ranks(world.group),
        "rank": world.rank,
        "world_size": world.size,
        "strategy": strategy,
        "tail": tail,
    }
    in_order = arguments.in_order or arguments.is_stream
    if arguments.is_stream:
        world_checked(world, arguments.seed, in_order=in_order)
        sharding = sharding_of(arguments.dataset, arguments.num_shards, world.rank, world.size)
        if arguments.num_shards is None:
            warn_of_idle_workers(sharding, arguments.num_workers)
        _stop_checked(world, arguments)
        stream = Stream(
            sharding=sharding,
            rank=world.rank,
            world_size=world.size,
            batch_size=arguments.batch_size,
            num_workers=max(1, arguments.num_workers),
            drop_last=tail == "drop",
            in_order=arguments.in_order,
            snapshot_every=arguments.snapshot_every,
            carries=arguments.num_workers == 0 or arguments.persistent_workers,
            # The files that a stream lists may be this rank's alone.
            fingerprint=arguments.fingerprint or explicit_fingerprint(arguments.dataset),
            steps_per_epoch=arguments.steps_per_epoch,
        )
        return Setup(
            **common,
            order=None,
            seed=arguments.seed,
            rows=None,
            dataset_length=None,
            identified=None,
            epochs=SamplerEpochs(),
            **_parts_of_stream(stream, strategy, arguments.steps_per_epoch),
        )
    rows = rows_of(arguments.dataset)
    order, epochs, seed = None, SamplerEpochs(), arguments.seed
    schedule: PlannedSchedule | MixedSchedule | SampledSchedule
    is_mixed = custom is None and isinstance(arguments.dataset, Mixture)
    if custom is not None and isinstance(arguments.dataset, Mixture):
        arguments.dataset.read_by_index()
    if custom is None:
        order = order_for(arguments.order, arguments.shuffle)
        seed = generator_seed(order, arguments.generator) if seed is None else seed
        batch_size = arguments.batch_size or 1
    if is_mixed:
        assert order is not None
        rows = arguments.dataset.rows
        most = arguments.steps_per_epoch
        most = None if most is None else most * batch_size * world.size
        order = MixtureOrder.of(replace(arguments.dataset.blend, most=most), order)
        schedule = MixedSchedule(order, batch_size, world.rank, world.size, tail)
    elif order is not None:
        schedule = PlannedSchedule.for_rank(
            order, length_of(rows), batch_size, world.rank, world.size, tail
        )
    else:
        assert batches is not None
        seed = seed_of_sampler(custom) if seed is None else seed
        batched = arguments.sampler is None or arguments.batch_size is not None
        schedule = SampledSchedule(
            batches,
            batched=batched,
            rank=world.rank,
            world_size=world.size,
            shared=(arguments.dataset, rows),
            snapshot_every=arguments.snapshot_every,
        )
        epochs = schedule.epochs
    world_checked(world, seed, in_order=in_order)
    _stop_checked(world, arguments)
    fields = Identity(
        strategy=strategy.name,
        order=sampler_name(custom) if order is None else order.name,
        order_version=0 if order is None else order.version,
        # Of a mixture, the state says the length of each source.
        dataset_length=None if is_mixed else length_if_any(rows),
        dataset_fingerprint=None,
        batch_size=None if arguments.batch_sampler is not None else arguments.batch_size,
        world_size=world.size,
        tail=tail,
    )
    dataset = None if is_mixed else arguments.dataset
    identified = Identified(fields, dataset, arguments.fingerprint)
    return Setup(
        **common,
        order=order,
        seed=seed,
        stream=None,
        epochs=epochs,
        **_parts_of_rows(rows, arguments, identified, strategy, schedule),
    )


def _parts_of_rows(
    rows: Any,
    arguments: Arguments,
    identified: Identified,
    strategy: ResumptionStrategy,
    schedule: PlannedSchedule | MixedSchedule | SampledSchedule,
) -> dict[str, Any]:
    format: StateFormat
    if isinstance(schedule, SampledSchedule):
        format = SampledFormat(identified, strategy, schedule, schedule.rank)
    elif isinstance(schedule, MixedSchedule):
        format = MixedFormat(identified, strategy, schedule, arguments.dataset.fingerprints)
    else:
        format = IndexFormat(identified, strategy, schedule)
    return {
        "rows": rows,
        "dataset_length": identified.fields.dataset_length,
        "identified": identified,
        "schedule": _limited(schedule, arguments.steps_per_epoch),
        "lookup": schedule,
        "format": format,
        "fetch": partial(fetch_for, rows),
    }


def _limited(schedule: Schedule, steps_per_epoch: int | None) -> Schedule:
    return schedule if steps_per_epoch is None else LimitedSchedule(schedule, steps_per_epoch)


def _parts_of_stream(
    stream: Stream, strategy: ResumptionStrategy, steps_per_epoch: int | None
) -> dict[str, Any]:
    return {
        "stream": stream,
        "schedule": _limited(StreamSchedule(stream), steps_per_epoch),
        "lookup": StreamLookup(stream.sharding.dataset),
        "format": StreamFormat(stream, strategy),
        "fetch": partial(_stream_fetch, stream),
    }


def _stream_fetch(
    stream: Stream,
    collate_fn: Callable[[Any], Any],
    *,
    batched: bool,
    seeds_each: Any,
    on_error: Any,
    whole: Any = None,
) -> Fetch:
    return StreamFetch(
        stream.sharding,
        collate_fn,
        ReadOptions(stream.batch_size or 1, seeds_each, on_error, stream.carries),
        batched=batched,
        joins=stream.joins,
        drop_last=stream.drop_last,
        snapshot_every=stream.snapshot_every,
        whole=whole,
    )


def _strategy_for(
    strategy: str | ResumptionStrategy | None, world: World, custom_sampler: object | None
) -> ResumptionStrategy:
    """The strategy that was asked for, or the one that suits (C7)."""
    if strategy is None:
        if custom_sampler is not None:
            return strategy_named("simple")
        in_world = world.group is not None or world.size > 1
        return strategy_named("distributed" if in_world else "advanced")
    return strategy_named(strategy)


def _stop_checked(world: World, arguments: Arguments) -> None:
    """Refuse ``stop_together=`` where the ranks cannot ask one another."""
    alone = world.group is None and (world.size > 1 or arguments.rank is not None)
    if arguments.stop_together and alone:
        raise ConfigurationError(
            f"stop_together=True on rank {world.rank} of {world.size}, without a process group: "
            "the ranks cannot ask one another; call torch.distributed.init_process_group() first, "
            "and leave rank= and world_size= out, or leave stop_together= out"
        )


def world_checked(world: World, seed: int | None, *, in_order: bool) -> None:
    """Refuse arguments by which the ranks of a world could not share one state."""
    if world.size == 1:
        return
    if seed is None and world.group is None:
        raise ConfigurationError(
            f"a world of {world.size} ranks that no process group joins needs seed=, the same on "
            "every rank: drawn by each rank for itself it would differ, and with it the order"
        )
    if not in_order:
        raise ConfigurationError(
            f"in_order=False in a world of {world.size} ranks: each rank would deliver other "
            "batches early, and the ranks share one state; leave in_order=True"
        )
