"""Refuses those that copy a loader's attributes into one of their own, which has not its state."""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from dataporter.errors import ConfigurationError

__all__ = ["refuse_rebuilding", "refuse_takeover"]


def refuse_takeover(loader: Any, caller: FrameType) -> None:
    """Raise where ``iter(loader)`` was called by another DataLoader that has its attributes.

    Ray Train's ``prepare_data_loader`` makes one. It has no methods for the state, so that people
    take the state of the loader inside, which is a batch ahead of the training (C1). Nothing but
    the caller tells.
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


# What Accelerate's functions do that build a plain loader, and what to do in their place.
_BUILDERS = {
    "skip_first_batches": (
        "leave it out after load_state(), which has set this loader to its place already; or use "
        "dataporter.integrations.accelerate.skip_first_batches() (in the Transformers Trainer: "
        "ResumableTrainer of dataporter.integrations.transformers)"
    ),
    "prepare_data_loader": "use accelerator.prepare(), which returns this loader itself",
}


def refuse_rebuilding(caller: FrameType | None, *, piped: bool) -> None:
    """Raise where a loader's arguments are read by those of Accelerate that build a loader of them.

    They build a plain DataLoader, and take what they are given for one: there is nothing that they
    ask a loader, whatever its sampler or its dataset may be.

    Args:
        piped: whether the dataset is one of torch's pipes, which Accelerate may prepare.
    """
    if caller is not None and caller.f_code.co_name == "<dictcomp>":  # a frame up to Python 3.11
        caller = caller.f_back
    if caller is None or caller.f_code.co_name not in _BUILDERS:
        return
    builder = caller.f_code.co_name
    if piped and builder == "prepare_data_loader":
        return
    if caller.f_globals.get("__name__") == "accelerate.data_loader":
        raise ConfigurationError(
            f"Accelerate's {builder}() puts a plain DataLoader in this loader's place, which reads "
            f"without its seeds, device, shards and state: {_BUILDERS[builder]}"
        )
