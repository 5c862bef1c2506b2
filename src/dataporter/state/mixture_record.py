"""What a state holds of a mixture: its phases from the position on, as JSON (C5, C14)."""

from __future__ import annotations

from typing import Any, NamedTuple

from dataporter.errors import InvalidStateError
from dataporter.orders.mixture.apportion import MOST_SAMPLES
from dataporter.orders.mixture.phase import Blend, Phase
from dataporter.orders.mixture.streams import Consumed
from dataporter.orders.mixture.weights import Weights
from dataporter.state.schema import DAMAGED, shown

__all__ = ["MixtureRecord", "check_begin", "read", "written"]


class MixtureRecord(NamedTuple):
    """What a state holds of a mixture.

    Attributes:
        given: the blend that the mixture was built with; weights that were set since are in the
            phases alone.
        phases: from the one in which the position lies.
        fingerprints: of the given sources' content.
    """

    given: Blend
    phases: tuple[Phase, ...]
    fingerprints: tuple[str | None, ...]


def written(record: MixtureRecord) -> list[Any]:
    """The record as lists, numbers and texts.

    Lists, since torch.distributed.checkpoint would load of a dict only the keys that the present
    one has.
    """
    last = record.phases[-1].blend
    given = None if record.given == last else _blend(record.given)
    return [given, [_phase(phase) for phase in record.phases], list(record.fingerprints)]


def read(value: object) -> MixtureRecord:
    """The record that was written so.

    Raises:
        InvalidStateError: it was not.
    """
    try:
        given, phases, fingerprints = _list(value, 3)
        read_phases = tuple(_read_phase(phase) for phase in _list(phases))
        if not read_phases:
            raise _Wrong(phases, "a phase or more")
        blend = read_phases[-1].blend if given is None else _read_blend(given)
        names = tuple(None if each is None else _text(each) for each in _list(fingerprints))
        if len(names) != len(blend.names):
            raise _Wrong(fingerprints, f"{len(blend.names)} fingerprints")
        begins = [(phase.epoch, phase.position) for phase in read_phases]
        if begins != sorted(set(begins)):
            raise _Wrong(begins, "phases that follow one another")
    except _Wrong as wrong:
        found, expected = wrong.args
        raise InvalidStateError(
            f"the state's field 'mixture' holds {shown(found)}, expected {expected}: {DAMAGED}"
        ) from None
    return MixtureRecord(blend, read_phases, names)


def check_begin(record: MixtureRecord, epoch: int, position: int) -> None:
    """Raise unless the record fits the state's position."""
    begin = record.phases[0]
    if begin.epoch == 0 and begin.begin != begin.position:
        raise InvalidStateError(
            f"the state's field 'mixture' counts {begin.begin} samples before position "
            f"{begin.position} of epoch 0: the state is damaged or was edited; load another one"
        )
    if (begin.epoch, begin.position) > (epoch, position):
        raise InvalidStateError(
            f"the state's field 'mixture' begins at position {begin.position} of epoch "
            f"{begin.epoch}, after position {position} of epoch {epoch}: the state is damaged or "
            "was edited; load another one"
        )


class _Wrong(Exception):
    """Something in the record, and what was expected in its place."""


def _phase(phase: Phase) -> list[Any]:
    return [
        [phase.epoch, phase.position, phase.epoch_length],
        _blend(phase.blend),
        [_consumed(*pair) for pair in zip(phase.consumed, phase.blend.lengths)],
        [[name, *_numbers(consumed)] for name, consumed in phase.absent],
    ]


def _read_phase(value: object) -> Phase:
    begin, blend, consumed, absent = _list(value, 4)
    epoch, position, epoch_length = _list(begin, 3)
    read_blend = _read_blend(blend)
    entries = _list(consumed)
    if len(entries) != len(read_blend.names):
        raise _Wrong(consumed, f"an entry for each of {len(read_blend.names)} sources")
    pairs = zip(entries, read_blend.lengths)
    gone = []
    for entry in _list(absent):
        name, *numbers = _list(entry, 5)
        gone.append((_text(name), Consumed(*map(_number, numbers))))
    return Phase(
        read_blend,
        tuple(_read_consumed(entry, length) for entry, length in pairs),
        tuple(gone),
        _number(epoch),
        _number(position),
        None if epoch_length is None else _number(epoch_length),
    )


