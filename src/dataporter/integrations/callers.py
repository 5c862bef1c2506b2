"""Look-ups: frameworks that use a loader without calling it by name, recognised by their frames.

Importing this module installs the hooks. It imports no framework.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from dataporter.errors import ConfigurationError
from dataporter.loader.hooks import install
from dataporter.loader.loader import ResumableDataLoader

__all__ = ["LOOKUPS", "FrameworkHooks", "Lookup", "search"]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A function of a framework that is recognised on the stack.

    Attributes:
        framework: name and version that the function was read in.
        modules: where the function is defined.
        functions: their qualified names.
        variables: the local variables that are read.
        elsewhere: functions of this name in other modules count as well.
    """

    framework: str
    modules: tuple[str, ...]
    functions: tuple[str, ...]
    variables: tuple[str, ...]
    elsewhere: bool = False

    def matches(self, frame: FrameType) -> bool:
        """Whether a frame of this name is in one of the modules, and has the variables."""
        is_in_module = self.elsewhere or frame.f_globals.get("__name__") in self.modules
        return is_in_module and all(name in frame.f_locals for name in self.variables)


# Its wrapper takes over the loader's attributes and reads a batch ahead. Others may do the same.
RAY_WRAPS = Lookup(
    framework="Ray Train 2.60.0",
    modules=("ray.train.torch.train_loop_utils",),
    functions=("_WrappedDataLoader.__iter__",),
    variables=("self",),
    elsewhere=True,
)
# They build a plain DataLoader from the attributes of another.
ACCELERATE_COPIES = Lookup(
    framework="Accelerate 1.15.0",
    modules=("accelerate.data_loader",),
    functions=("prepare_data_loader", "skip_first_batches"),
    variables=("dataloader",),
)
# It asks a loader whether it is prepared, without naming the Accelerator.
ACCELERATE_PREPARES = Lookup(
    framework="Accelerate 1.15.0",
    modules=("accelerate.accelerator",),
    functions=("Accelerator.prepare_data_loader",),
    variables=("self", "data_loader", "device_placement"),
)
# Its wrapper sets the epoch to the number of passes that it has begun.
FABRIC_SETS_EPOCH = Lookup(
    framework="Lightning 2.6.6",
    modules=("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"),
    functions=("_set_sampler_epoch",),
    variables=("dataloader",),
)
FABRIC_ITERATES = Lookup(
    framework="Lightning 2.6.6",
    modules=("lightning.fabric.wrappers", "lightning_fabric.wrappers"),
    functions=("_FabricDataLoader.__iter__",),
    variables=("self",),
)
# It builds a loader of the same class anew, around another sampler.
LIGHTNING_REBUILDS = Lookup(
    framework="Lightning 2.6.6",
    modules=("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"),
    functions=("_reinstantiate_wrapped_cls",),
    variables=("orig_object",),
)

LOOKUPS = (
    *(RAY_WRAPS, ACCELERATE_COPIES, ACCELERATE_PREPARES),
    *(FABRIC_SETS_EPOCH, FABRIC_ITERATES, LIGHTNING_REBUILDS),
)


def search(lookup: Lookup, caller: FrameType, loader: object = None) -> Iterator[FrameType]:
    """The frames of a look-up's functions, from a caller outwards.

    Args:
        loader: frames of its methods, which a subclass may override, are skipped.
    """
    names = {function.rpartition(".")[2] for function in lookup.functions}
    frame: FrameType | None = caller
    while frame is not None:
        if frame.f_code.co_name in names and lookup.matches(frame):
            bound = frame.f_locals.get("self")
            if bound is None or bound is not loader:
                yield frame
        frame = frame.f_back


