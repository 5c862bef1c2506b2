"""A flow: what a loader asks an engine for over a pass, and the state that goes with it (C1-C6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

from dataporter.engines import Engine, Reply
from dataporter.fetch.fetch import Fetch, OnError
from dataporter.state.resume import OnMismatch

__all__ = ["Flow", "Resumption"]


class Resumption(NamedTuple):
    """What a state means for the loader that it is loaded into.

    Attributes:
        seed, progress: what the loader goes on with.
        terms: by name, what has to be the same on every rank that loads it.
    """

    seed: int
    progress: Any
    terms: Mapping[str, Any]


class Flow(Protocol):
    """A dataset as one rank reads it: by index, or as a stream."""

    def beginning(self, epoch: int) -> Any:
        """The progress of an epoch of which nothing was delivered."""

    def terms(self) -> Mapping[str, Any]:
        """By name, what has to be the same on every rank."""

    def length(self) -> int | None:
        """Batches of a whole epoch on this rank; None where torch's loader knows better."""

    def remaining(self, progress: Any) -> int:
        """Batches that an epoch still has on this rank."""

    def requested_epoch(self) -> int | None:
        """The epoch that somebody has set elsewhere than on the loader, and that counts now."""

    def overlook_requested_epoch(self) -> None:
        """Where the loader stands was set since: that counts."""

    def fetch_builder(
        self,
        collate_fn: Callable[[Any], Any],
        *,
        batched: bool,
        seeds_each: Literal["sample", "batch", "nothing"],
        on_error: OnError,
    ) -> Callable[..., Fetch]:
        """Makes what reads and collates."""

    def for_pass(self, num_workers: int, progress: Any) -> Flow:
        """This flow with so many workers from now on; torch lets people set them at any time."""

    def serve(self, engine: Engine, progress: Any, seed: int) -> Iterator[Reply]:
        """A pass over what is left of an epoch."""

    def state(self, seed: int, progress: Any) -> dict[str, Any]:
        """The state of this rank."""

    def joined(self, parts: list[dict[str, Any]]) -> dict[str, Any]:
        """One state of those of all ranks."""

    def resumption(
        self, state: Mapping[str, Any], given_seed: int | None, on_mismatch: OnMismatch
    ) -> Resumption:
        """What a saved state comes to; raises where it is damaged or of another loader."""
