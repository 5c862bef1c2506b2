"""Copies to a CUDA device, on a separate stream, from page-locked memory."""

from __future__ import annotations

from typing import Any

import torch

from dataporter._torch import lock_pages, unlock_pages
from dataporter.engines import PageLock
from dataporter.errors import warn
from dataporter.loader.copies import Copy, moved

__all__ = ["CudaDevice", "CudaPageLock"]


class CudaDevice:
    """Copies while the device computes, from the moment on at which the work is done that the
    training has given to the device so far.

    The memory on the device belongs to the stream on which the training computes, and is used again
    in the order of that stream. So a training loop that is ahead of the device takes no more of it.
    """

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device(device.type, index)
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch's
        self.page_lock: PageLock | None = CudaPageLock()

    def copy(self, batch: Any) -> Copy:
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

        def place(value: Any) -> Any:
            if not _is_plain(value):
                # How it copies, it alone knows, so it does so among the training's own work.
                return value.to(self._device, non_blocking=True)
            source = value if value.is_pinned() else value.pin_memory()
            target = torch.empty_like(source, device=self._device)
            pairs.append((target, source))
            return target

        current = torch.cuda.current_stream(self._device)
        placed = moved(batch, place)
        # What has used the memory of the targets before, and the copies of what is not plain.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        targets = [target for target, _ in pairs]
        return _CudaCopy(placed, targets, self._stream.record_event(), current)


class _CudaCopy:
    def __init__(self, batch: Any, targets: list[torch.Tensor], event: Any, stream: Any) -> None:
        self.batch = batch
        self._targets = targets
        self._event = event
        # To which the memory of the targets belongs.
        self._stream = stream

    def precede(self) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_event(self._event)
        if current != self._stream:
            for target in self._targets:
                target.record_stream(current)
        # From now on, the batch alone keeps them.
        self._targets = []

    def is_done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()


class CudaPageLock:
    """Page-locks memory with CUDA; where CUDA refuses, warns once and locks nothing any more."""

    def __init__(self) -> None:
        self._refused = False

    def lock(self, address: int, size: int) -> bool:
        if self._refused:
            return False
        reason = lock_pages(address, size)
        if reason is None:
            return True
        self._refused = True
        warn(
            f"{size:,} bytes of the workers' memory cannot be page-locked ({reason}), so the "
            "training process first copies each batch to page-locked memory, which takes it time "
            "and changes nothing else",
            RuntimeWarning,
        )
        return False

    def unlock(self, address: int) -> None:
        unlock_pages(address)


def _is_plain(value: Any) -> bool:
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not (value.is_nested or value.is_quantized or value.requires_grad)
    )