class FrameworkHooks:
    """The hooks that every loader asks, see :mod:`dataporter.loader.hooks`."""

    def iterating(self, loader: ResumableDataLoader[Any], caller: FrameType) -> None:
        """Refuse a wrapper that has taken over the loader's attributes.

        Ray Train's has no methods for the state, so that users save the state of the loader inside,
        which is a batch ahead of the training (C1).
        """
        for frame in search(RAY_WRAPS, caller, loader):
            wrapper = frame.f_locals["self"]
            if isinstance(wrapper, DataLoader) and _has_attributes_of(loader, wrapper):
                raise ConfigurationError(
                    f"a {type(wrapper).__name__} has been put around this loader. It reads a batch "
                    "ahead of the training, which state_dict() would count, so that a resume would "
                    "leave it out: use the loader itself (Ray Train: without "
                    "prepare_data_loader(), since the loader shares the data between the ranks "
                    "already; DevicePrefetcher(loader, ray.train.torch.get_device()) moves the "
                    "batches to the device)"
                )

    def reading_arguments(self, loader: ResumableDataLoader[Any], caller: FrameType) -> None:
        """Refuse Accelerate's functions that build a plain loader from this one.

        ``multiprocessing_context`` is the one attribute that they read from every loader, whatever
        its sampler and dataset are.
        """
        for frame in search(ACCELERATE_COPIES, caller, loader):
            if frame.f_locals["dataloader"] is not loader:
                continue
            name = frame.f_code.co_name
            advice = (
                "leave it out after load_state(), which has set this loader to its position "
                "already; or use dataporter.integrations.accelerate.skip_first_batches() (in the "
                "Transformers Trainer: ResumableTrainer of dataporter.integrations.transformers)"
                if name == "skip_first_batches"
                else "use accelerator.prepare(), which returns this loader itself"
            )
            raise ConfigurationError(
                f"Accelerate's {name}() replaces this loader by a plain DataLoader, which ignores "
                f"its seeds, device, shards and state: {advice}"
            )

    def is_prepared(self, loader: ResumableDataLoader[Any], caller: FrameType) -> bool:
        """Prepare the loader for the ``Accelerator`` that asks, and say so."""
        if "accelerate" not in sys.modules:
            return False
        from dataporter.integrations import accelerate

        for frame in search(ACCELERATE_PREPARES, caller, loader):
            asked = frame.f_locals
            if asked["data_loader"] is loader:
                accelerate.prepare_unless_explicit(asked["self"], loader, asked["device_placement"])
                break
        return accelerate.is_prepared(loader)

    def counts_passes(self, caller: FrameType) -> bool:
        """Whether Fabric's wrapper sets an epoch, by which it means the passes it has begun.

        The loader counts these as well; and after ``fabric.load`` of an earlier state of the same
        training, the wrapper does not count from there.
        """
        return any(
            True
            for frame in search(FABRIC_SETS_EPOCH, caller)
            for _ in search(FABRIC_ITERATES, frame)
        )

    def puts_sampler(self, caller: FrameType) -> str | None:
        """What to say where Lightning builds a loader anew, around its own sampler."""
        for frame in search(LIGHTNING_REBUILDS, caller):
            if isinstance(frame.f_locals["orig_object"], ResumableDataLoader):
                return (
                    "Lightning has rebuilt the loader around its own sampler, as it does for "
                    "predict() and overfit_batches: give it torch's DataLoader there; and on "
                    "several devices, for a sampler that is no DistributedSampler: pass one, build "
                    "the loader in train_dataloader(), or set use_distributed_sampler=False"
                )
        return None


def _has_attributes_of(loader: ResumableDataLoader[Any], wrapper: DataLoader[Any]) -> bool:
    """Whether a wrapper holds the loader's attributes as its own.

    Compares those that never change: users set others between passes, and joining a process group
    sets the rank. Not by getattr: a wrapper that only forwards attribute reads reads nothing ahead.
    """
    held = vars(wrapper)
    return all(
        held.get(name, held) is getattr(loader, name)
        for name in ("dataset", "sampler", "batch_sampler")
    )


install(FrameworkHooks())
