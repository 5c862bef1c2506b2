"""The schema of the state: build a state, read one, and list what differs (C5, C6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dataporter.errors import InvalidStateError
from dataporter.fetch.failure import Failure
from dataporter.orders.mixture.order import inner_name
from dataporter.schedule.progress import Delivered, Progress
from dataporter.schedule.sampler_record import SamplerRecord
from dataporter.state.foreign import refuse_foreign
from dataporter.state.found import SCHEMA
from dataporter.state.ledger import NO_FAILURES, Ledger

__all__ = [
    "DAMAGED",
    "SCHEMA",
    "SCHEMA_VERSION",
    "Identity",
    "Mismatch",
    "State",
    "build",
    "check_numbers",
    "check_schema",
    "check_type",
    "differences",
    "ledger_of",
    "parse",
    "part_of",
    "shown",
    "types_of",
]

SCHEMA_VERSION = 3
# By schema, the fields that it added, with the values that they have in earlier states.
_ADDED: dict[int, dict[str, object]] = {
    2: {
        "failures": [0, 0, []],
        "rank": None,
        "sampler": None,
        "ranks": None,
        "continued": 0,
        "earlier": 0,
    },
    3: {"mixture": None},
}

_LIMIT = 1 << 63
# What an error of a field ends with.
DAMAGED = "the state is damaged or was edited; load another one"
_NOT_NEGATIVE = ("seed", "epoch", "step", "position", "order_digest", "dataset_length")

Types = tuple[type, ...]
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields that determine a loader's batches, beside seed and progress, on all ranks."""

    strategy: str
    order: str
    order_version: int
    dataset_length: int | None
    dataset_fingerprint: str | None
    batch_size: int | None
    world_size: int
    tail: str


@dataclass(frozen=True, slots=True)
class State:
    """A state as its parts.

    Attributes:
        rank: whose part it is, where a custom sampler gives each rank's indices.
        ranks: each rank's order and progress, where their parts were joined.
        mixture: what it holds of a mixture, as lists; None for any other dataset.
    """

    identity: Identity
    seed: int
    progress: Progress
    ledger: Ledger = NO_FAILURES
    rank: int | None = None
    ranks: tuple[tuple[str, Progress], ...] | None = None
    mixture: Any = None


def types_of(record: type) -> dict[str, Types]:
    """By field of a dataclass or named tuple, the types that JSON may give back for its value."""
    return {name: _types_in_json(hint) for name, hint in get_type_hints(record).items()}


def _types_in_json(hint: Any) -> Types:
    if get_origin(hint) is tuple:
        return list, tuple
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def part_of(state: Mapping[str, Any], record: type[Part], **others: Any) -> Part:
    """A dataclass or named tuple with the values of the state's keys of the same names.

    Args:
        others: values of the fields that the state holds in another form or under another name.
    """
    values = {**state, **others}
    return record(**{name: values[name] for name in record.__annotations__})


