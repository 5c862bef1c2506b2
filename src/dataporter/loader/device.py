"""`DevicePrefetcher`: copies the next batch to the accelerator while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from dataporter.convert import KeyBasedDtypeConverter
from dataporter.errors import ConfigurationError
from dataporter.keywords import names_keywords
from dataporter.loader.loader import ResumableDataLoader
from dataporter.structure import parts_of, rebuilt

__all__ = ["DevicePrefetcher"]

Batch = TypeVar("Batch")


class DevicePrefetcher(Generic[Batch]):
    """Iterates over a loader, with each batch on ``device``, one batch ahead of the training.

    On CUDA the copy runs on a separate stream, so that it overlaps with the computation on the
    previous batch; this needs ``pin_memory=True`` in the loader. On the CPU the batches are
    returned as they are, and nothing is read ahead.

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

    def __iter__(self) -> Iterator[Batch]:
        if getattr(self.loader, "adapter", None) is not None:
            raise ConfigurationError(
                "Accelerate has prepared this loader, which moves its batches to the device "
                "itself; behind a DevicePrefetcher, save_state() and end_of_dataloader would be a "
                "batch ahead of the training: iterate over the loader itself (instead of widen=, "
                "call converter.widen(batch) in the loop)"
            )
        self._before = None
        if not self.reads_ahead:
            return iter(self.loader) if self.widen is None else map(self.widen.widen, self.loader)
        return self._ahead()

    @property
    def reads_ahead(self) -> bool:
        """Whether it reads one batch ahead of the training."""
        return self.device.type != "cpu"

    def __len__(self) -> int:
        """Batches of a whole epoch, as the loader says."""
        return len(self.loader)  # type: ignore[arg-type]  # Sized or a TypeError, as for the loader

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
        on_cuda = self.device.type == "cuda"
        stream: Any = torch.cuda.Stream(self.device) if on_cuda else None  # type: ignore[no-untyped-call]  # torch's
        batches = iter(self.loader)
        sent = self._send(batches, stream)
        while sent is not None:
            source, batch = sent
            if stream is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_stream(stream)
                _moved(batch, partial(_used_on, current))
                # The source's memory may be reused only after the copy.
                stream.synchronize()
            del source
            sent = self._send(batches, stream)
            yield batch
        self._before = None

    def _send(self, batches: Iterator[Batch], stream: Any) -> tuple[Batch, Batch] | None:
        before = _state_of(self.loader)
        try:
            batch = next(batches)
        except StopIteration:
            # The training still uses the last batch, so its epoch has not ended.
            self._before = before
            return None
        self._before = before
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            moved = _moved(batch, lambda value: value.to(self.device, non_blocking=True))
            return batch, moved if self.widen is None else self.widen.widen(moved, like=batch)


def _state_of(loader: Any) -> Callable[[], dict[str, Any]] | None:
    """A function that returns the loader's present state later; None if it has none."""
    # A subclass that adds to the state is asked for it now.
    if getattr(type(loader), "state_dict", None) is ResumableDataLoader.state_dict:
        return partial(loader.state_dict, at=loader.mark())
    if not hasattr(loader, "state_dict"):
        return None
    state: dict[str, Any] = loader.state_dict()
    return lambda: state


def _used_on(stream: Any, tensor: Any) -> Any:
    if isinstance(tensor, torch.Tensor):
        tensor.record_stream(stream)
    return tensor


def _moved(value: Any, move: Callable[[Any], Any]) -> Any:
    """The batch with its movable parts moved, in containers of the same types."""
    if isinstance(value, torch.Tensor) or (hasattr(value, "to") and callable(value.to)):
        return move(value)
    parts = parts_of(value)
    if parts is None:
        return value
    return rebuilt(value, {part.key: _moved(part.value, move) for part in parts})
