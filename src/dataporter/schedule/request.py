"""Requests: what a worker is asked for, and what counts as delivered with its batch (C1, C9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EngineRequest",
    "PackedRequest",
    "Request",
    "Scheduled",
]
_INDICES_SHOWN = 8


class Request(NamedTuple):
    """One batch on one rank: its content is a function of the request and the dataset.

    Attributes:
        seed, epoch, step: the loader's seed, and which batch this is.
        positions: int64, shape (batch,).
        indices: the samples at these positions: int64 of the same shape, or a list of what a
            custom sampler gave.
    """

    seed: int
    epoch: int
    step: int
    positions: NDArray[np.int64]
    indices: NDArray[np.int64] | Sequence[Any]

    @property
    def reader(self) -> None:
        """Any worker can serve it."""
        return None

    def packed(self) -> PackedRequest:
        """The request as it is sent to a worker."""
        # A pickled array takes ten times as long as its bytes.
        raw = self.indices.tobytes() if isinstance(self.indices, np.ndarray) else self.indices
        return PackedRequest(self.seed, self.epoch, self.step, self.positions.tobytes(), raw)

    def described(self) -> str:
        """For people: the samples, and which batch they are."""
        shown = ", ".join(repr(index) for index in self.plain_indices[:_INDICES_SHOWN])
        more = ", ..." if len(self.indices) > _INDICES_SHOWN else ""
        return (
            f"{len(self.indices)} samples with indices [{shown}{more}] (epoch {self.epoch}, step "
            f"{self.step})"
        )

    @property
    def plain_indices(self) -> list[Any]:
        """Indices as the list of Python objects that datasets know from torch's samplers."""
        indices = self.indices
        return indices.tolist() if isinstance(indices, np.ndarray) else list(indices)


class PackedRequest(NamedTuple):
    """A request on its way to a worker."""

    seed: int
    epoch: int
    step: int
    positions: bytes
    indices: bytes | Sequence[Any]

    def unpacked(self) -> Request:
        """The request, in the worker."""
        indices: Any = self.indices
        if isinstance(indices, bytes):
            # A bytearray, since torch wants arrays that it may write to.
            indices = np.frombuffer(bytearray(indices), dtype=np.int64)
        positions = np.frombuffer(self.positions, dtype=np.int64)
        return Request(self.seed, self.epoch, self.step, positions, indices)


class EngineRequest(Protocol):
    """What an engine has to know of a request, whatever it is for."""

    @property
    def seed(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def step(self) -> int: ...

    @property
    def reader(self) -> int | None:
        """Requests with the same number go to the same worker; None: any may serve it."""

    def packed(self) -> Any:
        """What is sent to a worker, where ``unpacked()`` makes the request of it again."""

    def described(self) -> str:
        """What is to be read, for people."""


class Scheduled(NamedTuple):
    """A request, and what its batch delivers; only the request is sent to a worker.

    Attributes:
        request: what a worker is asked for.
        delivers: what :meth:`EpochProgress.after` counts once the batch is delivered: positions
            over all ranks. None where the reader reports that with the batch (streams).
    """

    request: EngineRequest
    delivers: Any
