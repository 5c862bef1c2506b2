"""The flow of datasets with an index: any batch can be asked for, and the state is a place (C1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from dataporter.datasets.rows import length_of
from dataporter.engines import Engine, Reply
from dataporter.errors import DatasetChangedError, UnsupportedDatasetError
from dataporter.fetch.fetch import Fetch, OnError, fetch_for
from dataporter.loader.flow import Resumption
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.schedule.sampled import SampledSchedule
from dataporter.schedule.schedule import Requests, Schedule
from dataporter.state.resume import OnMismatch, place_of
from dataporter.state.schema import Identity, State, build, parse
from dataporter.state.strategies import ResumptionStrategy

__all__ = ["IndexedFlow", "length_if_any"]


@dataclass(frozen=True, slots=True)
class IndexedFlow:
    """A dataset with an index, as one rank reads it.

    Attributes:
        rows: the dataset as something that is indexed by row.
        source: where the requests come from.
        strategy: says what may change at a resume.
        identity: what the batches are made of.
    """

    rows: Any
    source: Schedule
    strategy: ResumptionStrategy
    identity: Identity

    def beginning(self, epoch: int) -> Progress:
        return Progress(epoch)

    def terms(self) -> Mapping[str, Any]:
        return asdict(self.identity)

    def length(self) -> int | None:
        return self.source.steps(Progress()) if isinstance(self.source, PlannedSchedule) else None

    def remaining(self, progress: Progress) -> int:
        return self.source.steps(progress)

    def requested_epoch(self) -> int | None:
        source = self.source
        return source.requested_epoch() if isinstance(source, SampledSchedule) else None

    def overlook_requested_epoch(self) -> None:
        if isinstance(self.source, SampledSchedule):
            self.source.overlook_requested_epoch()

    def fetch_builder(
        self,
        collate_fn: Callable[[Any], Any],
        *,
        batched: bool,
        seeds_each: Literal["sample", "batch", "nothing"],
        on_error: OnError,
    ) -> Callable[..., Fetch]:
        return partial(
            fetch_for,
            self.rows,
            collate_fn,
            batched=batched,
            seeds_each=seeds_each,
            on_error=on_error,
        )

    def for_pass(self, num_workers: int, progress: Progress) -> IndexedFlow:
        return self

    def serve(self, engine: Engine, progress: Progress, seed: int) -> Iterator[Reply]:
        self._check_dataset()
        source = self.source
        return engine.start(
            Requests(source, progress, seed), source.ahead(progress.epoch + 1, seed)
        )

    def state(self, seed: int, progress: Progress) -> dict[str, Any]:
        return build(State(self.identity, seed, progress))

    def joined(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return parts[0]

    def resumption(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        saved = parse(state)
        seed, progress = place_of(
            saved, self.identity, self.strategy, self.source, given_seed, on_mismatch
        )
        return Resumption(seed, progress, build(saved))

    def _check_dataset(self) -> None:
        length, present = self.identity.dataset_length, length_if_any(self.rows)
        if length != present:
            raise DatasetChangedError(
                f"the dataset had {length} samples when the loader was built and has "
                f"{present} now: build a new loader for it"
            )


def length_if_any(rows: Any) -> int | None:
    """How many samples a dataset has, where it says so: with a sampler it need not."""
    try:
        return length_of(rows)
    except UnsupportedDatasetError:
        return None
