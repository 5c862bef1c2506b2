"""Together: all ranks end an epoch at the same step, where one of them has no batch left (C7)."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import TypeAlias

from dataporter.engines import Reply
from dataporter.errors import RankMismatchError
from dataporter.loader.setup import Setup

__all__ = ["Ahead", "Settle", "settling"]

# What is next in a pass: a reply; or a failure of the engine, or the end, to be raised.
Ahead: TypeAlias = Reply | BaseException
Settle: TypeAlias = Callable[[Ahead], Ahead]


class _Outlook(IntEnum):
    """What a rank has next. Of all ranks, the lowest counts."""

    BROKEN = 0  # the pass has failed, and its epoch has not ended
    ENDED = 1
    FAILED = 2  # the batch cannot be delivered, but others may follow
    READY = 3


def settling(setup: Setup) -> Settle | None:
    """What settles each step with the other ranks; None where a rank ends by itself."""
    if not (setup.arguments.stop_together and setup.ranks.several):
        return None
    return partial(_settled, setup.ranks.lowest)


def _settled(lowest_of_all: Callable[[int], int], ahead: Ahead) -> Ahead:
    own = _outlook(ahead)
    lowest = lowest_of_all(own)
    if lowest == own:
        return ahead
    if lowest == _Outlook.ENDED:
        return StopIteration()
    error = RankMismatchError(
        "another rank of the process group failed to read its next batch, and raises the cause: "
        "with stop_together=True no rank delivers a batch of this step"
    )
    if lowest == _Outlook.FAILED and isinstance(ahead, Reply):
        # Asking for the next batch after a failure passes this one over, on every rank.
        return ahead._replace(failure=error)
    return error


def _outlook(ahead: Ahead) -> _Outlook:
    if isinstance(ahead, StopIteration):
        return _Outlook.ENDED
    if isinstance(ahead, BaseException):
        return _Outlook.BROKEN
    return _Outlook.READY if ahead.failure is None else _Outlook.FAILED
