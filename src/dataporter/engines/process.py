"""The process engine: fetches in worker processes, ahead of the training loop."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataporter._torch import present_dataset_to_worker
from dataporter.engines.engine import Reply
from dataporter.errors import DataPorterError, SampleError
from dataporter.fetch import Fetch
from dataporter.request import Request
from dataporter.rng import STREAM_WORKERS, fold

__all__ = ["ProcessEngine", "WorkerOptions", "WorkerTraceback"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """The arguments of ``torch.utils.data.DataLoader`` that concern its workers."""

    num_workers: int
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory: bool
    in_order: bool
    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    pin_memory_device: str


class WorkerTraceback(DataPorterError):
    """The traceback of a failed fetch as its worker saw it: the ``__cause__`` of what is raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class ProcessEngine:
    """Runs on torch's own worker processes: requests are its sampler, a batch is its sample.

    Args:
        build_fetch: makes what reads and collates; called in each worker, once its
            ``worker_init_fn`` is through with the dataset.
        dataset: what ``get_worker_info().dataset`` shows.
        options: how to run the workers.
    """

    def __init__(
        self, build_fetch: Callable[[], Fetch], dataset: Any, options: WorkerOptions
    ) -> None:
        self._fetching = _FetchingDataset(build_fetch, dataset)
        self._options = options
        self._feed = _Feed()
        # The seeds that workers start with come from here and not from torch's default generator,
        # which belongs to the training: one more draw at a resume would change what follows it.
        self._generator = torch.Generator()
        self._workers: DataLoader[Any] | None = None
        self._serving: dict[int, Request] = {}

    def start(self, requests: Iterator[Request]) -> Iterator[Reply]:
        first = next(requests, None)
        if first is None:
            return iter(())
        self._generator.manual_seed(fold(first.seed, first.epoch, STREAM_WORKERS))
        in_flight: dict[int, Request] = {}
        self._feed.requests = _tracked(chain((first,), requests), in_flight)
        self._serving = in_flight
        if self._workers is None:
            self._workers = self._build_workers()
        return _Pass(self, in_flight, iter(self._workers))

    def serves_another_than(self, in_flight: dict[int, Request]) -> bool:
        """Whether the workers of this pass were taken over by a later one."""
        return self._options.persistent_workers and in_flight is not self._serving

    def close(self) -> None:
        self._workers = None

    def _build_workers(self) -> DataLoader[Any]:
        options = self._options
        return DataLoader(
            self._fetching,
            batch_size=None,
            sampler=self._feed,
            collate_fn=_unchanged,
            num_workers=options.num_workers,
            prefetch_factor=options.prefetch_factor,
            persistent_workers=options.persistent_workers,
            pin_memory=options.pin_memory,
            pin_memory_device=options.pin_memory_device,
            in_order=options.in_order,
            timeout=options.timeout,
            worker_init_fn=_WorkerStart(options.worker_init_fn),
            multiprocessing_context=options.multiprocessing_context,
            generator=self._generator,
        )


class _Pass(Iterator[Reply]):
    """One pass over the requests, as the replies arrive."""

    def __init__(
        self, engine: ProcessEngine, in_flight: dict[int, Request], batches: Iterator[Any]
    ) -> None:
        self._engine = engine
        self._in_flight = in_flight
        self._batches = batches

    def __next__(self) -> Reply:
        if self._engine.serves_another_than(self._in_flight):
            raise DataPorterError(
                "the persistent workers serve a later iterator of this loader, so this one cannot "
                "go on; use one iterator at a time, or persistent_workers=False"
            )
        try:
            step, batch, skipped, failure = next(self._batches)
        except StopIteration:
            raise
        except BaseException:
            # A worker died, hung or could not start: torch's iterator is of no use any more.
            self._engine.close()
            raise
        request = self._in_flight.pop(step)
        return Reply(request, batch, skipped, failure and failure.rebuilt())


class _Feed(Sampler[Request]):
    """The inner loader's sampler: hands out the requests of the pass that is being started."""

    def __init__(self) -> None:
        self.requests: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.requests


class _FetchingDataset(Dataset[Any]):
    """Makes a request's batch one sample of the inner loader; runs in the worker."""

    def __init__(self, build_fetch: Callable[[], Fetch], dataset: Any) -> None:
        self.build_fetch = build_fetch
        self.dataset = dataset
        self.fetch: Fetch | None = None

    def __getitem__(self, request: Request) -> tuple[int, Any, tuple[Any, ...], _Failure | None]:
        try:
            if self.fetch is None:
                self.fetch = self.build_fetch()
            batch, skipped = self.fetch(request)
        except Exception as error:
            return request.step, None, (), _Failure.of(error)
        return request.step, batch, skipped, None


@dataclass(frozen=True, slots=True)
class _Failure:
    """An exception on its way from a worker."""

    pickled: bytes | None
    shown: str
    traceback: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        text = "".join(traceback.format_exception(error))
        try:
            # Many exceptions pickle but cannot be built again, so try both.
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
        except Exception:
            pickled = None
        return cls(pickled, f"{type(error).__qualname__}: {error}", text)

    def rebuilt(self) -> Exception:
        error: Exception
        if self.pickled is None:
            error = SampleError(
                f"a worker raised {self.shown}\n(an exception that cannot be pickled, so it cannot "
                "be raised here as itself; its traceback is above)"
            )
        else:
            error = pickle.loads(self.pickled)
        error.__cause__ = WorkerTraceback(self.traceback)
        return error


@dataclass(frozen=True, slots=True)
class _WorkerStart:
    """The inner loader's ``worker_init_fn``: shows the user's dataset, then runs the user's own."""

    worker_init_fn: Callable[[int], None] | None

    def __call__(self, worker_id: int) -> None:
        present_dataset_to_worker(lambda fetching: fetching.dataset)
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)


def _tracked(requests: Iterator[Request], in_flight: dict[int, Request]) -> Iterator[Request]:
    for request in requests:
        in_flight[request.step] = request
        yield request


def _unchanged(batch: Any) -> Any:
    return batch
