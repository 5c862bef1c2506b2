"""`DevicePrefetcher`: the next batch travels to the accelerator while the present one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from dataporter.convert import KeyBasedDtypeConverter
from dataporter.errors import ConfigurationError
from dataporter.loader.loader import ResumableDataLoader
from dataporter.structure import parts_of, rebuilt

__all__ = ["DevicePrefetcher"]

Batch = TypeVar("Batch")


class DevicePrefetcher(Generic[Batch]):
    """Iterates over a loader, with each batch on ``device``, one batch ahead of the training.

    On CUDA the copy runs on a stream of its own, so that it overlaps with the computing on the
    batch before; it needs ``pin_memory=True`` in the loader to do so. On the CPU the batches are
    passed on as they are, and nothing is read ahead.

    Args:
        loader: a :class:`~dataporter.ResumableDataLoader`, or any iterable of batches.
        device: where the tensors go. Dicts, lists, tuples, dataclasses and their like are walked
            through, and whatever else has a method ``to`` is moved with it.
        widen: the loader's converter; the batches come with the dtypes that they had before it,
            widened on the device, so that the narrow ones travel.

    Raises:
        RuntimeError: there is no such device.
        ConfigurationError: (a ``ValueError``) ``widen`` is no converter; or, at ``iter()``, the
            loader is one that Accelerate has prepared; or, while iterating, ``widen`` does not know
            the dtypes.

    Example:
        >>> from dataporter import ResumableDataLoader
        >>> loader = ResumableDataLoader(range(4), batch_size=2)
        >>> [batch.tolist() for batch in DevicePrefetcher(loader, "cpu")]
        [[0, 1], [2, 3]]
    """

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
        # The loader's position before the batch that is on its way, which is not delivered yet: a
        # mark, or the state of a loader that takes no marks.
        self._before: Callable[[], dict[str, Any]] | None = None

    def __iter__(self) -> Iterator[Batch]:
        if getattr(self.loader, "adapter", None) is not None:
            raise ConfigurationError(
                "Accelerate has prepared this loader: its batches go to the device by themselves, "
                "and save_state() and end_of_dataloader would be a batch ahead of the training "
                "behind a DevicePrefetcher: iterate over the loader itself (in place of widen=: "
                "converter.widen(batch) in the loop)"
            )
        self._before = None
        if not self.reads_ahead:
            return iter(self.loader) if self.widen is None else map(self.widen.widen, self.loader)
        return self._ahead()

    @property
    def reads_ahead(self) -> bool:
        """Whether it asks the loader for one more batch before it gives one."""
        return self.device.type != "cpu"

    def __len__(self) -> int:
        """Batches of a whole epoch, as the loader says."""
        return len(self.loader)  # type: ignore[arg-type]  # Sized or a TypeError, as for the loader

    def state_dict(self) -> dict[str, Any]:
        """The loader's state after the last batch that came out of here.

        Raises:
            AttributeError: the loader has none.
        """
        if self._before is not None:
            return self._before()
        state: dict[str, Any] = self.loader.state_dict()  # type: ignore[attr-defined]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the loader this state; the next ``iter()`` goes on from it.

        Raises:
            AttributeError: the loader cannot take one.
            DataPorterError: what the loader raises for the state.
        """
        self.loader.load_state_dict(state)  # type: ignore[attr-defined]
        self._before = None

    def _ahead(self) -> Iterator[Batch]:
        on_cuda = self.device.type == "cuda"
        stream: Any = torch.cuda.Stream(self.device) if on_cuda else None  # type: ignore[no-untyped-call]  # torch's
        batches = iter(self.loader)
        on_its_way = self._send(batches, stream)
        while on_its_way is not None:
            source, batch = on_its_way
            if stream is not None:
                current = torch.cuda.current_stream(self.device)
                current.wait_stream(stream)
                _moved(batch, partial(_used_on, current))
                # Its memory may be used again only once it was copied.
                stream.synchronize()
            del source
            on_its_way = self._send(batches, stream)
            yield batch
        self._before = None

    def _send(self, batches: Iterator[Batch], stream: Any) -> tuple[Batch, Batch] | None:
        before = _state_of(self.loader)
        try:
            batch = next(batches)
        except StopIteration:
            # The training has the last batch, and its epoch has not ended yet.
            self._before = before
            return None
        self._before = before
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            moved = _moved(batch, lambda value: value.to(self.device, non_blocking=True))
            return batch, moved if self.widen is None else self.widen.widen(moved, like=batch)


def _state_of(loader: Any) -> Callable[[], dict[str, Any]] | None:
    """Gives the present state of a loader later on; None where it has none."""
    if isinstance(loader, ResumableDataLoader):
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
    """The batch with what can be moved in it moved, in containers of the same types."""
    if isinstance(value, torch.Tensor) or (hasattr(value, "to") and callable(value.to)):
        return move(value)
    parts = parts_of(value)
    if parts is None:
        return value
    return rebuilt(value, {part.key: _moved(part.value, move) for part in parts})
