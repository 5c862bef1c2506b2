"""What frameworks do to a loader without a word of themselves: only who calls tells of it."""

from __future__ import annotations

from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from dataporter.errors import ConfigurationError

__all__ = ["is_fabrics_count", "refuse_copy", "refuse_takeover"]


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
    if vars(taker).get("_cursor") is loader._cursor:
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
    if loader._flow is None:  # torch's pipes are run by torch's own loader, or by Accelerate's
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
