"""The sampler that a loader shows: its order, its length and its epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DistributedSampler

from dataporter.checks import whole_number
from dataporter.errors import ConfigurationError
from dataporter.loader.cursor import Cursor
from dataporter.loader.hooks import installed
from dataporter.loader.joining import Membership
from dataporter.loader.setup import Setup
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress

__all__ = ["OrderSampler"]


class OrderSampler(DistributedSampler[int]):
    """The indices of the loader's current epoch: ``loader.sampler``.

    The loader itself does not draw from it. Frameworks do: they read its length, call its
    ``set_epoch`` (which is the loader's), and may build a plain ``DataLoader`` around it, which
    then gives the same order without resuming. In a world of several ranks such a rebuilt loader
    would be sharded a second time, so there iterating over it is an error.

    It is a ``DistributedSampler`` because frameworks that find one leave the loader unchanged
    (Lightning, Ray): the data is sharded already, or one rank reads all of it.
    """

    # Not torch's __init__ yet: it wants the dataset and the world, which show() knows.
    def __init__(self) -> None:
        self._membership: Membership | None = None
        self._cursor: Cursor[Progress] | None = None

    def follow(self, membership: Membership, cursor: Cursor[Progress]) -> None:
        """Show the order of a loader at its cursor."""
        self._membership, self._cursor = membership, cursor

    def show(self, setup: Setup) -> None:
        """Set the attributes of torch's class by a loader's setup."""
        lookup: Any = setup.lookup
        schedule = lookup.of_epoch(self._followed().progress)
        plan = schedule.plan
        super().__init__(
            range(schedule.dataset_length),  # type: ignore[arg-type]  # needs a length alone
            num_replicas=plan.world_size,
            rank=schedule.rank,
            shuffle=schedule.order.name != "sequential",
            seed=setup.seed or 0,
            drop_last=plan.tail == "drop",
        )
        # torch counts sample by sample, and not by whole global batches.
        self.num_samples = len(self)
        self.total_size = plan.total_length

    def __iter__(self) -> Iterator[int]:
        schedule, cursor = self._schedule(), self._followed()
        if schedule.plan.world_size > 1:
            raise ConfigurationError(
                f"this sampler already gives rank {schedule.rank}'s share of "
                f"{schedule.plan.world_size}, and a framework that rebuilds the loader around it "
                "may shard it again: pass the ResumableDataLoader as it is (Lightning: "
                "use_distributed_sampler=False, and torch's DataLoader for predict()), or leave "
                "the sharding to the framework with world_size=1, rank=0"
            )
        epoch = cursor.progress.start_of(cursor.progress.epoch)
        for scheduled in schedule.requests(epoch, cursor.settled_seed()):
            request: Any = scheduled.request
            yield from (int(index) for index in request.indices)

    def __len__(self) -> int:
        schedule = self._schedule()
        return schedule.plan.rank_length(schedule.rank)

    @property
    def epoch(self) -> int:
        """The loader's current epoch."""
        return self._followed().progress.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        """torch's class sets it at construction, which means nothing here."""

    def set_epoch(self, epoch: int) -> None:
        """The loader's ``set_epoch``, but that it never goes back.

        Frameworks call it with other counts: of passes since the program was started
        (Fabric, which the loader does not follow), or of epochs of the longest of several loaders
        (Lightning). Such a count may be behind the loader's, and a loaded state must survive it.
        """
        cursor = self._followed()
        not_back = whole_number("epoch", epoch) >= cursor.progress.epoch
        if not_back and not installed().counts_passes(sys._getframe(1)):
            cursor.set_epoch(epoch)

    def _schedule(self) -> PlannedSchedule:
        assert self._membership is not None
        cursor = self._followed()
        lookup: Any = self._membership.upcoming(cursor).lookup
        return lookup.of_epoch(cursor.progress)  # type: ignore[no-any-return]  # of an order

    def _followed(self) -> Cursor[Progress]:
        assert self._cursor is not None
        return self._cursor
