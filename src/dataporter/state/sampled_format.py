"""The states of a loader with a custom sampler: this rank's, or joined, of all ranks (C5, C6)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dataporter.errors import RankMismatchError
from dataporter.orders.by_name import bare_name
from dataporter.schedule.progress import Progress
from dataporter.schedule.sampled import SampledSchedule
from dataporter.schedule.sampler_record import SamplerRecord
from dataporter.state.format import Resumption
from dataporter.state.identified import Identified
from dataporter.state.ledger import NO_FAILURES, Ledger
from dataporter.state.resume import OnMismatch, compared, contradiction, settle
from dataporter.state.schema import Identity, Mismatch, State, build, parse
from dataporter.state.strategies import ResumptionStrategy

__all__ = ["SampledFormat"]


@dataclass(frozen=True, slots=True)
class SampledFormat:
    """Reads and writes the states of one rank's loader with a custom sampler.

    Attributes:
        identified: the fields of the state beside seed and progress.
        strategy: says which of them may change on resume.
        schedule: of the sampler.
        rank: of the loader.
    """

    identified: Identified
    strategy: ResumptionStrategy
    schedule: SampledSchedule
    rank: int

    @property
    def identity(self) -> Identity:
        """The fields of the state, with the dataset's fingerprint."""
        return self.identified.identity()

    def terms(self) -> Mapping[str, Any]:
        # Each rank's sampler may have settings of its own, such as a seed.
        return {**asdict(self.identity), "order": bare_name(self.identity.order)}

    def build(self, seed: int, progress: Progress, ledger: Ledger = NO_FAILURES) -> dict[str, Any]:
        progress = self.schedule.noted(progress)
        rank = self.rank if self.identity.world_size > 1 else None
        return build(State(self.identity, seed, progress, ledger, rank))

    def resume(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        saved = parse(state)
        is_joined = saved.ranks is not None
        same_world = saved.identity.world_size == self.identity.world_size
        foreign = not is_joined and saved.rank not in (None, self.rank)
        if saved.ranks is not None and same_world:
            order, progress = saved.ranks[self.rank]
            identity = replace(saved.identity, order=order)
            saved = replace(saved, identity=identity, progress=progress)
        if saved.progress.sampler is None:
            saved = replace(saved, progress=self._from_before(saved.progress))
            # Earlier releases summed up the indices of a single rank only.
            foreign = self.identity.world_size > 1
        saved = replace(saved, identity=self._known_order(saved.identity, foreign=foreign))
        seed, mismatches = compared(saved, self.identity, self.strategy, given_seed, on_mismatch)
        progress = saved.progress
        if progress.step == 0 and (progress.position or progress.digest or progress.early):
            raise contradiction(progress)
        if not mismatches:
            progress, faults = self.schedule.examined(progress, seed, foreign=foreign)
            for fault in faults:
                if fault.field == "position" and not foreign:
                    raise contradiction(progress)
                mismatches.append(Mismatch(*fault))
        settle(mismatches, on_mismatch)
        if mismatches:
            progress = self.schedule.nearest(saved.progress, seed)
        record = progress.sampler
        if on_mismatch == "warn" and record is not None and record.resume is not None:
            # Some samplers show only in the pass that they are other ones.
            record = replace(record, resume=record.resume._replace(lenient=True))
            progress = progress._replace(sampler=record)
        if is_joined:
            terms = build(replace(parse(state), ledger=NO_FAILURES))
        else:
            terms = {**self.terms(), "epoch": progress.epoch, "step": progress.step, "seed": seed}
        return Resumption(seed, progress, terms, saved.ledger)

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        states = [parse(part) for part in parts]
        last = min(states, key=lambda part: (part.progress.epoch, -part.progress.step))
        epoch = last.progress.epoch
        for rank, part in enumerate(states):
            progress = part.progress
            if progress.epoch != epoch and (progress.epoch, progress.step) != (epoch + 1, 0):
                raise RankMismatchError(
                    f"rank {rank} is at step {progress.step} of epoch {progress.epoch}, but rank "
                    f"{states.index(last)} is still in epoch {epoch}, and a state has one epoch: "
                    "start each epoch on all ranks together"
                )
        ranks = tuple((part.identity.order, part.progress) for part in states)
        return build(replace(last, rank=None, ranks=ranks))

    def _from_before(self, progress: Progress) -> Progress:
        """The progress of a state of schema 1, whose loader had set the sampler's epoch."""
        epochs = (progress.epoch,) * len(self.schedule.epochs.values())
        return progress._replace(sampler=SamplerRecord(epochs, True, progress.epoch))

    def _known_order(self, saved: Identity, *, foreign: bool) -> Identity:
        """The saved identity, with the present order where nothing is known to differ in it."""
        present = self.identity.order
        alike = saved.order == present or saved.order == bare_name(present)
        if foreign:
            # Ranks may seed their samplers apart.
            alike |= _without_seeds(saved.order) == _without_seeds(present)
        return replace(saved, order=present) if alike else saved


def _without_seeds(order: str) -> str:
    return re.sub(r"seed=-?\d+", "seed", order)
