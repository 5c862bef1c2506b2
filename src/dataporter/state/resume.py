"""Where a loader resumes from a state, or why it refuses the state (C6)."""

from __future__ import annotations

from typing import Literal

from dataporter.checks import given, is_one_of
from dataporter.errors import ConfigurationError, InvalidStateError, StateMismatchError, warn
from dataporter.schedule.progress import Progress
from dataporter.schedule.schedule import Recount
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
    schedule: Recount,
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
    progress = saved.progress
    seed, mismatches = compared(saved, present, strategy, given_seed, on_mismatch)
    if not mismatches:
        if schedule.within(progress) != progress:
            raise contradiction(progress)
        step, digest = schedule.counted_at(progress, seed)
        if digest != progress.digest:
            mismatches.append(Mismatch("order_digest", progress.digest, digest))
        elif strategy.counts == "batches" and step != progress.step:
            raise contradiction(progress)
    settle(mismatches, on_mismatch)
    return seed, schedule.within(strategy.resume(saved, present, schedule, seed))


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
    return seed, mismatches


def settle(mismatches: list[Mismatch], on_mismatch: OnMismatch) -> None:
    """Raise, or warn, if there are any."""
    if mismatches and on_mismatch == "error":
        raise StateMismatchError(explain(mismatches))
    if mismatches:
        warn(explain(mismatches), RuntimeWarning)


def contradiction(progress: Progress) -> InvalidStateError:
    """The error for a state whose numbers do not fit together."""
    return InvalidStateError(
        f"the state's fields step ({progress.step}), position ({progress.position}) and early "
        f"({list(progress.early)}) contradict each other, or do not fit an epoch of this dataset: "
        "the state is damaged or was edited; load another one"
    )
