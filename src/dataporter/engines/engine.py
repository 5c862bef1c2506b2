"""The protocol of engines: requests go in, replies come back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from dataporter.errors import DataPorterError
from dataporter.fetch.fetched import Fetched
from dataporter.schedule.request import EngineRequest, Scheduled

__all__ = ["Engine", "Reply", "Usage", "refuse_inherited"]


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
    """The processes and the memory of an engine at a moment.

    Attributes:
        workers: the ids of its processes.
        slots: bytes of memory that these share with the training process.
    """

    workers: tuple[int, ...] = ()
    slots: int = 0


class Engine(Protocol):
    """Carries requests to where they are fetched, and the batches back."""

    def start(
        self, requests: Iterable[Scheduled], ahead: Iterable[Scheduled] | None
    ) -> Iterator[Reply]:
        """Begin a pass, and end the one before, if it is not over.

        A fetch that fails is a reply, and the pass continues with the next one; only a failure of
        the engine itself, or of the iterator of ``requests``, is raised.

        Args:
            requests: are drawn as far ahead as the engine prefetches.
            ahead: the requests of the next pass if nothing intervenes. An engine whose workers
                persist may prefetch these too, once this pass has none left; it keeps the batches
                if the next pass asks for equal requests.
        """

    def usage(self) -> Usage:
        """The processes and the memory of the last pass."""


def refuse_inherited(owner: int) -> None:
    """Keep a forked process from taking batches that workers have read for process ``owner``.

    Raises:
        DataPorterError: this process is not ``owner``.
    """
    if os.getpid() != owner:
        raise DataPorterError(
            f"this iterator's workers serve process {owner}, of which this process "
            f"({os.getpid()}) is a fork, so it cannot continue here: begin another pass with "
            "iter(loader)"
        )
