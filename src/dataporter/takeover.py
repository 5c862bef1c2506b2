"""Refuses those that copy a loader's attributes into one of their own and read it ahead (C1)."""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from dataporter.errors import ConfigurationError

__all__ = ["refuse_takeover"]


def refuse_takeover(loader: Any, caller: FrameType) -> None:
    """Raise where ``iter(loader)`` was called by another DataLoader that has its attributes.

    Ray Train's ``prepare_data_loader`` makes one. It has no methods for the state, so that people
    take the state of the loader inside, which is a batch ahead of the training. Nothing but the
    caller tells.
    """
    if caller.f_code.co_name != "__iter__":
        return
    taker = caller.f_locals.get("self")
    if taker is loader or not isinstance(taker, DataLoader):
        return
    if vars(taker).get("_cursor") is loader._cursor:
        raise ConfigurationError(
            f"a {type(taker).__name__} has been put around this loader. It reads a batch ahead of "
            "the training, which state_dict() would count, so that a resume would leave it out: "
            "use the loader itself (Ray Train: without prepare_data_loader(), since its ranks "
            "share the data out already; DevicePrefetcher(loader, ray.train.torch.get_device()) "
            "brings the batches to the device)"
        )
