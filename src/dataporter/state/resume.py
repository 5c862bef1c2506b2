"""A state beside the loader that is to go on from it: where that is, or why it is refused (C6)."""

from __future__ import annotations

from typing import Literal

from dataporter.errors import ConfigurationError, InvalidStateError, StateMismatchError, warn
from dataporter.schedule.progress import Progress
from dataporter.schedule.schedule import Schedule
from dataporter.state.schema import Identity, Mismatch, State
from dataporter.state.strategies import ResumptionStrategy, explain

__all__ = ["OnMismatch", "place_of"]

OnMismatch = Literal["error", "warn"]


def place_of(
    saved: State,
    present: Identity,
    strategy: ResumptionStrategy,
    source: Schedule,
    given_seed: int | None,
    on_mismatch: OnMismatch,
) -> tuple[int, Progress]:
    """Seed and progress with which a loader goes on that has ``present`` for its identity.

    Args:
        given_seed: the seed that the loader was built with; without one it takes the state's.

    Raises:
        InvalidStateError: the state's numbers contradict each other.
        StateMismatchError: it belongs to another loader, and ``on_mismatch`` is ``"error"``.
    """
    if on_mismatch not in ("error", "warn"):
        raise ConfigurationError(f"on_mismatch={on_mismatch!r}: expected 'error' or 'warn'")
    progress = saved.progress
    seed = saved.seed if given_seed is None else given_seed
    mismatches = strategy.mismatches(saved.identity, present)
    if seed != saved.seed:
        mismatches.append(Mismatch("seed", saved.seed, seed))
    if not mismatches:
        if source.within(progress) != progress:
            raise _contradiction(progress)
        step, digest = source.place_at(progress, seed)
        if digest != progress.digest:
            mismatches.append(Mismatch("order_digest", progress.digest, digest))
        elif strategy.counts == "batches" and step != progress.step:
            raise _contradiction(progress)
    if mismatches and on_mismatch == "error":
        raise StateMismatchError(explain(mismatches))
    if mismatches:
        warn(explain(mismatches), RuntimeWarning)
    return seed, source.within(strategy.resume(saved, present, source, seed))


def _contradiction(progress: Progress) -> InvalidStateError:
    return InvalidStateError(
        f"the state's fields step ({progress.step}), position ({progress.position}) and early "
        f"({list(progress.early)}) do not fit together, or do not fit an epoch of this dataset"
    )
