"""The position of a sampler that a plain `DataLoader` draws from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dataporter.checks import whole_number
from dataporter.datasets.rows import length_of, rows_of
from dataporter.errors import ConfigurationError
from dataporter.loader.arguments import tail_checked
from dataporter.loader.cursor import Cursor
from dataporter.loader.kinds import kinds_checked
from dataporter.loader.setup import world_checked
from dataporter.orders import Order
from dataporter.orders.by_name import order_for
from dataporter.ranks.agreement import Ranks
from dataporter.ranks.world import World
from dataporter.schedule.plan import Tail
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.identified import Identified
from dataporter.state.resume import OnMismatch, resume_at
from dataporter.state.schema import Identity, State, build, parse
from dataporter.state.strategies import ResumptionStrategy, strategy_named

__all__ = ["SamplerPosition"]


@dataclass(slots=True)
class SamplerPosition:
    """Drawing moves nothing but the epoch: the loader that draws may be batches ahead."""

    requests: PlannedSchedule
    cursor: Cursor[Progress]
    identified: Identified
    strategy: ResumptionStrategy
    given_seed: int | None
    ranks: Ranks

    @classmethod
    def from_arguments(
        cls,
        call: str,
        dataset: Any,
        batch_size: int,
        *,
        strategy: str,
        world: World,
        shuffle: bool | None,
        order: str | Order | None,
        seed: int | None,
        drop_last: bool,
        tail: Tail | None,
        fingerprint: str | None,
    ) -> SamplerPosition:
        """The position that a sampler's arguments give, the same on all ranks of a group."""
        ranks = Ranks(world.group)
        with ranks.agreed(call) as terms:
            if batch_size is None:
                raise ConfigurationError(
                    "batch_size=None: expected the DataLoader's batch size, a whole number of 1 or "
                    "more"
                )
            checked = kinds_checked(
                {
                    "batch_size": batch_size,
                    "shuffle": shuffle,
                    "seed": seed,
                    "drop_last": drop_last,
                    "fingerprint": fingerprint,
                }
            )
            counted = isinstance(dataset, int) and not isinstance(dataset, bool)
            rows = range(whole_number("dataset", dataset)) if counted else dataset
            ordered = order_for(order, checked["shuffle"])
            length = length_of(rows_of(rows))
            requests = PlannedSchedule.for_rank(
                ordered,
                length,
                checked["batch_size"],
                world.rank,
                world.size,
                tail_checked(tail, drop_last=checked["drop_last"]),
            )
            plan = requests.plan
            given_seed = checked["seed"]
            world_checked(world, given_seed, in_order=True)
            cursor = Cursor.at_epoch(Progress, 0, given_seed)
            identity = Identity(
                strategy=strategy,
                order=ordered.name,
                order_version=ordered.version,
                dataset_length=length,
                dataset_fingerprint=None,
                batch_size=plan.batch_size,
                world_size=world.size,
                tail=plan.tail,
            )
            identified = Identified(identity, None if counted else rows, checked["fingerprint"])
            if ranks.several:
                terms.equal = {**asdict(identified.identity()), "seed": given_seed}
                terms.first = cursor.seed_among_ranks()
        if ranks.several:
            cursor.seed = terms.first
        return cls(requests, cursor, identified, strategy_named(strategy), given_seed, ranks)

    @property
    def length(self) -> int:
        """Samples of a whole epoch on this rank."""
        return self.requests.plan.rank_length(self.requests.rank)

    def indices(self) -> Iterator[int]:
        """The rest of the epoch that is waiting, or else the next epoch."""
        progress = self.cursor.begin(object())
        self.cursor.waiting = False
        for scheduled in self.requests.requests(progress, self.cursor.settled_seed()):
            request: Any = scheduled.request
            yield from (int(index) for index in request.indices)

    def state(self, delivered: int) -> dict[str, Any]:
        """The state ``delivered`` batches after the last pass began."""
        delivered = whole_number("delivered", delivered)
        if delivered and self.cursor.waiting:
            raise ConfigurationError(
                f"state_dict(delivered={delivered}): no pass has begun yet at epoch "
                f"{self.cursor.progress.epoch}, step {self.cursor.progress.step}; expected 0 until "
                "the loop has its first batch"
            )
        progress = self.requests.progress_after(self.cursor.origin, delivered)
        return build(State(self.identified.identity(), self.cursor.settled_seed(), progress))

    def load(self, state: Mapping[str, Any], on_mismatch: OnMismatch) -> None:
        """Let the next pass resume from a state, on all ranks of the group or on none."""
        with self.ranks.agreed("load_state_dict()") as terms:
            saved = parse(state)
            renewed = self.identified.renewed(self.requests.dataset_length)
            if renewed.dataset is None and renewed.given is None:  # a length is all that is known
                renewed.given = saved.identity.dataset_fingerprint
            present = renewed.identity()
            seed, progress = resume_at(
                saved, present, self.strategy, self.requests, self.given_seed, on_mismatch
            )
            terms.equal = build(saved)
        self.identified, self.cursor.seed = renewed, seed
        self.cursor.jump(progress)

    def set_epoch(self, epoch: int) -> None:
        """The start of this epoch, unless it is the current one."""
        self.cursor.set_epoch(whole_number("epoch", epoch))

    @property
    def progress(self) -> Progress:
        """The current epoch, and where its pass began or will begin."""
        return self.cursor.progress