_FIELDS = {
    SCHEMA: (int,),
    "seed": types_of(State)["seed"],
    **types_of(Identity),
    **types_of(Progress),
    "failures": (list, tuple),
    "rank": (int, type(None)),
    "sampler": (str, type(None)),
    "ranks": (list, tuple, type(None)),
    "mixture": (list, tuple, type(None)),
}
_FIELDS["order_digest"] = _FIELDS.pop("digest")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A field in which a state and a loader differ, with advice if the usual one does not apply."""

    field: str
    saved: object
    present: object
    advice: str | None = None


def build(state: State) -> dict[str, Any]:
    """The state as a flat dict of JSON types.

    It always has all keys, because torch.distributed.checkpoint loads only the keys that the
    present state has.
    """
    identity, progress = state.identity, state.progress
    return {
        SCHEMA: SCHEMA_VERSION,
        "strategy": identity.strategy,
        "seed": state.seed,
        "epoch": progress.epoch,
        "step": progress.step,
        "position": progress.position,
        "early": [list(stretch[:3]) for stretch in progress.early],
        "order": identity.order,
        "order_version": identity.order_version,
        "order_digest": progress.digest,
        "dataset_length": identity.dataset_length,
        "dataset_fingerprint": identity.dataset_fingerprint,
        "batch_size": identity.batch_size,
        "world_size": identity.world_size,
        "tail": identity.tail,
        "failures": state.ledger.to_json(progress.epoch),
        "rank": state.rank,
        "sampler": _text(progress),
        "ranks": None if state.ranks is None else [_entry(*one) for one in state.ranks],
        "mixture": state.mixture,
    }


def parse(state: Mapping[str, Any]) -> State:
    """Read a state. Nothing in it is executed or imported.

    Raises:
        InvalidStateError: the dict is not a state, is of a newer schema, or a field is missing or
            wrong.
    """
    state = check_schema(state, _FIELDS)
    check_numbers(state, _NOT_NEGATIVE, lowest=0)
    check_numbers(state, ("batch_size", "world_size"), lowest=1)
    early = _early(state["early"], state["position"])
    progress = part_of(
        state,
        Progress,
        early=early,
        digest=state["order_digest"],
        sampler=_record(state["sampler"]),
        mixture=None,
    )
    world_size, rank = state["world_size"], state["rank"]
    if rank is not None and not 0 <= rank < world_size:
        raise InvalidStateError(
            f"the state's field 'rank' is {rank}, expected 0 to {world_size - 1}"
        )
    identity, ranks = part_of(state, Identity), _ranks(state["ranks"], world_size)
    ledger, mixture = ledger_of(state), state["mixture"]
    if (inner_name(identity.order) is None) != (mixture is None):
        raise InvalidStateError(
            f"the state's field 'mixture' is {shown(mixture)}, which does not fit the order "
            f"{identity.order!r}: {DAMAGED}"
        )
    return State(identity, state["seed"], progress, ledger, rank, ranks, mixture)


def ledger_of(state: Mapping[str, Any]) -> Ledger:
    """The ledger that a state of the right types holds."""
    if (ledger := Ledger.from_json(state["failures"], state["epoch"])) is None:
        raise InvalidStateError(
            f"the state's field 'failures' holds {shown(state['failures'])}, expected [total, "
            "in_epoch, records] with total >= in_epoch >= 0, and as many failures in the records, "
            f"or fewer; a record is [{', '.join(Failure.__annotations__)}]: {DAMAGED}"
        )
    return ledger


def differences(saved: Any, present: Any) -> list[Mismatch]:
    """The fields in which two identities of one class differ, in the order of the class."""
    return [
        Mismatch(field.name, getattr(saved, field.name), getattr(present, field.name))
        for field in fields(saved)
        if getattr(saved, field.name) != getattr(present, field.name)
    ]


def check_schema(state: Mapping[str, Any], known: Mapping[str, Types]) -> Mapping[str, Any]:
    """The state in this release's schema, once its fields are known to have these types.

    Raises:
        InvalidStateError: the state fails the check; the message names the field.
    """
    if not isinstance(state, Mapping) or type(state.get(SCHEMA)) is not int:
        refuse_foreign(state)
    if not isinstance(state, Mapping):
        raise InvalidStateError(
            f"load_state_dict expected the dict that state_dict() returned, got {shown(state)}"
        )
    if SCHEMA not in state:
        raise InvalidStateError(
            f"this is not the state of a ResumableDataLoader: the field {SCHEMA!r} (the schema "
            f"version) is missing; its fields are {sorted(map(str, state))[:20]}: pass the dict "
            "that the loader's state_dict() returned"
        )
    check_type(SCHEMA, state[SCHEMA], known[SCHEMA])
    if state[SCHEMA] > SCHEMA_VERSION:
        raise InvalidStateError(
            f"the state's field {SCHEMA!r} says schema {state[SCHEMA]}, but this release reads up "
            f"to {SCHEMA_VERSION}: upgrade dataporter to the release that wrote the state, or later"
        )
    if state[SCHEMA] < 1:
        raise InvalidStateError(
            f"the state's field {SCHEMA!r} is {state[SCHEMA]}, expected 1 to {SCHEMA_VERSION}: "
            f"{DAMAGED}"
        )
    if ("stream" in state) != ("stream" in known):
        read = ("an iterable dataset", "a map-style dataset")
        saved, present = read if "stream" in state else reversed(read)
        raise InvalidStateError(
            f"the state is of {saved}, but this loader reads {present}: load it into a loader of "
            "the dataset that it was saved with"
        )
    for version in range(state[SCHEMA] + 1, SCHEMA_VERSION + 1):
        added = {name: value for name, value in _ADDED[version].items() if name in known}
        state = {**added, **state}
    for field, types in known.items():
        if field not in state:
            raise InvalidStateError(
                f"the state has no field {field!r}; its fields are {sorted(map(str, state))}: "
                f"{DAMAGED}"
            )
        check_type(field, state[field], types)
    unknown = sorted(map(str, set(state) - set(known)))
    if unknown:
        raise InvalidStateError(
            f"the state has fields that schema {SCHEMA_VERSION} does not know: {unknown}; pass "
            "exactly the dict that state_dict() returned, without the rest of the checkpoint"
        )
    return state


def check_numbers(state: Mapping[str, Any], names: Iterable[str], *, lowest: int) -> None:
    """Check that the values of these fields, unless null, lie in the range of a state."""
    for field in names:
        if state[field] is None or lowest <= state[field] < _LIMIT:
            continue
        expected = f"{lowest} to {_LIMIT - 1}" if lowest == 0 else f"{lowest} or more"
        raise InvalidStateError(
            f"the state's field {field!r} is {state[field]}, expected {expected}: {DAMAGED}"
        )


def check_type(field: str, value: object, types: tuple[type, ...]) -> None:
    """Check that a field has one of its types. A ``bool`` is an ``int`` to Python, but not here."""
    if not isinstance(value, types) or isinstance(value, bool):
        expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
        raise InvalidStateError(
            f"the state's field {field!r} is {shown(value)}, expected {expected}: {DAMAGED}"
        )


def _early(stretches: object, position: int) -> tuple[Delivered, ...]:
    assert isinstance(stretches, list | tuple)
    early: list[Delivered] = []
    before = position
    for stretch in stretches:
        sound = (
            isinstance(stretch, list | tuple)
            and len(stretch) == 3
            and all(type(number) is int for number in stretch)
            and before < stretch[0] < stretch[1]
            and stretch[2] >= 0
        )
        if not sound:
            raise InvalidStateError(
                f"the state's field 'early' holds {shown(stretch)}, expected "
                f"[start, stop, digest] with {before} < start < stop: {DAMAGED}"
            )
        early.append(Delivered(*stretch))
        before = stretch[1]
    return tuple(early)


def _text(progress: Progress) -> str | None:
    return None if progress.sampler is None else progress.sampler.text()


def _record(text: str | None) -> SamplerRecord | None:
    return None if text is None else SamplerRecord.from_text(text)


def _entry(order: str, progress: Progress) -> list[Any]:
    """A rank's progress in a joined state."""
    numbers = (progress.epoch, progress.step, progress.position, progress.digest)
    return [order, *numbers, _text(progress)]


def _ranks(entries: object, world_size: int) -> tuple[tuple[str, Progress], ...] | None:
    if entries is None:
        return None
    assert isinstance(entries, list | tuple)
    if len(entries) != world_size:
        raise InvalidStateError(
            f"the state's field 'ranks' has {len(entries)} entries, expected one for each of the "
            f"{world_size} ranks"
        )
    return tuple(_progress_of(entry) for entry in entries)


def _progress_of(entry: object) -> tuple[str, Progress]:
    if (
        isinstance(entry, list | tuple)
        and len(entry) == 6
        and isinstance(entry[0], str)
        and all(type(number) is int and 0 <= number < _LIMIT for number in entry[1:5])
        and isinstance(entry[5], str | None)
    ):
        order, epoch, step, position, digest, text = entry
        return order, Progress(epoch, step, position, (), digest, _record(text))
    raise InvalidStateError(
        f"the state's field 'ranks' holds {shown(entry)}, expected [order, epoch, step, position, "
        "digest, sampler]"
    )


def shown(value: object) -> str:
    """A value in an error message, shortened if it is long."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"
