"""`DevicePrefetcher`: copies the next batch to the accelerator while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from dataporter.convert import KeyBasedDtypeConverter
from dataporter.engines import locking
from dataporter.errors import ConfigurationError
from dataporter.keywords import names_keywords
from dataporter.loader.copies import Copies, Device, PlainDevice
from dataporter.loader.cuda_copies import CudaDevice
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.pass_time import PassTime, Timed

__all__ = ["DevicePrefetcher"]

Batch = TypeVar("Batch")


class DevicePrefetcher(Generic[Batch]):
    """Iterates over a loader, with each batch on ``device``, one batch ahead of the training.

    On CUDA the copy runs on a separate stream, so that it overlaps with the computation on the
    previous batch. The memory in which worker processes deliver is page-locked for that, and each
    batch is kept until its copy is done; what lies elsewhere is copied to page-locked memory
    first, as ``pin_memory=True`` does in a loader. On the CPU the batches are returned as they
    are, and nothing is read ahead.

    Args:
        loader: a :class:`~dataporter.ResumableDataLoader`, or any iterable of batches.
        device: the device to move to: tensors, also within dicts, lists, tuples, dataclasses and
            the like, and all other objects with a method ``to``.
        widen: the loader's converter. The narrow batches are copied, and get back their dtypes from
            before the conversion on the device.

    Raises:
        RuntimeError: there is no such device.
        ConfigurationError: (a ``ValueError``) ``widen`` is no converter; or, at ``iter()``,
            Accelerate has prepared the loader; or, while iterating, ``widen`` does not know the
            dtypes.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> loader = ResumableDataLoader(range(4), batch_size=2)
        >>> [batch.tolist() for batch in DevicePrefetcher(loader, "cpu")]
        [[0, 1], [2, 3]]
    """

    @names_keywords
    def __init__(
        self,
        loader: Iterable[Batch],
        device: torch.device | str | int,
        *,
        widen: KeyBasedDtypeConverter | None = None,
    ) -> None:
        if widen is not None and not isinstance(widen, KeyBasedDtypeConverter):
            raise ConfigurationError(
                f"widen={widen!r}: expected the converter that narrowed the batches, such as "
                "widen=loader.converter, or None"
            )
        self.loader = loader
        self.device = torch.device(device)
        self.widen = widen
        # Gives the loader's state before the batch that is being copied, which is not delivered
        # yet.
        self._before: Callable[[], dict[str, Any]] | None = None
        self._time = PassTime()

    def __iter__(self) -> Iterator[Batch]:
        if getattr(self.loader, "adapter", None) is not None:
            raise ConfigurationError(
                "Accelerate has prepared this loader, which moves its batches to the device "
                "itself; behind a DevicePrefetcher, save_state() and end_of_dataloader would be a "
                "batch ahead of the training: iterate over the loader itself (instead of widen=, "
                "call converter.widen(batch) in the loop)"
            )
        self._before = None
        self._time = PassTime()
        if self.reads_ahead:
            return Timed(self._ahead(), self._time)
        batches = iter(self.loader)
        return Timed(batches if self.widen is None else map(self.widen.widen, batches), self._time)

    @property
    def reads_ahead(self) -> bool:
        """Whether it reads one batch ahead of the training."""
        return self.device.type != "cpu"

    def __len__(self) -> int:
        """Batches of a whole epoch, as the loader says."""
        return len(self.loader)  # type: ignore[arg-type]  # Sized or a TypeError, as for the loader

    @property
    def wait_seconds(self) -> float:
        """Seconds that the training loop has waited for batches in this pass: in ``next()``.

        With the waits for copies to the device and the widening. As in
        :class:`~dataporter.ResumableDataLoader`, but for any loader.
        """
        return self._time.wait_seconds

    @property
    def wait_share(self) -> float:
        """The share of this pass that the loop has waited for batches, from 0 to 1."""
        return self._time.wait_share

    @property
    def batches_per_second(self) -> float:
        """Batches that this pass has delivered in a second."""
        return self._time.batches_per_second

    def state_dict(self) -> dict[str, Any]:
        """The loader's state after the last batch that this prefetcher delivered.

        Raises:
            AttributeError: the loader has no ``state_dict``.
        """
        if self._before is not None:
            return self._before()
        state: dict[str, Any] = self.loader.state_dict()  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state into the loader, which resumes from it at the next ``iter()``.

        Raises:
            AttributeError: the loader has no ``load_state_dict``.
            DataPorterError: the loader refuses the state.
        """
        self.loader.load_state_dict(state)  # type: ignore[attr-defined]
        self._before = None

    def _ahead(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        with closing(Copies(device_for(self.device))) as copies:
            has_next = self._start_next(batches, copies)
            while has_next:
                source, copy = copies.next()
                batch = copy.batch
                if self.widen is not None:
                    batch = self.widen.widen(batch, like=source)
                del source, copy
                has_next = self._start_next(batches, copies)
                yield batch
        self._before = None

    def _start_next(self, batches: Iterator[Batch], copies: Copies) -> bool:
        """Start to copy the next batch; False if there is none."""
        before = _state_of(self.loader)
        try:
            with locking(copies.device.page_lock):
                batch = next(batches)
        except StopIteration:
            # The training still uses the last batch, so its epoch has not ended.
            self._before = before
            return False
        self._before = before
        copies.start(batch)
        return True


def device_for(device: torch.device) -> Device:
    """How batches are copied to a device."""
    return CudaDevice(device) if device.type == "cuda" else PlainDevice(device)


def _state_of(loader: Any) -> Callable[[], dict[str, Any]] | None:
    """A function that returns the loader's present state later; None if it has none."""
    # A subclass that adds to the state is asked for it now.
    if getattr(type(loader), "state_dict", None) is ResumableDataLoader.state_dict:
        return partial(loader.state_dict, at=loader.mark())
    if not hasattr(loader, "state_dict"):
        return None
    state: dict[str, Any] = loader.state_dict()
    return lambda: state
