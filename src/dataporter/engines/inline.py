"""The inline engine: fetches in the training process, at the moment a batch is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dataporter.engines.engine import EngineRequests, Reply, Usage
from dataporter.fetch import Fetch
from dataporter.request import EngineRequest

__all__ = ["InlineEngine"]


@dataclass(frozen=True, slots=True)
class InlineEngine:
    """No workers, no prefetching, nothing to stop.

    Attributes:
        fetch: reads and collates.
        pin: moves a batch to page-locked memory, or returns it as it is.
    """

    fetch: Fetch
    pin: Callable[[Any], Any]

    def start(self, requests: EngineRequests, ahead: EngineRequests | None) -> Iterator[Reply]:
        return map(self._serve, requests)

    def _serve(self, request: EngineRequest) -> Reply:
        try:
            fetched = self.fetch(request)
            return Reply(request, fetched._replace(batch=self.pin(fetched.batch)))
        except BaseException as error:  # Ctrl-C as well: who goes on has not lost his place
            return Reply(request, failure=error)

    def usage(self) -> Usage:
        return Usage()

    def close(self) -> None:
        """Nothing runs between two batches."""
