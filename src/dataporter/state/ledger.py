"""The ledger: which samples failed and how often, as a value that moves with the position (C5)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, TypeAlias

from dataporter.fetch.failure import Failure

__all__ = ["MOST_BYTES", "MOST_RECORDS", "NO_FAILURES", "Ledger", "joined"]

# A ledger is part of each state, so that it has to stay small, whatever the dataset.
MOST_RECORDS = 64
MOST_BYTES = 8000
_COUNT_BYTES = 20  # a record's count may grow

_Key: TypeAlias = tuple[Any, str]


@dataclass(frozen=True, slots=True)
class Ledger:
    """The failures up to a position.

    Attributes:
        records: the first samples that failed, as many as fit into a state.
        total: number of failures, exactly.
        epoch, in_epoch: number of failures on this rank in the epoch that began last.
        loaded: what of it came with a state; None for nothing.
    """

    records: tuple[Failure, ...] = ()
    total: int = 0
    epoch: int = 0
    in_epoch: int = 0
    loaded: Ledger | None = None

    def after(self, failures: Iterable[Failure]) -> Ledger:
        """The ledger once these have failed as well, in the epoch that has begun."""
        failures = tuple(failures)
        if not failures:
            return self
        count = sum(failure.count for failure in failures)
        return replace(
            self,
            records=_merged(self.records, failures),
            total=self.total + count,
            in_epoch=self.in_epoch + count,
        )

    def begun(self, epoch: int, step: int) -> Ledger:
        """The ledger once a pass has begun there: an epoch that is read again counts anew."""
        return self if step and epoch == self.epoch else replace(self, epoch=epoch, in_epoch=0)

    @property
    def left_out(self) -> int:
        """Number of failures that no record counts."""
        return self.total - sum(record.count for record in self.records)

    def in_epoch_of(self, epoch: int) -> int:
        """Number of failures on this rank in this epoch, or rather in its last pass."""
        return self.in_epoch if epoch == self.epoch else 0

    def as_loaded(self) -> Ledger:
        """The ledger of a loader that has just loaded a state with this one."""
        return replace(self, loaded=replace(self, loaded=None))

    def since_loaded(self) -> Ledger:
        """What was added to the ledger since it came with a state."""
        if self.loaded is None:
            return self
        before = {_key(record): record.count for record in self.loaded.records}
        counts = [(record, record.count - before.get(_key(record), 0)) for record in self.records]
        records = tuple(replace(record, count=count) for record, count in counts if count > 0)
        return Ledger(records, self.total - self.loaded.total, self.epoch, self.in_epoch)

    def to_json(self, epoch: int) -> list[Any]:
        """The ledger in a state of this epoch, as JSON types: total, in_epoch and records.

        All in one value: torch.distributed.checkpoint may take each key of a state from another
        rank, and each rank has its own ledger.
        """
        return [self.total, self.in_epoch_of(epoch), [_listed(record) for record in self.records]]

    @classmethod
    def from_json(cls, value: Any, epoch: int) -> Ledger | None:
        """The ledger that a state of this epoch holds; None where it cannot be one."""
        if not isinstance(value, list | tuple) or len(value) != 3:
            return None
        total, in_epoch, entries = value
        if not (_is_number(total) and _is_number(in_epoch) and isinstance(entries, list | tuple)):
            return None
        records = tuple(record for entry in entries if (record := _record(entry)) is not None)
        distinct = len({_key(record) for record in records})
        listed = sum(record.count for record in records)
        if distinct != len(entries) or listed > total or in_epoch > total:
            return None
        return cls(records, total, epoch if in_epoch else 0, in_epoch)


NO_FAILURES = Ledger()


def joined(ledgers: Sequence[Ledger], epoch: int) -> Ledger:
    """One ledger of those of all ranks. What they loaded in common counts once.

    The failures of the epoch become the mean of the ranks, since they are compared with the
    ``max_failures`` of one rank.
    """
    loaded = dict.fromkeys(ledger.loaded for ledger in ledgers if ledger.loaded is not None)
    parts = [*loaded, *(ledger.since_loaded() for ledger in ledgers)]
    records: tuple[Failure, ...] = ()
    for part in parts:
        records = _merged(records, part.records)
    in_epoch = sum(ledger.in_epoch_of(epoch) for ledger in ledgers)
    total = sum(part.total for part in parts)
    return Ledger(records, total, epoch, -(-in_epoch // len(ledgers)))


def _merged(records: tuple[Failure, ...], more: Iterable[Failure]) -> tuple[Failure, ...]:
    """The records with more of them, as far as there is room."""
    merged = {_key(record): record for record in records}
    size: int | None = None
    for failure in more:
        key = _key(failure)
        if (known := merged.get(key)) is not None:
            merged[key] = replace(known, count=known.count + failure.count)
        elif len(merged) < MOST_RECORDS:
            size = sum(map(_size, merged.values())) if size is None else size
            if size + _size(failure) <= MOST_BYTES:
                merged[key] = failure
                size += _size(failure)
    return tuple(merged.values())


def _key(failure: Failure) -> _Key:
    return failure.index, failure.error


def _size(failure: Failure) -> int:
    """Bytes of a record in a state, as JSON."""
    return len(json.dumps(_listed(replace(failure, count=0)))) + _COUNT_BYTES


def _listed(failure: Failure) -> list[Any]:
    return [_as_list(failure.index), *astuple(failure)[1:]]


def _as_list(index: Any) -> Any:
    return [_as_list(part) for part in index] if isinstance(index, tuple) else index


def _record(entry: Any) -> Failure | None:
    if not isinstance(entry, list | tuple) or len(entry) != len(fields(Failure)):
        return None
    index, name, epoch, step, position, error, message, count = entry
    numbers = (epoch, step, position, count)
    sound = (
        _is_index(index)
        and (name is None or isinstance(name, str))
        and all(map(_is_number, numbers))
        and count > 0
        and isinstance(error, str)
        and isinstance(message, str)
    )
    return Failure(_as_tuple(index), *entry[1:]) if sound else None


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_index(index: Any) -> bool:
    if isinstance(index, list | tuple):
        return all(map(_is_index, index))
    return type(index) in (int, str)


def _as_tuple(index: Any) -> Any:
    return tuple(map(_as_tuple, index)) if isinstance(index, list | tuple) else index
