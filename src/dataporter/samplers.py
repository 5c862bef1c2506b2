"""The sampler that a loader shows: its order, for whoever reads or rebuilds the loader."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from dataporter.configure import place_checked
from dataporter.cursor import Cursor
from dataporter.errors import ConfigurationError
from dataporter.request import PlannedRequests, Progress

__all__ = ["OrderSampler"]


class OrderSampler(Sampler[int]):
    """The indices of the loader's current epoch; what ``loader.sampler`` is.

    The loader itself does not draw from it. Frameworks do: they read its length, call its
    ``set_epoch`` (which is the loader's), and may build a plain ``DataLoader`` around it, which
    then gives the same order without resuming. In a world of several ranks such a rebuilt loader
    would be sharded a second time, so there iterating over it is an error.
    """

    def __init__(self, requests: PlannedRequests, cursor: Cursor) -> None:
        self._requests = requests
        self._cursor = cursor

    def __iter__(self) -> Iterator[int]:
        plan = self._requests.plan
        if plan.world_size > 1:
            raise ConfigurationError(
                f"this sampler already gives rank {self._requests.rank}'s share of "
                f"{plan.world_size}, and whoever draws from it (a framework that rebuilds the "
                "loader) may share it out again: hand the ResumableDataLoader over as it is "
                "(Lightning: use_distributed_sampler=False; Accelerate: do not prepare() it), or "
                "leave the sharding to the framework with world_size=1, rank=0"
            )
        epoch = Progress(self._cursor.progress.epoch)
        for request in self._requests.requests(epoch, self._cursor.settled_seed()):
            yield from (int(index) for index in request.indices)

    def __len__(self) -> int:
        return self._requests.plan.rank_length

    @property
    def epoch(self) -> int:
        """The loader's current epoch."""
        return self._cursor.progress.epoch

    def set_epoch(self, epoch: int) -> None:
        """The loader's ``set_epoch``."""
        self._cursor.set_epoch(place_checked("epoch", epoch))
