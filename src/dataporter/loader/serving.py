"""Serving: holds a loader's engine, and begins passes on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

from torch import multiprocessing
from torch.utils.data import DataLoader

from dataporter._torch import pin_function
from dataporter.convert import (
    Conversion,
    Converted,
    Empty,
    KeyBasedDtypeConverter,
    new,
)
from dataporter.engines import (
    Engine,
    InlineEngine,
    ProcessEngine,
    Reply,
    ThreadEngine,
    Usage,
    WorkerOptions,
)
from dataporter.fetch.fetch import Fetch, converting
from dataporter.fetch.fetched import Fetched
from dataporter.fetch.on_error import OnError
from dataporter.loader.arguments import SETTABLE, WorkerKind
from dataporter.loader.kinds import kinds_checked
from dataporter.loader.mixing import Mixing
from dataporter.loader.pickled import refuse_unpicklable
from dataporter.loader.setup import Setup
from dataporter.schedule.request import Scheduled
from dataporter.schedule.schedule import PassRequests

__all__ = ["OwnAttributes", "Serving", "engine_for"]


class OwnAttributes(NamedTuple):
    """The attributes of a loader that users may set, and that torch's class does not have."""

    on_error: OnError
    converter: KeyBasedDtypeConverter | None
    worker_kind: WorkerKind
    worker_restarts: int


class Serving:
    """The engine of a loader, built anew where the loader's attributes may have changed."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._converter: KeyBasedDtypeConverter | None = None
        self._started: tuple[Any, ...] = ()

    def begin(
        self,
        loader: DataLoader[Any],
        own: OwnAttributes,
        setup: Setup,
        progress: Any,
        seed: int,
        *,
        anew: bool,
        mixing: Mixing | None = None,
    ) -> Iterator[Reply]:
        """The replies of a pass over the rest of an epoch.

        Args:
            anew: discard what was read ahead for this pass.
            mixing: lets changes of a mixture reach the requests.
        """
        setup.check_dataset()
        kinds_checked({name: getattr(loader, name) for name in SETTABLE})
        engine = self._engine_of(loader, own, setup, continues=progress.continues and not anew)
        requests: PassRequests
        ahead: PassRequests | None
        if mixing is not None:
            requests, ahead = mixing.followed(setup, progress, seed, anew=anew)
        else:
            requests = setup.schedule.requests(progress, seed)
            ahead = setup.schedule.ahead(progress, seed)
        if not setup.arguments.prefetch_next_epoch:
            ahead = None
        try:
            replies = engine.start(_Anew(requests) if anew else requests, ahead)
        except Exception as error:
            _explain(loader, own, setup, error)
            raise
        return requests.batches(replies)

    def note(self, fetched: Fetched) -> None:
        """Let the converter of the pass know which dtypes a delivered batch had before."""
        # Not the loader's converter: the user may have set another one since.
        if self._converter is not None:
            self._converter.note(Converted(fetched.batch, fetched.originals))

    def usage(self) -> Usage:
        """The worker processes of the last pass, and the memory they share with this one."""
        return Usage() if self._engine is None else self._engine.usage()

    def _engine_of(
        self, loader: DataLoader[Any], own: OwnAttributes, setup: Setup, *, continues: bool
    ) -> Engine:
        converter = own.converter
        # torch lets users set collate_fn, num_workers and the like, or change the dataset, between
        # two passes. Persistent workers keep what they started with, except for the converter,
        # since widening uses the present one, for their number, and for the length of the dataset,
        # of which they have a copy.
        started: tuple[Any, ...] = (converter, loader.num_workers, setup.dataset_length)
        if loader.num_workers == 0:
            started += (loader.collate_fn, loader.pin_memory, own.on_error)
        # A stream's open shards are in this process then.
        reads_on = continues and loader.num_workers == 0
        persists = (loader.persistent_workers or reads_on) and self._started == started
        if self._engine is None or not persists:
            self._converter, self._started = converter, started
            self._engine = engine_for(loader, own, setup)
        return self._engine


@dataclass(frozen=True, slots=True, eq=False)
class _Anew:
    """Requests that equal no others, so that an engine fetches them anew."""

    requests: Iterable[Scheduled]

    def __iter__(self) -> Iterator[Scheduled]:
        return iter(self.requests)


def engine_for(loader: DataLoader[Any], own: OwnAttributes, setup: Setup) -> Engine:
    """An engine by a loader's present attributes."""
    conversion = None if own.converter is None else own.converter.conversion
    seeded = loader.num_workers == 0 or own.worker_kind == "process"
    build_fetch = partial(
        setup.fetch,
        loader.collate_fn,
        batched=loader.batch_sampler is not None,
        seeds_each=setup.strategy.seeds_each if seeded else "nothing",
        **setup.reacting(own.on_error),
    )
    pin = pin_function(pin_memory=loader.pin_memory)
    if loader.num_workers == 0:

        def build() -> Fetch:
            return _converted(build_fetch(), conversion, new)

        is_limited = setup.arguments.steps_per_epoch is not None
        # Built once, where the next epoch may continue the stream with the shards that are open.
        return InlineEngine(cache(build) if is_limited and setup.stream is not None else build, pin)
    options = WorkerOptions(
        num_workers=loader.num_workers,
        prefetch_factor=loader.prefetch_factor or 2,
        persistent=loader.persistent_workers,
        in_order=loader.in_order,
        timeout=loader.timeout,
        restarts=own.worker_restarts,
        worker_init_fn=loader.worker_init_fn,
        context=loader.multiprocessing_context,
    )
    converting_fetch = partial(_converting_fetch, build_fetch, conversion)
    if own.worker_kind == "thread":
        return ThreadEngine(converting_fetch, pin, options)
    return ProcessEngine(converting_fetch, loader.dataset, pin, options)


def _explain(loader: DataLoader[Any], own: OwnAttributes, setup: Setup, error: Exception) -> None:
    """Raise for an argument that cannot be sent to workers, if workers were about to start."""
    method = (loader.multiprocessing_context or multiprocessing.get_context()).get_start_method()
    if loader.num_workers == 0 or own.worker_kind == "thread" or method == "fork":
        return
    sent = {
        "dataset": loader.dataset,
        "collate_fn": loader.collate_fn,
        "worker_init_fn": loader.worker_init_fn,
        "on_error": own.on_error,
        "converter": own.converter,
        # Which sends it, for the samples that take the place of others.
        "order": setup.order if own.on_error == "replace" else None,
    }
    refuse_unpicklable(method, sent, error)


def _converting_fetch(
    build_fetch: Callable[..., Fetch],
    conversion: Conversion | None,
    *,
    empty: Empty = new,
    **arguments: Any,
) -> Fetch:
    return _converted(build_fetch(**arguments), conversion, empty)


def _converted(fetch: Fetch, conversion: Conversion | None, empty: Empty) -> Fetch:
    return fetch if conversion is None else converting(fetch, conversion, empty)
