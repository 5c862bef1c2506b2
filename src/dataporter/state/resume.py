"""Where a loader resumes from a state, or why it refuses the state (C6)."""

from __future__ import annotations

from typing import Literal

from dataporter.checks import given, is_one_of
from dataporter.errors import ConfigurationError, InvalidStateError, StateMismatchError, warn
from dataporter.schedule.mixed import MixedSchedule
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.state.consequences import UNKNOWN, consequences
from dataporter.state.schema import Identity, Mismatch, State
from dataporter.state.strategies import ResumptionStrategy, explain

__all__ = [
    "OnMismatch",
    "compared",
    "contradiction",
    "on_mismatch_checked",
    "resume_at",
    "settle",
]

OnMismatch = Literal["error", "warn"]


def on_mismatch_checked(name: str, value: object) -> object:
    """``"error"`` or ``"warn"``."""
    if is_one_of(value, "error", "warn"):
        return value
    raise ConfigurationError(f"{given(name, value)}: expected 'error' or 'warn'")


def resume_at(
    saved: State,
    present: Identity,
    strategy: ResumptionStrategy,
    schedule: PlannedSchedule | MixedSchedule,
    given_seed: int | None,
    on_mismatch: OnMismatch,
) -> tuple[int, Progress]:
    """Seed and progress at which a loader with the identity ``present`` resumes.

    Args:
        given_seed: the seed that the loader was built with; None takes the state's.

    Raises:
        InvalidStateError: the state's numbers contradict each other.
        StateMismatchError: the state belongs to another loader, and ``on_mismatch`` is
            ``"error"``.
    """
    progress, before = saved.progress, saved.identity
    seed, mismatches = compared(saved, present, strategy, given_seed, on_mismatch)
    if not mismatches:
        if schedule.within(progress) != progress:
            raise contradiction(progress)
        step, digest = schedule.counted_at(progress, seed)
        if digest != progress.digest:
            mismatches.append(Mismatch("order_digest", progress.digest, digest))
        elif strategy.counts == "batches" and step != progress.step:
            raise contradiction(progress)
    length = before.dataset_length
    if isinstance(schedule, PlannedSchedule) and length is not None and _has_grown(mismatches):
        share = before.batch_size or 1, before.world_size
        if schedule.is_over(progress, length, *share):
            warn(_grown(saved, present, "all batches were delivered"), RuntimeWarning)
            return seed, schedule.progress_at(
                progress.epoch, schedule.epoch_steps(progress.epoch), seed
            )
    if mismatches and on_mismatch == "error":
        raise StateMismatchError(explain(mismatches))
    resumed = schedule.within(strategy.resume(saved, present, schedule, seed))
    if mismatches:
        warn(explain(mismatches, consequences(saved, schedule, seed, resumed)), RuntimeWarning)
    return seed, resumed


def compared(
    saved: State,
    present: Identity,
    strategy: ResumptionStrategy,
    given_seed: int | None,
    on_mismatch: OnMismatch,
) -> tuple[int, list[Mismatch]]:
    """The seed of a loader that resumes from a state, and where the two differ."""
    on_mismatch_checked("on_mismatch", on_mismatch)
    seed = saved.seed if given_seed is None else given_seed
    mismatches = strategy.mismatches(saved.identity, present)
    if seed != saved.seed:
        mismatches.append(Mismatch("seed", saved.seed, seed))
    progress = saved.progress
    if not (progress.step or progress.delivered) and _has_grown(mismatches):
        warn(_grown(saved, present, "no batch was delivered"), RuntimeWarning)
        return seed, []
    return seed, mismatches


def _has_grown(mismatches: list[Mismatch]) -> bool:
    """Whether the dataset has another length, and nothing else differs."""
    names = {mismatch.field for mismatch in mismatches}
    return "dataset_length" in names <= {"dataset_length", "dataset_fingerprint"}


def _grown(saved: State, present: Identity, why: str) -> str:
    return (
        f"the dataset had {saved.identity.dataset_length} samples when the state was saved and has "
        f"{present.dataset_length} now. The state is from epoch {saved.progress.epoch}, of which "
        f"{why}: the new length counts from here on"
    )


def settle(mismatches: list[Mismatch], on_mismatch: OnMismatch) -> None:
    """Raise, or warn, if there are any."""
    if mismatches and on_mismatch == "error":
        raise StateMismatchError(explain(mismatches))
    if mismatches:
        warn(explain(mismatches, UNKNOWN), RuntimeWarning)


def contradiction(progress: Progress) -> InvalidStateError:
    """The error for a state whose numbers do not fit together."""
    return InvalidStateError(
        f"the state's fields step ({progress.step}), position ({progress.position}) and early "
        f"({list(progress.early)}) contradict each other, or do not fit an epoch of this dataset: "
        "the state is damaged or was edited; load another one"
    )
