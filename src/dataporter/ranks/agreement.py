"""Agreement: the ranks of a group hold one configuration and one state, or all raise (C7)."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dataporter._torch import collective_device
from dataporter.errors import RankMismatchError, add_note

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Ranks", "Terms"]

# The digest of a rank that failed; other digests are never negative.
_FAILED = -1
_VALUES_SHOWN = 8
# What a difference means, where the name does not say it.
_MEANINGS = {"dataset_fingerprint": " (the datasets hold other data)"}
# Terms that differ where each rank was given a part of the data.
_OF_DATA = frozenset({"dataset_fingerprint", "dataset_length", "num_shards"})
_OTHER_DATA = (
    "If each rank was given its own part of the data (by Subset, shard() or a list of files), the "
    "loader would divide that part once more, and the rest of it would never be read: pass the "
    "whole dataset on every rank, or pass rank=0, world_size=1, and each rank reads its own data "
    "alone, with its own state. If all ranks hold the same data, name it: "
    "fingerprint='my-data'."
)
_OTHER_LOADERS = (
    "All ranks must build the same loader and load the same state; for a loader on one rank only, "
    "pass rank=0, world_size=1."
)
_WARNS_AFTER = 10.0  # s


@dataclass(slots=True)
class Terms:
    """A rank's side of an agreement.

    Attributes:
        equal: the values that must be the same on every rank, by name.
        first: a number of 0 or more; after the agreement, that of the group's first rank.
    """

    equal: dict[str, object] = field(default_factory=dict)
    first: int = 0


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks that hold a loader like this one. Without a group, only this rank."""

    group: ProcessGroup | None = None

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.group is not None and dist.get_world_size(self.group) > 1

    @contextmanager
    def agreed(self, call: str) -> Iterator[Terms]:
        """A block that every rank runs; it succeeds on all of them or on none.

        The block fills in its terms and changes nothing. Leaving it, also by an error, costs one
        all-reduce of 24 bytes; only if that shows a difference are details gathered. If a rank
        never reaches the block, the others wait as long as the group's timeout, and warn before.

        Args:
            call: the call that the ranks make, as errors show it.

        Raises:
            RankMismatchError: the terms differ, or another rank's block raised.
        """
        terms = Terms()
        try:
            yield terms
        except Exception as error:
            if self.several and self._differ(call, terms, _FAILED):
                self.gathered(_Report(call, {}, f"{type(error).__name__}: {error}"))
                add_note(error, f"{call}: every other rank of the process group raises as well")
            raise
        if self.several and self._differ(call, terms, _digest(call, terms.equal)):
            shown = {name: _shown(value) for name, value in terms.equal.items()}
            raise RankMismatchError(_explanation(self.gathered(_Report(call, shown))))

    def all_equal(self, digest: int | None) -> bool:
        """Whether all ranks call this with the same digest; costs one all-reduce of 16 bytes.

        Args:
            digest: 0 to 2**32 - 1, or None for one that equals no other.
        """
        if not self.several:
            return False
        number = (1 << 32) + dist.get_rank(self.group) if digest is None else digest
        message = torch.tensor(
            [number, -number], dtype=torch.int64, device=collective_device(self.group)
        )
        dist.all_reduce(message, dist.ReduceOp.MAX, group=self.group)
        highest, minus_lowest = message.tolist()
        return bool(highest == -minus_lowest)

    def lowest(self, number: int) -> int:
        """The lowest of all ranks' numbers; costs one all-reduce of 8 bytes."""
        if not self.several:
            return number
        message = torch.tensor(number, dtype=torch.int64, device=collective_device(self.group))
        dist.all_reduce(message, dist.ReduceOp.MIN, group=self.group)
        return int(message)

    def gathered(self, own: Any) -> list[Any]:
        """The object of each rank, in the order of the ranks."""
        if not self.several:
            return [own]
        gathered: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(gathered, own, group=self.group)
        return gathered

    def _differ(self, call: str, terms: Terms, digest: int) -> bool:
        group = self.group
        first = terms.first if dist.get_rank(group) == 0 else 0
        # The maximum of the negated digests is minus the lowest digest.
        message = torch.tensor(
            [digest, -digest, first], dtype=torch.int64, device=collective_device(group)
        )
        with _warning_if_slow(call, dist.get_world_size(group)):
            dist.all_reduce(message, dist.ReduceOp.MAX, group=group)
            highest, minus_lowest, terms.first = message.tolist()
        return bool(highest != -minus_lowest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        # A group cannot be copied, and a loader's copy still has the same ranks.
        return self

    def __reduce__(self) -> tuple[type[Ranks], tuple[()]]:
        # A group belongs to its process: after unpickling there are no other ranks.
        return Ranks, ()


@contextmanager
def _warning_if_slow(call: str, ranks: int) -> Iterator[None]:
    """Warn if the block takes long, because a silent wait looks like a bug."""
    message = (
        f"{call} has waited {_WARNS_AFTER:.0f} s for the other ranks of the process group: all "
        f"{ranks} ranks must call it. For a loader on this rank only, pass rank=0, world_size=1"
    )
    timer = threading.Timer(_WARNS_AFTER, warnings.warn, (message, RuntimeWarning))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass(frozen=True, slots=True)
class _Report:
    """What one rank reports if they differ: its terms as text, or its failure."""

    call: str
    terms: Mapping[str, str]
    failure: str | None = None


def _digest(call: str, equal: Mapping[str, object]) -> int:
    text = json.dumps([call, equal], sort_keys=True, default=repr)
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _explanation(reports: Sequence[_Report]) -> str:
    failed = {rank: report.failure for rank, report in enumerate(reports) if report.failure}
    lines = [f"{ranks} raised {failure}" for failure, ranks in _by_value(failed)]
    calls = {rank: report.call for rank, report in enumerate(reports)}
    terms = {rank: report.terms for rank, report in enumerate(reports) if not report.failure}
    if len(set(calls.values())) > 1:
        lines.append(f"call: {_listed(_by_value(calls))}")
        terms.clear()  # different calls have different terms
    differing = set()
    for name in dict.fromkeys(name for one in terms.values() for name in one):
        values = _by_value({rank: one[name] for rank, one in terms.items()})
        if len(values) > 1:
            differing.add(name)
            lines.append(f"{name}: {_listed(values)}{_MEANINGS.get(name, '')}")
    differences = "".join(f"\n  - {line}" for line in lines)
    only_data = not failed and differing and differing <= _OF_DATA
    return (
        f"{' / '.join(dict.fromkeys(calls.values()))}: the {len(reports)} ranks of the process "
        f"group differ:{differences}\nNothing was changed on any rank. "
        f"{_OTHER_DATA if only_data else _OTHER_LOADERS}"
    )


def _listed(values: Sequence[tuple[str, str]]) -> str:
    listed = "; ".join(f"{value} on {ranks}" for value, ranks in values[:_VALUES_SHOWN])
    more = len(values) - _VALUES_SHOWN
    return listed + (f"; and {more} other values" if more > 0 else "")


def _by_value(values: Mapping[int, str]) -> list[tuple[str, str]]:
    """Each distinct value with the ranks that have it, such as ``ranks 0, 2-7``."""
    ranks_of: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks_of.setdefault(value, []).append(rank)
    return [(value, _named(ranks)) for value, ranks in ranks_of.items()]


def _named(ranks: Sequence[int]) -> str:
    runs = []
    # Consecutive ranks have the same difference to their index in the list.
    for _, group in groupby(enumerate(ranks), key=lambda pair: pair[1] - pair[0]):
        run = [rank for _, rank in group]
        runs.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {', '.join(runs)}"
