"""Accelerate: `prepare()` returns the loader itself, whose passes behave like Accelerate's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar
from weakref import ReferenceType, WeakSet, ref

import torch.distributed as dist
from accelerate import Accelerator
from accelerate import skip_first_batches as skip_in_others
from accelerate.data_loader import BatchSamplerShard
from accelerate.state import GradientState
from accelerate.utils import send_to_device
from torch.utils.data import BatchSampler

from dataporter.errors import ConfigurationError, UnsupportedDatasetError, warn
from dataporter.loader.arguments import SETTABLE, Arguments
from dataporter.loader.delivery import Delivery
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.rebuild import rebuild
from dataporter.ranks.world import World, world_of_sampler

__all__ = ["is_prepared", "prepare", "prepare_unless_explicit", "skip_first_batches"]

Batch = TypeVar("Batch")


def skip_first_batches(dataloader: Any, num_batches: int = 0) -> Any:
    """Accelerate's function of this name, which jumps where it is given a ResumableDataLoader.

    It sets the loader to that batch of its current epoch and returns it, so that its state stays
    right; the pass after that is the next epoch, from its start. Accelerate handles any other
    loader.

    Example:
        >>> loader = ResumableDataLoader(range(6), batch_size=2)
        >>> [batch.tolist() for batch in skip_first_batches(loader, 2)]
        [[4, 5]]
    """
    if not isinstance(dataloader, ResumableDataLoader):
        return skip_in_others(dataloader, num_batches=num_batches)
    dataloader.seek(step=num_batches)
    return dataloader


def prepare(
    accelerator: Accelerator,
    loader: ResumableDataLoader[Batch],
    *,
    device_placement: bool | None = None,
) -> ResumableDataLoader[Batch]:
    """Prepare a loader for an accelerator, and register it for ``save_state`` and ``load_state``.

    Does what ``accelerator.prepare(loader)`` does, without looking up on the stack which
    accelerator asks. ``accelerator.prepare(loader)`` later takes the loader as it is, whichever
    accelerator that is: for another one call this function again.

    Args:
        loader: is changed in place: its world, batch size and tail follow the accelerator.
        device_placement: move the batches to the accelerator's device; by default as the
            accelerator is configured.

    Returns:
        ``loader`` itself.

    Raises:
        ConfigurationError: (a ``ValueError``) the loader cannot do what the accelerator is
            configured to do; the message says what to change.
        UnsupportedDatasetError: (a ``TypeError``) several processes, and the dataset is a stream
            that cannot be sharded.

    Example:
        >>> accelerator = Accelerator(cpu=True)
        >>> loader = prepare(accelerator, ResumableDataLoader(range(4), batch_size=3))
        >>> for batch in loader:
        ...     print(batch.tolist(), accelerator.gradient_state.end_of_dataloader)
        [0, 1, 2] False
        [3] True
    """
    if not (isinstance(accelerator, Accelerator) and isinstance(loader, ResumableDataLoader)):
        raise ConfigurationError(
            f"prepare() got a {type(accelerator).__name__} and a {type(loader).__name__}: expected "
            "an Accelerator and a ResumableDataLoader; accelerator.prepare() prepares anything else"
        )
    _prepare(loader, accelerator, device_placement, explicit=True)
    # Finds the loader prepared, and registers it.
    accelerator.prepare_data_loader(loader)
    return loader


def prepare_unless_explicit(
    accelerator: Accelerator, loader: ResumableDataLoader[Any], device_placement: bool | None
) -> None:
    """Prepare a loader for the accelerator that asks, unless :func:`prepare` has done so."""
    if isinstance(loader.adapter, _Passes) and loader.adapter.explicit:
        return
    try:
        _prepare(loader, accelerator, device_placement, explicit=False)
    except AttributeError as error:
        # Accelerate would conclude that the loader is not prepared, and build another.
        raise ConfigurationError(
            f"prepare() could not fit this {type(loader).__name__} to the accelerator, since an "
            f"attribute is missing in what it was built with ({error}): mend the dataset or "
            "sampler that raises it"
        ) from error


def is_prepared(loader: ResumableDataLoader[Any]) -> bool:
    """Whether an accelerator drives the loader."""
    return isinstance(loader.adapter, _Passes)


class _Settings(NamedTuple):
    """The part of an accelerator's configuration that a loader's batches depend on."""

    processes: int
    split_batches: bool
    even_batches: bool


@dataclass(frozen=True, slots=True)
class _Passes:
    """A pass as in Accelerate's loaders: moves batches to the device, and shows an epoch's end.

    Attributes:
        loader: the loader of the passes.
        settings: the settings that it was built for.
        device: the device that batches are moved to; None: they stay where they are.
        samples: number of samples in an epoch over all processes, where the loader does not know
            which of them are padding; else None.
        given: the loader's arguments as the user gave them.
        explicit: prepared by :func:`prepare`, and not by an accelerator that asked.
    """

    gathers_state: ClassVar[bool] = True

    loader: ReferenceType[ResumableDataLoader[Any]]
    settings: _Settings
    device: Any
    non_blocking: bool
    samples: int | None
    given: Arguments
    explicit: bool

    def passes(self, batches: Delivery[Any]) -> Iterator[Any]:
        loader: Any = self.loader()
        _check_tail(loader)
        state = GradientState()
        loader.end_of_dataloader, loader.remainder = False, -1
        state._add_dataloader(loader)
        try:
            delivered = None
            for batch in batches:
                before = batches.delivered_before if delivered is None else delivered
                delivered = loader.delivered
                if batches.exhausted():
                    loader.end_of_dataloader = True
                    loader.remainder = self._remainder(loader, delivered - before)
                if self.device is not None:
                    batch = send_to_device(batch, self.device, non_blocking=self.non_blocking)
                yield batch
        finally:
            state._remove_dataloader(loader)

    def _remainder(self, loader: Any, last: int) -> int:
        """The number of samples in an incomplete last global batch, to which
        ``gather_for_metrics`` shortens it; -1 where it has no padding.
        """
        if loader.tail != "pad" or loader.setup.stream is not None:
            return -1
        remainder: int = (last if self.samples is None else self.samples) % loader.total_batch_size
        return remainder


def _watch_loading(accelerator: Accelerator) -> None:
    """Have ``load_state()`` warn of loaders that the checkpoint has no state of.

    Accelerate numbers the prepared loaders, and skips those that it finds no file for.
    """
    if accelerator in _WATCHED:
        return
    _WATCHED.add(accelerator)
    watched = ref(accelerator)

    def warn_of_missing(models: Any, folder: str) -> None:
        prepared = getattr(watched(), "_dataloaders", ())
        for number, loader in enumerate(prepared):
            name = f"dl_state_dict_{number}.bin" if number else "dl_state_dict.bin"
            if isinstance(loader, ResumableDataLoader) and not Path(folder, name).exists():
                warn(
                    f"{folder} has no state of loader {number} of those that were prepared, a "
                    f"ResumableDataLoader ({name} is missing): it stays at epoch {loader.epoch}, "
                    f"step {loader.step}. Prepare it before save_state(), and prepare all loaders "
                    "in the same sequence each time",
                    RuntimeWarning,
                )

    accelerator.register_load_state_pre_hook(warn_of_missing)


_WATCHED: WeakSet[Accelerator] = WeakSet()


def _prepare(
    loader: ResumableDataLoader[Any],
    accelerator: Accelerator,
    device_placement: bool | None,
    *,
    explicit: bool,
) -> None:
    _watch_loading(accelerator)
    if accelerator.dispatch_batches:
        raise ConfigurationError(
            "dispatch_batches=True lets the main process read for all processes, and with a "
            "ResumableDataLoader each process reads its own share: leave dispatch_batches= out"
        )
    before = loader.adapter if isinstance(loader.adapter, _Passes) else None
    given = loader.setup.arguments if before is None else before.given
    world_given, ranks = given.rank is not None, loader.setup.ranks
    knows_ranks = world_given or ranks.several
    processes = loader.world_size if knows_ranks else accelerator.num_processes
    settings = _Settings(processes, bool(accelerator.split_batches), bool(accelerator.even_batches))
    if before is None or settings != before.settings:
        changes = _changes(loader, given, settings)
        # A loader that was built before the accelerator found no process group.
        if changes or before is not None or not (knows_ranks or processes == 1):
            fixed = {name: value for name, value in given.by_name().items() if name not in SETTABLE}
            rebuild(loader, **{**fixed, **changes})
    _check_shares(loader, accelerator, world_given)
    shard = loader.batch_sampler
    if isinstance(shard, BatchSamplerShard):
        per_process, samples = shard.batch_size, _samples_of(shard)
        per_process = per_process // processes if settings.split_batches else per_process
    else:
        per_process, samples = loader.batch_size, None
        if isinstance(shard, BatchSampler):
            # join_uneven_inputs() sets it.
            shard.even_batches = loader.tail == "pad"  # type: ignore[attr-defined]
    is_placed = accelerator.device_placement if device_placement is None else device_placement
    prepared: Any = loader  # gets the attributes of Accelerate's loaders
    prepared.total_batch_size = (per_process or 1) * loader.world_size
    prepared.end_of_dataloader, prepared.remainder = False, -1
    prepared.adapter = _Passes(
        ref(loader),
        settings,
        accelerator.device if is_placed else None,
        accelerator.non_blocking,
        samples,
        given,
        explicit,
    )


def _changes(
    loader: ResumableDataLoader[Any], given: Arguments, settings: _Settings
) -> dict[str, Any]:
    """The arguments that must differ from those that the user has given."""
    processes = settings.processes
    changes: dict[str, Any] = {}
    custom = given.custom_sampler
    if custom is not None:
        is_sharded = processes == 1 or world_of_sampler(custom, World(0, 1)).size > 1
        return changes if is_sharded else _shard(loader, settings)
    batch_size = given.batch_size
    if settings.split_batches and batch_size is not None:
        if batch_size % processes:
            raise ConfigurationError(
                f"split_batches=True divides each batch of batch_size={batch_size} among "
                f"{processes} processes: expected a multiple of {processes}"
            )
        changes["batch_size"] = batch_size // processes
    if not (settings.even_batches or given.tail or given.drop_last):
        changes["tail"] = "uneven"
    return changes


def _shard(loader: ResumableDataLoader[Any], settings: _Settings) -> dict[str, Any]:
    """The arguments by which each process takes its share of a custom sampler's batches."""
    batches: Any = loader.batch_sampler
    if isinstance(batches, BatchSamplerShard):
        batches = batches.batch_sampler
    if batches is None:
        raise ConfigurationError(
            "a custom sampler without batches (batch_size=None) gives all processes the same "
            "samples: pass batch_size="
        )
    rank = dist.get_rank(loader.setup.ranks.group)
    shard = BatchSamplerShard(batches, settings.processes, rank, *settings[1:])
    # The loader looks there for generators to seed, and for samplers that want the epoch.
    shard.sampler = batches
    return {
        "sampler": None,
        "batch_sampler": shard,
        "batch_size": 1,
        "shuffle": None,
        "drop_last": False,
    }


