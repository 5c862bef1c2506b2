"""Memory: whether a custom sampler has any, and what its own state is good for, on copies."""

from __future__ import annotations

from typing import Any

from dataporter.schedule.sampler_record import Epochs, Way
from dataporter.schedule.walk import Walk, WalkedSampler
from dataporter.seeding.generators import seed_generators

__all__ = ["has_memory", "ways_by_state"]

# So many indices that are equal are no accident, whatever the dataset.
_CONVINCING = 64
_MOST_ROUNDS = 12
_MOST_INDICES = 1 << 17  # where a sampler without a length is left, which may be endless


def has_memory(sampler: WalkedSampler, epochs: Epochs | None, epoch: int, seed: int) -> bool:
    """Whether a walk through the sampler depends on the walks before it.

    Args:
        sampler: a copy, which is used up.
        epochs: of its parts in these walks.
    """
    compared = 0
    for _ in range(_MOST_ROUNDS):
        first = _walked(sampler, epochs, epoch, seed)
        # One that is left in the middle, as an abandoned pass is.
        half = _walked(sampler, epochs, epoch, seed, max(1, len(first) // 2))
        again = _walked(sampler, epochs, epoch, seed)
        if first != again or half != first[: len(half)]:
            return True
        compared += first[-1][0] if first else _CONVINCING
        if compared >= _CONVINCING:
            return False
    return False


def ways_by_state(
    sampler: WalkedSampler, epochs: Epochs | None, epoch: int, seed: int
) -> tuple[Way, ...]:
    """What a sampler's own state is good for.

    ``"snapshot"``: where it is taken in mid-pass and loaded, the pass continues. ``"start"``: where
    it is taken before a pass and loaded, the pass is repeated.
    """
    found: list[Way] = []
    if _holds(_continues, sampler, epochs, epoch, seed):
        found.append("snapshot")
    if _holds(_repeats, sampler, epochs, epoch, seed):
        found.append("start")
    return tuple(found)


def _holds(law: Any, sampler: WalkedSampler, epochs: Epochs | None, epoch: int, seed: int) -> bool:
    compared = 0
    for number in range(_MOST_ROUNDS):
        one, other = sampler.copied(), sampler.copied()
        if one is None or other is None:
            return False
        one.epochs.write(epochs or ())
        other.epochs.write(epochs or ())
        try:
            equal = law(one, other, epoch + number, seed)
        except Exception:  # of the user's load_state_dict
            return False
        if equal is None:
            return False
        compared += equal
        if compared >= _CONVINCING:
            break
    return compared > 0


def _continues(one: WalkedSampler, other: WalkedSampler, epoch: int, seed: int) -> int | None:
    """How many indices came as they were to, or None if others came."""
    # After one batch, or before it where there is no other.
    for steps in (1, 0):
        walk = Walk(one, epoch, seed).begin()
        for _ in range(steps):
            walk.draw()
        if (snapshot := walk.snapshot()) is None:
            return None
        rest = _rest(walk, _CONVINCING)
        if _rest(Walk(other, epoch, seed).restore(snapshot), _CONVINCING) != rest:
            return None
        if rest:
            break
    return walk.position


def _repeats(one: WalkedSampler, other: WalkedSampler, epoch: int, seed: int) -> int | None:
    walk = Walk(one, epoch, seed).begin()
    if walk.start is None:
        return None
    drawn = _rest(walk, _CONVINCING)
    # On the copy that has moved as well.
    for sampler in (other, one):
        if _rest(Walk(sampler, epoch, seed).begin(walk.start), _CONVINCING) != drawn:
            return None
    return walk.position


def _walked(
    sampler: WalkedSampler, epochs: Epochs | None, epoch: int, seed: int, steps: int | None = None
) -> list[tuple[int, int]]:
    """Position and digest after each batch of a pass, or of its first steps."""
    sampler.epochs.write(epochs or ())
    walk = Walk(sampler, epoch, seed).begin()
    walk.seeds_each = False  # which takes longer than all the rest
    with walk.isolated():
        seed_generators(seed)
        if steps is None:
            return _rest(walk, _length_of(sampler))
        return [(walk.position, walk.digest) for _ in range(steps) if walk.draw() is not None]


def _rest(walk: Walk, most: int) -> list[tuple[int, int]]:
    """Position and digest after each of the next batches, until they hold so many indices."""
    start, batches = walk.position, []
    while walk.position - start < most and walk.draw() is not None:
        batches.append((walk.position, walk.digest))
        most -= 1  # for samplers that give empty batches without end
    return batches


def _length_of(sampler: WalkedSampler) -> int:
    try:
        batches: Any = sampler.batches
        return _MOST_INDICES * max(1, len(batches))
    except (TypeError, NotImplementedError):
        return _MOST_INDICES
