"""The arguments of a loader, each checked by itself and against the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, IterDataPipe, Sampler

from dataporter.checks import given, is_one_of
from dataporter.convert import KeyBasedDtypeConverter, Rules
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.fetch.on_error import OnError
from dataporter.loader.hooks import installed
from dataporter.loader.instead import line_for
from dataporter.loader.kinds import kinds_checked, refuse_without_workers
from dataporter.orders import Order
from dataporter.schedule.plan import Tail
from dataporter.state.resume import OnMismatch
from dataporter.state.strategies import ResumptionStrategy, strategy_named

__all__ = [
    "SETTABLE",
    "Arguments",
    "WorkerKind",
    "check_arguments",
    "check_on_error",
    "tail_checked",
]

WorkerKind = Literal["process", "thread"]

# The loader's attributes that users may set between two passes.
SETTABLE = (
    *("num_workers", "prefetch_factor", "timeout", "worker_init_fn", "collate_fn", "in_order"),
    *("pin_memory", "pin_memory_device", "generator"),
    *("on_error", "max_failures", "converter", "worker_kind", "worker_restarts"),
    "on_mismatch",
)


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a loader was called with. The attributes are those of ``ResumableDataLoader``.

    ``process_group`` is not among them: it belongs to this process, and a loader's copy in another
    process has none.
    """

    dataset: Any
    batch_size: int | None
    shuffle: bool | None
    sampler: Sampler[Any] | Iterable[Any] | None
    batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None
    num_workers: int
    collate_fn: Callable[[list[Any]], Any] | None
    pin_memory: bool
    drop_last: bool
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    generator: torch.Generator | None
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory_device: str
    in_order: bool
    strategy: str | ResumptionStrategy | None
    seed: int | None
    order: str | Order | None
    rank: int | None
    world_size: int | None
    tail: Tail | None
    on_error: OnError
    max_failures: int | float | None
    failures: Any
    converter: KeyBasedDtypeConverter | Rules | None
    worker_kind: WorkerKind
    worker_restarts: int
    num_shards: int | Literal[False] | None
    snapshot_every: int
    steps_per_epoch: int | None
    stop_together: bool
    prefetch_next_epoch: bool
    on_mismatch: OnMismatch
    fingerprint: str | None

    @property
    def is_stream(self) -> bool:
        """Whether the dataset is iterated over, and not indexed."""
        return isinstance(self.dataset, IterableDataset)

    @property
    def custom_sampler(self) -> Any:
        """The user's sampler or batch sampler; None where the loader's order decides."""
        return self.batch_sampler if self.sampler is None else self.sampler

    @property
    def is_planned(self) -> bool:
        """Whether the loader's own order and plan give the batches."""
        return not self.is_stream and self.custom_sampler is None

    def by_name(self) -> dict[str, Any]:
        """The arguments as the class takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def for_torch(self, sampler: Any) -> dict[str, Any]:
        """The arguments of torch's class.

        Args:
            sampler: the sampler of the loader's own order, in place of ``shuffle``; None where
                torch's class makes one, or the user has.
        """
        changes: dict[str, Any] = {"drop_last": self.drop_last or self.tail == "drop"}
        if sampler is not None:
            changes |= {"sampler": sampler, "shuffle": None}
        return {name: changes.get(name, getattr(self, name)) for name in _TORCHS}


_TORCHS = (
    *("dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "num_workers", "collate_fn"),
    *("pin_memory", "drop_last", "timeout", "worker_init_fn", "multiprocessing_context"),
    *("generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
)


def check_arguments(given: Mapping[str, Any]) -> Arguments:
    """The arguments of these names, checked.

    Args:
        given: by name; other names are ignored, so that ``locals()`` may be passed.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        UnsupportedDatasetError: (a ``TypeError``) the dataset is one of torch's DataPipes.
    """
    raw = Arguments(**{field.name: given[field.name] for field in fields(Arguments)})
    _refuse_pipes(raw.dataset)
    arguments = Arguments(**kinds_checked(raw.by_name()))
    refuse_without_workers(arguments.by_name())
    _refuse_misplaced(arguments)
    tail_checked(arguments.tail, drop_last=arguments.drop_last, is_stream=arguments.is_stream)
    check_on_error(arguments.on_error, arguments)
    _refuse_without_failures(arguments)
    if arguments.is_stream and arguments.worker_kind == "thread":
        raise ConfigurationError(
            "worker_kind='thread': the samples of a stream are read one after the other, by "
            "one process for itself; use worker_kind='process'"
        )
    return arguments


def check_on_error(on_error: OnError, arguments: Arguments) -> None:
    """Refuse a replacement where no other sample can take the place of a failed one."""
    if on_error != "replace":
        return
    instead = "write on_error='skip', or a function (exception, index) → sample"
    if arguments.is_stream:
        raise ConfigurationError(
            "on_error='replace': the samples of a stream are known only once they are read, so "
            f"none can be chosen in the place of another; {instead}"
        )
    if arguments.sampler is not None and arguments.batch_size is None:
        raise ConfigurationError(
            "on_error='replace' with a custom sampler takes another sample of the same batch, and "
            f"with batch_size=None there is none; {instead}"
        )


def tail_checked(tail: Any, *, drop_last: bool, is_stream: bool = False) -> Tail:
    """The treatment of an incomplete last batch that ``tail=`` and ``drop_last=`` ask for."""
    if is_stream and is_one_of(tail, "pad"):
        raise ConfigurationError(
            "tail='pad': the number of samples of a stream is unknown before its end, so its ranks "
            "cannot be made equal; use tail='uneven' or 'drop', and stop all ranks at the same "
            "step, or make the stream endless"
        )
    if tail is None:
        return "drop" if drop_last else "uneven" if is_stream else "pad"
    if not is_one_of(tail, "pad", "drop", "uneven"):
        raise ConfigurationError(f"{given('tail', tail)}: expected 'pad', 'drop' or 'uneven'")
    if drop_last and tail != "drop":
        raise ConfigurationError(
            f"tail={tail!r} and drop_last=True contradict each other: leave drop_last= out"
        )
    return tail  # type: ignore[no-any-return]  # narrowed by value


def _refuse_without_failures(arguments: Arguments) -> None:
    """Refuse arguments that say what to do with failures, where the first one is raised."""
    for name in ("max_failures", "failures"):
        if (value := getattr(arguments, name)) is not None and arguments.on_error == "raise":
            raise ConfigurationError(
                f"{given(name, value)}: on_error='raise', the default, raises the exception of the "
                "first sample that fails; write on_error='skip', 'replace' or a function as well"
            )


def _refuse_pipes(dataset: Any) -> None:
    if isinstance(dataset, IterDataPipe):
        raise UnsupportedDatasetError(
            f"dataset of type {type(dataset).__name__} is a DataPipe, which torch has deprecated "
            "and only torch's own loader can run: make it an IterableDataset, or "
            "use torch.utils.data.DataLoader for it"
        )


def _refuse_misplaced(arguments: Arguments) -> None:
    """Refuse arguments that have no meaning for this dataset or sampler."""

    def refuse(reason: str, *names: str) -> None:
        values = {name: getattr(arguments, name) for name in names}
        misplaced = {
            name: value
            for name, value in values.items()
            if value is not None and value is not False
        }
        if misplaced:
            shown = ", ".join(map(given, misplaced, misplaced.values()))
            them = "it" if len(misplaced) == 1 else "them"
            raise ConfigurationError(f"{shown}: {reason}; leave {them} out")

    if (custom := arguments.custom_sampler) is not None:
        framework = installed().puts_sampler(sys._getframe())
        name = "batch_sampler" if arguments.sampler is None else "sampler"
        refuse(
            framework
            or f"{name}= (a {type(custom).__name__}) decides the order and which samples are "
            "repeated or left out",
            *("shuffle", "order", "tail"),
        )
        strategy = strategy_named(arguments.strategy or "simple")
        if strategy.counts != "batches":
            reason = framework or (
                f"it needs an order to jump in, and {name}= (a {type(custom).__name__}) can only "
                "be walked through"
            )
            raise ConfigurationError(
                f"strategy={strategy.name!r}: {reason}; use strategy='simple', or "
                f"{line_for(custom) or 'order= and shuffle='} instead of {name}="
            )
    if arguments.is_stream:
        refuse("an IterableDataset has no indices to order", "order")
    else:
        refuse("the dataset is read by index, in any order", "num_shards")
