"""Change: a mixture with other weights or sources from a position of a run on (C14)."""

from __future__ import annotations

from dataporter.errors import StateMismatchError
from dataporter.orders.mixture.order import MixtureOrder
from dataporter.orders.mixture.phase import Blend, Phase, timeline_of
from dataporter.orders.mixture.streams import Consumed

__all__ = ["changed", "described", "pruned", "same"]


def changed(
    order: MixtureOrder, blend: Blend, *, seed: int, epoch: int, position: int
) -> tuple[Phase, ...]:
    """The phases of a run whose mixture is another one from a position on.

    Each source is consumed from where it stands; what it has grown by joins in from its next pass
    on, since the pass under way is a permutation of the samples that were there when it began. The
    epoch under way keeps its length.

    Args:
        order: of the run so far. Phases that begin at the position or later are replaced.
        blend: the mixture from the position on.

    Raises:
        StateMismatchError: (a ``ValueError``) a source has become shorter in the middle of a pass.
    """
    earlier = tuple(p for p in order.phases if (p.epoch, p.position) < (epoch, position))
    phase = order.phase_at(epoch, position)
    _, length = timeline_of(phase).epoch(epoch)
    known = order.consumed(seed, epoch, position)
    consumed = tuple(known.pop(name, Consumed()) for name in blend.names)
    for name, now, before in zip(blend.names, blend.lengths, consumed):
        if before.offset and now < before.length:
            raise StateMismatchError(
                f"source {name!r} of the mixture had {before.length} samples when its pass "
                f"{before.passes} began and has {now} now, in the middle of that pass: resume with "
                "the samples that it had, or give it another name, so that it is a new source"
            )
    if position == length and position:
        epoch, position = epoch + 1, 0
    new = Phase(
        blend,
        consumed,
        tuple((name, gone) for name, gone in known.items() if gone.count),
        epoch,
        position,
        length if position else None,
    )
    return (*earlier, new)


def same(one: Blend, other: Blend) -> bool:
    """Whether two blends mix alike: neither the order of the sources nor the scale of the weights
    decides anything, nor how many samples a loader's ``steps_per_epoch`` gives an epoch at most.
    """
    return _plain(one) == _plain(other)


def _plain(blend: Blend) -> tuple[object, ...]:
    by_name = sorted(range(len(blend.names)), key=blend.names.__getitem__)
    rows = [(blend.names[n], blend.lengths[n], blend.limits[n]) for n in by_name]
    steps: list[tuple[int, tuple[int, ...]]] = []
    for position, weights in blend.weights.steps():
        ordered = tuple(weights[n] for n in by_name)
        if not steps or steps[-1][1] != ordered:
            steps.append((position, ordered))
    return rows, steps, blend.stopping


def pruned(phases: tuple[Phase, ...], epoch: int, position: int) -> tuple[Phase, ...]:
    """The phases from the one on in which a position lies."""
    begun = [n for n, p in enumerate(phases) if (p.epoch, p.position) <= (epoch, position)]
    return phases[begun[-1] if begun else 0 :]


def described(before: Blend, after: Blend) -> str | None:
    """In one line, what has changed between two blends; None where it is nothing to speak of."""
    old, new = dict(zip(before.names, before.lengths)), dict(zip(after.names, after.lengths))
    changes = [f"added {name!r}" for name in new if name not in old]
    changes += [f"left out {name!r}" for name in old if name not in new]
    changes += [
        f"{name!r} {'grew' if new[name] > old[name] else 'shrank'} from {old[name]} to {new[name]} "
        "samples"
        for name in new
        if name in old and new[name] != old[name]
    ]
    if before.weights != after.weights or before.names != after.names:
        changes.append(f"weights {_weights(before)} → {_weights(after)}")
    for name, limit in zip(after.names, after.limits):
        old_limit = dict(zip(before.names, before.limits)).get(name, limit)
        if limit != old_limit:
            changes.append(f"max_passes of {name!r} {old_limit} → {limit}")
    if before.stopping != after.stopping:
        changes.append(f"stopping {before.stopping!r} → {after.stopping!r} from the next epoch on")
    return ", ".join(changes) or None


def _weights(blend: Blend) -> str:
    weights = blend.weights
    shown = [
        "{" + ", ".join(f"{n}: {w:g}" for n, w in zip(blend.names, each)) + "}"
        for _, each in weights.knots
    ]
    if len(shown) == 1:
        return shown[0]
    return f"a schedule from {shown[0]} to {shown[-1]}"
