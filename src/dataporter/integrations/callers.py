"""What frameworks do to a loader without a word of themselves: only who calls tells of it."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from dataporter.errors import ConfigurationError
from dataporter.loader.hooks import install

__all__ = ["FrameworkHooks", "is_fabrics_count", "refuse_copy", "refuse_takeover"]


def refuse_takeover(loader: Any, caller: FrameType) -> None:
    """Raise where ``iter(loader)`` was called by another DataLoader that has its attributes.

    Ray Train's ``prepare_data_loader`` makes one. It has no methods for the state, so that people
    take the state of the loader inside, which is a batch ahead of the training (C1).
    """
    if caller.f_code.co_name != "__iter__":
        return
    taker = caller.f_locals.get("self")
    if taker is loader or not isinstance(taker, DataLoader):
        return
    # It has taken the loader's attributes over.
    if vars(taker).get("_membership") is vars(loader)["_membership"]:
        raise ConfigurationError(
            f"a {type(taker).__name__} has been put around this loader. It reads a batch ahead of "
            "the training, which state_dict() would count, so that a resume would leave it out: "
            "use the loader itself (Ray Train: without prepare_data_loader(), since its ranks "
            "share the data out already; DevicePrefetcher(loader, ray.train.torch.get_device()) "
            "brings the batches to the device)"
        )


def refuse_copy(loader: Any, caller: FrameType | None) -> None:
    """Raise where Accelerate's functions read the arguments of ``loader``.

    They build another DataLoader of them, and take what they are given for a plain one: there is
    nothing else that all of them ask a loader, whatever its sampler or its dataset may be.
    """
    if caller is not None and caller.f_code.co_name == "<dictcomp>":  # a frame up to Python 3.11
        caller = caller.f_back
    if caller is None or caller.f_globals.get("__name__") != "accelerate.data_loader":
        return
    name = caller.f_code.co_name
    advice = (
        "leave it out after load_state(), which has set this loader to its place already; or use "
        "dataporter.integrations.accelerate.skip_first_batches() (in the Transformers Trainer: "
        "ResumableTrainer of dataporter.integrations.transformers)"
        if name == "skip_first_batches"
        else "use accelerator.prepare(), which returns this loader itself"
    )
    raise ConfigurationError(
        f"Accelerate's {name}() puts a plain DataLoader in this loader's place, which reads "
        f"without its seeds, device, shards and state: {advice}"
    )


def is_fabrics_count(caller: FrameType) -> bool:
    """Whether an epoch is told by Fabric's wrapper, which counts the passes that it has begun.

    The loader counts these as well; and where ``fabric.load`` goes back to an earlier state of the
    same training, the wrapper counts on.
    """
    begins = caller.f_back if caller.f_code.co_name == "_set_sampler_epoch" else None
    return begins is not None and "_num_iter_calls" in vars(begins.f_locals.get("self", object))


class FrameworkHooks:
    """The hooks that every loader asks, see :mod:`dataporter.loader.hooks`."""

    def iterating(self, loader: Any, caller: FrameType) -> None:
        refuse_takeover(loader, caller)

    def reading_arguments(self, loader: Any, caller: FrameType) -> None:
        refuse_copy(loader, caller)

    def is_prepared(self, loader: Any, caller: FrameType) -> bool:
        if "accelerate" not in sys.modules:
            return False
        from dataporter.integrations.accelerate import prepare_for_caller

        return prepare_for_caller(loader, caller)

    def counts_passes(self, caller: FrameType) -> bool:
        return is_fabrics_count(caller)


install(FrameworkHooks())