def _check_tail(loader: ResumableDataLoader[Any]) -> None:
    """Refuse an ``even_batches`` of ``join_uneven_inputs()`` that contradicts the loader's tail.

    Accelerate's ``BatchSamplerShard`` can follow it.
    """
    batches, is_even = loader.batch_sampler, loader.tail == "pad"
    if isinstance(batches, BatchSamplerShard) or loader.setup.stream is not None:
        return
    if loader.tail == "drop":  # without a tail, ranks are even in any case
        return
    if (asked := getattr(batches, "even_batches", is_even)) != is_even:
        raise ConfigurationError(
            f"join_uneven_inputs(even_batches={asked}) contradicts this loader's "
            f"tail={loader.tail!r}, which settles whether the ranks' batches are even: leave "
            "even_batches= out there, and build the loader with "
            f"tail={'pad' if asked else 'uneven'!r}"
        )


def _samples_of(shard: Any) -> int | None:
    sampler: Any = getattr(shard.batch_sampler, "sampler", None)
    return len(sampler) if hasattr(sampler, "__len__") and not shard.drop_last else None


def _check_shares(
    loader: ResumableDataLoader[Any], accelerator: Accelerator, world_given: bool
) -> None:
    """Refuse loaders that would give processes the same samples, or whose state would be lost."""
    stream, ranks = loader.setup.stream, loader.setup.ranks
    processes = accelerator.num_processes
    if stream is not None and stream.sharding.name == "workers" and processes > 1:
        raise UnsupportedDatasetError(
            f"a {type(loader.dataset).__name__} is an IterableDataset that cannot be sharded: "
            f"each of {processes} processes would read all of it, and Accelerate saves one state "
            "for all of them: give it num_shards and shard(); see dataporter.ShardedStream"
        )
    if world_given or (ranks.several and ranks.group is not dist.group.WORLD):
        return
    sharing, mesh = processes, getattr(accelerator, "torch_device_mesh", None)  # not in 1.5
    if mesh is not None:
        sizes = dict(zip(mesh.mesh_dim_names, mesh.shape))
        sharing = sizes.get("dp_replicate", 1) * sizes.get("dp_shard", 1)
    if loader.world_size != sharing:
        raise ConfigurationError(
            f"this loader shards the data for {loader.world_size} ranks, and the accelerator for "
            f"{sharing} of its {processes} processes: build the loader with process_group= the "
            "data-parallel ranks, or with rank= and world_size="
        )