def _consumed(consumed: Consumed, length: int) -> int | list[int]:
    """A count alone, where the source has had this length all the time."""
    is_plain = consumed == Consumed().after(consumed.count, length)
    return consumed.count if is_plain else _numbers(consumed)


def _numbers(consumed: Consumed) -> list[int]:
    return [consumed.count, consumed.passes, consumed.offset, consumed.length]


def _read_consumed(value: object, length: int) -> Consumed:
    if isinstance(value, list | tuple):
        count, passes, offset, of = map(_number, _list(value, 4))
        if not (passes + offset <= count and (offset < of or offset == of == 0)):
            raise _Wrong(value, "[count, passes, offset, length] of a pass")
        return Consumed(count, passes, offset, of)
    return Consumed().after(_number(value), length)


def _blend(blend: Blend) -> list[Any]:
    knots = blend.weights.knots
    columns = zip(*(weights for _, weights in knots))
    each = [list(column) if len(knots) > 1 else column[0] for column in columns]
    rest: tuple[Any, ...] = (blend.limits,) if any(blend.limits) else ()
    sources = [list(source) for source in zip(blend.names, blend.lengths, each, *rest)]
    at = [position for position, _ in knots]
    return [blend.stopping, blend.most, int(blend.weights.linear), at, sources]


def _read_blend(value: object) -> Blend:
    stopping, most, linear, at, sources = _list(value, 5)
    if stopping not in ("first_exhausted", "all_exhausted"):
        stopping = _number(stopping, 1)
    positions = [_number(position) for position in _list(at)]
    if not positions or positions[0] != 0 or positions != sorted(positions):
        raise _Wrong(at, "positions that begin at 0 and do not decrease")
    names, lengths, columns, limits = [], [], [], []
    for entry in _list(sources):
        fields = _list(entry)
        if len(fields) not in (3, 4):
            raise _Wrong(entry, "[name, length, weight] or [name, length, weight, max_passes]")
        name, length, weights, limit = (*fields, None)[:4]
        names.append(_text(name))
        lengths.append(_number(length))
        column = _list(weights, len(positions)) if len(positions) > 1 else [weights]
        columns.append([_weight(weight) for weight in column])
        if not length and any(columns[-1]):
            raise _Wrong(entry, "no weight for a source without samples")
        limits.append(None if limit is None else _number(limit, 1))
    if linear not in (0, 1) or type(linear) is not int:
        raise _Wrong(linear, "0 or 1")
    if not names or len(set(names)) != len(names):
        raise _Wrong(names, "sources with names of which no two are equal")
    knots = tuple(zip(positions, zip(*columns)))
    if any(sum(weights) == 0 for _, weights in knots):
        raise _Wrong(columns, "weights that are not all 0")
    return Blend(
        tuple(names),
        tuple(lengths),
        Weights(knots, bool(linear)),
        tuple(limits),
        stopping,
        None if most is None else _number(most, 1),
    )


def _list(value: object, length: int | None = None) -> list[Any]:
    if not isinstance(value, list | tuple) or (length is not None and len(value) != length):
        raise _Wrong(value, "a list" if length is None else f"a list of {length}")
    return list(value)


def _number(value: object, lowest: int = 0) -> int:
    if type(value) is not int or not lowest <= value <= MOST_SAMPLES:
        raise _Wrong(value, f"a whole number of {lowest} or more")
    return value


def _weight(value: object) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):  # type: ignore[operator]
        raise _Wrong(value, "a weight of 0 or more")
    return value  # type: ignore[return-value]  # as was just seen


def _text(value: object) -> str:
    if type(value) is not str:
        raise _Wrong(value, "a text")
    return value
