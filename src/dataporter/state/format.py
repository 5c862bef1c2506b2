"""The state format: builds a state from a position, and resumes from a state (C2, C5, C6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

from dataporter.schedule.planned import PlannedSchedule
from dataporter.state.identified import Identified
from dataporter.state.ledger import NO_FAILURES, Ledger
from dataporter.state.resume import OnMismatch, resume_at
from dataporter.state.schema import Identity, State, build, parse
from dataporter.state.strategies import ResumptionStrategy

__all__ = ["IndexFormat", "Resumption", "StateFormat"]


class Resumption(NamedTuple):
    """The meaning of a state for the loader that it is loaded into.

    Attributes:
        seed, progress: where the loader resumes.
        terms: by name, the values that must be equal on every rank that loads the state.
        ledger: the failures that the state counts. Each rank may have its own.
    """

    seed: int
    progress: Any
    terms: Mapping[str, Any]
    ledger: Ledger


class StateFormat(Protocol):
    """Reads and writes the states of one loader."""

    def terms(self) -> Mapping[str, Any]:
        """By name, the values that must be equal on every rank."""

    def build(self, seed: int, progress: Any, ledger: Ledger = NO_FAILURES) -> dict[str, Any]:
        """The state of this rank at a progress."""

    def resume(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        """Where a saved state resumes; raises if it is damaged or belongs to another loader."""

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """One state from the states of all ranks."""


@dataclass(frozen=True, slots=True)
class IndexFormat:
    """The states of a map-style dataset: the same on every rank.

    Attributes:
        identified: the fields of the state beside seed and progress.
        strategy: says which of them may change on resume.
        schedule: recounts a saved progress.
    """

    identified: Identified
    strategy: ResumptionStrategy
    schedule: PlannedSchedule

    @property
    def identity(self) -> Identity:
        """The fields of the state, with the dataset's fingerprint."""
        return self.identified.identity()

    def terms(self) -> Mapping[str, Any]:
        return asdict(self.identity)

    def build(self, seed: int, progress: Any, ledger: Ledger = NO_FAILURES) -> dict[str, Any]:
        return build(State(self.identity, seed, progress, ledger))

    def resume(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        saved = parse(state)
        seed, progress = resume_at(
            saved, self.identity, self.strategy, self.schedule, given_seed, on_mismatch
        )
        terms = build(replace(saved, ledger=NO_FAILURES))
        return Resumption(seed, progress, terms, saved.ledger)

    def join(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return parts[0]
