"""The result of a fetch: a batch, and the samples of it that failed."""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

from dataporter.convert import Originals
from dataporter.fetch.failure import Failure

__all__ = ["NO_BATCH", "Fetched", "Nothing"]


class Nothing(Enum):
    """Stands where a batch would be."""

    NO_BATCH = "no batch"


NO_BATCH = Nothing.NO_BATCH


class PassEnd(NamedTuple):
    """What the end of a pass brings, as the value of its ``StopIteration``.

    Attributes:
        failures: the samples that failed after the last batch.
        delivers: what counts as delivered once the pass has ended; None if nothing does.
    """

    failures: tuple[Failure, ...] = ()
    delivers: Any = None


class Fetched(NamedTuple):
    """The result of a request.

    Attributes:
        batch: ``NO_BATCH`` where a stream has ended, or was only read up to an offset.
        failures: the samples that failed, in the order in which they were read.
        originals: its dtypes before the conversion.
        shard: the state of its shard after it; None where the dataset is no stream.
        leftover: the last samples of a shard, if they are no whole batch; they come with
            ``NO_BATCH``, to be joined with those of other shards.
        notice: a warning for the user.
    """

    batch: Any
    failures: tuple[Failure, ...] = ()
    originals: Originals = ()
    shard: Any = None
    leftover: Any = None
    notice: str | None = None
