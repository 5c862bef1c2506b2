"""The state format of mixtures, whose weights and sources may change at a resume (C5, C6, C14)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dataporter.errors import InvalidStateError, StateMismatchError, warn
from dataporter.orders.mixture.change import changed, described, pruned, same
from dataporter.orders.mixture.order import MixtureOrder
from dataporter.orders.mixture.phase import Blend, Phase
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.format import Resumption
from dataporter.state.identified import Identified
from dataporter.state.ledger import NO_FAILURES, Ledger
from dataporter.state.mixture_record import MixtureRecord, check_begin, read, written
from dataporter.state.resume import OnMismatch, resume_at
from dataporter.state.schema import State, build, parse
from dataporter.state.strategies import ResumptionStrategy

__all__ = ["MixedFormat"]


@dataclass(frozen=True, slots=True)
class MixedFormat:
    """The states of a mixture: the same on every rank.

    Attributes:
        identified: the fields of the state beside seed, progress and mixture.
        strategy: says which of them may change on resume.
        schedule: of the mixture as it was built.
        fingerprints: of the sources; called when they are first needed.
    """

    identified: Identified
    strategy: ResumptionStrategy
    schedule: MixedSchedule
    fingerprints: Callable[[], tuple[str | None, ...]]

    @property
    def given(self) -> Blend:
        """The blend that the mixture was built with."""
        return self.schedule.order.blend

    def terms(self) -> Mapping[str, Any]:
        identity = asdict(self.identified.identity())
        return {**identity, "mixture": asdict(self.given), "sources": self.fingerprints()}

    def build(self, seed: int, progress: Any, ledger: Ledger = NO_FAILURES) -> dict[str, Any]:
        phases = progress.mixture or self.schedule.order.phases
        known = pruned(phases, progress.epoch, progress.position)
        record = MixtureRecord(self.given, known, self.fingerprints())
        identity = self.identified.identity()
        return build(State(identity, seed, progress, ledger, mixture=written(record)))

    def resume(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        saved = parse(state)
        if saved.mixture is None:
            raise StateMismatchError(
                "the state is of a dataset that is no mixture, and this loader reads a mixture: "
                "load it into a loader of that dataset"
            )
        record = read(saved.mixture)
        before = self.schedule.knowing(record.phases)
        progress = saved.progress._replace(mixture=record.phases)
        check_begin(record, progress.epoch, progress.position)
        if unknown := set(record.phases[-1].blend.names).difference(record.given.names):
            raise InvalidStateError(
                f"the state's field 'mixture' mixes {min(unknown)!r}, which is none of its sources "
                f"{list(record.given.names)}: the state is damaged or was edited; load another one"
            )
        seed, resumed = resume_at(
            replace(saved, progress=progress),
            self.identified.identity(),
            self.strategy,
            before,
            given_seed,
            on_mismatch,
        )
        self._check_content(record)
        phases = self._phases(record, before.order, seed, resumed)
        terms = build(replace(saved, ledger=NO_FAILURES))
        terms["present mixture"] = asdict(self.given)
        return Resumption(seed, resumed._replace(mixture=phases), terms, saved.ledger)

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return parts[0]

    def _phases(
        self, record: MixtureRecord, order: MixtureOrder, seed: int, progress: Progress
    ) -> tuple[Phase, ...]:
        """The phases of the run, with one more where the mixture is another one now."""
        last = record.phases[-1].blend
        if same(record.given, self.given) or same(last, self.given):
            return self._with_most(order, seed, progress)
        # What was delivered early was read with the old weights, and so is what lies before it.
        position = progress.early[-1].stop if progress.early else progress.position
        if progress.early:
            self._check_gaps(order, seed, progress, position)
        phases = changed(order, self.given, seed=seed, epoch=progress.epoch, position=position)
        if (line := described(last, self.given)) is not None:
            warn(
                f"the mixture has changed since the state was saved: {line}. This holds from "
                f"sample {phases[-1].begin} of the run on; each source continues where it stands",
                UserWarning,
            )
        return pruned(phases, progress.epoch, progress.position)

    def _with_most(self, order: MixtureOrder, seed: int, progress: Progress) -> tuple[Phase, ...]:
        """The phases as they were, but for the number of samples that ``steps_per_epoch`` gives the
        epochs after the one under way.
        """
        last = order.phases[-1]
        if last.blend.most == self.given.most:
            return order.phases
        begun = progress.position or progress.step
        epoch = progress.epoch + 1 if begun else progress.epoch
        blend = replace(last.blend, most=self.given.most)
        return changed(order, blend, seed=seed, epoch=max(epoch, last.epoch), position=0)

    def _check_gaps(self, order: MixtureOrder, seed: int, progress: Progress, stop: int) -> None:
        """Refuse to leave out a source of which samples lie between batches that came early."""
        done = np.zeros(stop - progress.position, dtype=np.bool_)
        for begin, end in progress.done:
            done[begin - progress.position : end - progress.position] = True
        gaps = np.flatnonzero(~done) + progress.position
        names = order.sources_at(gaps, seed=seed, epoch=progress.epoch)
        if gone := sorted(names.difference(self.given.names)):
            raise StateMismatchError(
                f"the state was saved with in_order=False, and samples of source {gone[0]!r} lie "
                "between batches that were delivered early: deliver these with the mixture as it "
                "was (a batch or two), save, and leave the source out then"
            )

    def _check_content(self, record: MixtureRecord) -> None:
        """Refuse a source that has kept its name and its length, but not its content."""
        present = dict(zip(self.given.names, zip(self.given.lengths, self.fingerprints())))
        before = zip(record.given.names, record.given.lengths, record.fingerprints)
        for name, length, fingerprint in before:
            same_length, now = present.get(name, (None, None))
            if same_length == length and None not in (fingerprint, now) and fingerprint != now:
                raise StateMismatchError(
                    f"source {name!r} of the mixture has as many samples as when the state was "
                    "saved, but others, or the same ones in another order: resume with the data "
                    "that the state was saved with, or give the source another name, so that it "
                    "is a new one"
                )
