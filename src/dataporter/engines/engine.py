"""The seam between the loader and what runs its fetches: requests go in, replies come back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from dataporter.errors import DataPorterError
from dataporter.fetch.fetched import Fetched
from dataporter.schedule.request import EngineRequest, Scheduled

__all__ = ["Engine", "EngineRequests", "Reply", "Usage", "refuse_inherited"]

EngineRequests = Iterable[Scheduled]


class Reply(NamedTuple):
    """The outcome of a request: a batch, or the exception that fetching it raised.

    Attributes:
        request: as it was scheduled.
        delivers: what counts as delivered once the training loop has the batch.
        fetched: the batch; None where fetching it failed.
        failure: why it failed.
    """

    request: EngineRequest
    delivers: Any = None
    fetched: Fetched | None = None
    failure: BaseException | None = None


class Usage(NamedTuple):
    """What an engine runs and holds at a moment.

    Attributes:
        workers: the ids of its processes.
        slots: bytes of memory that they share with the training process.
    """

    workers: tuple[int, ...] = ()
    slots: int = 0


class Engine(Protocol):
    """Carries requests to where they are fetched, and the batches back."""

    def start(self, requests: EngineRequests, ahead: EngineRequests | None) -> Iterator[Reply]:
        """Serve a pass. Requests are drawn ahead as far as the engine prefetches.

        ``ahead`` is what the next pass asks for if nothing intervenes: an engine whose workers
        persist may prefetch that as well, once this pass has nothing more to ask for, and keeps it
        for the next pass if that does ask for the same.

        A failed fetch is a reply, after which the next one can be had; only a failure of the engine
        itself is raised. The pass before, where one is still under way, is given up.
        """

    def usage(self) -> Usage:
        """What the last pass has running, and holds."""


def refuse_inherited(owner: int) -> None:
    """Keep a forked process from taking what the workers of process ``owner`` have for that."""
    if os.getpid() != owner:
        raise DataPorterError(
            f"this iterator's workers serve process {owner}, from which this one ({os.getpid()}) "
            "was forked, so it cannot go on here; begin another with iter(loader)"
        )
