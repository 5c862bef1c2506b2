"""The inline engine: fetches in the training process, when the training loop asks for a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from dataporter.engines.engine import Reply, Usage
from dataporter.fetch.fetch import Fetch
from dataporter.schedule.request import Scheduled

__all__ = ["InlineEngine"]


@dataclass(frozen=True, slots=True)
class InlineEngine:
    """No workers, no prefetching, nothing to stop.

    Attributes:
        build_fetch: builds the fetch, once a pass, so that a stream's files are closed when the
            training loop drops the pass.
        pin: moves a batch to page-locked memory, or returns it as it is.
    """

    build_fetch: Callable[[], Fetch]
    pin: Callable[[Any], Any]

    def start(
        self, requests: Iterable[Scheduled], ahead: Iterable[Scheduled] | None
    ) -> Iterator[Reply]:
        return map(partial(_served, self.build_fetch(), self.pin), requests)

    def usage(self) -> Usage:
        return Usage()


def _served(fetch: Fetch, pin: Callable[[Any], Any], scheduled: Scheduled) -> Reply:
    request, delivers = scheduled
    try:
        fetched = fetch(request)
        batch = pin(fetched.batch)
        if batch is not fetched.batch:
            fetched = fetched._replace(batch=batch)
        return Reply(request, delivers, fetched)
    except BaseException as error:  # Ctrl-C too: a loop that catches it has lost no sample
        return Reply(request, delivers, failure=error)
