"""The only file that touches what torch does not publish; each function says what and why."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import _utils

from dataporter.errors import warn

__all__ = [
    "address_of",
    "become_worker",
    "collective_device",
    "default_collate_is_extended",
    "index_sampler",
    "is_observed",
    "is_profiled",
    "lock_pages",
    "numpy_seed",
    "pin_function",
    "stack_with",
    "typed_storage",
    "unlock_pages",
    "untyped_storage",
    "without_worker_info",
]


# cudaHostRegisterPortable: locked for every CUDA device of the process.
_PORTABLE = 1
_COLLATE_FUNCTIONS = dict(_utils.collate.default_collate_fn_map)


def address_of(generator: torch.Generator) -> int:
    """Where the C++ object behind a generator lies; its state can be copied only as a tensor."""
    address: int = generator._cdata  # type: ignore[attr-defined]  # not in torch's stubs
    return address


def pin_function(*, pin_memory: bool) -> Callable[[Any], Any]:
    """What a batch goes through in the training process when torch's loader would pin it there.

    The recursion over a batch, with its rules for user classes, is torch's and not published.
    """
    if not pin_memory:
        return _unchanged
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    if accelerator is None or accelerator.type == "mps":
        reason = "no accelerator is found" if accelerator is None else "MPS does not support it"
        warn(
            f"'pin_memory' argument is set as true but {reason}, then device pinned memory won't "
            "be used.",
            UserWarning,
        )
        return _unchanged
    return partial(_utils.pin_memory.pin_memory, device=accelerator.type)


def index_sampler(loader: Any) -> Any:
    """What torch's loader would draw the indices of a batch from: its batch sampler or sampler.

    Subclasses override it, and there is no published way to ask.
    """
    return loader._index_sampler


class _ObservedInfo(_utils.worker.WorkerInfo):
    """torch's ``WorkerInfo``, which notes whether anybody asks for what differs between workers."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in ("id", "seed"):
            _asked.add(name)
        return super().__getattribute__(name)


_asked: set[str] = set()


def become_worker(worker_id: int, num_workers: int, seed: int, dataset: Any) -> None:
    """Make ``torch.utils.data.get_worker_info()`` say what it says in a worker of torch's.

    There is no published way to set it.
    """
    _asked.clear()  # a fork of another worker has a copy
    _utils.worker._worker_info = _ObservedInfo(
        id=worker_id, num_workers=num_workers, seed=seed, dataset=dataset
    )


def is_observed() -> bool:
    """Whether anybody in this process has asked for the ``id`` or ``seed`` of its worker."""
    return bool(_asked)


class without_worker_info:  # like a function that makes a context, at a third of its cost
    """Make ``torch.utils.data.get_worker_info()`` say, in a worker, that this is none."""

    __slots__ = ("_info",)

    def __enter__(self) -> None:
        self._info, _utils.worker._worker_info = _utils.worker._worker_info, None

    def __exit__(self, *exception: object) -> None:
        _utils.worker._worker_info = self._info


def collective_device(group: Any) -> str:
    """The device whose tensors a process group carries, as torch's object collectives choose it.

    A group may serve several devices, or none that a published function names.
    """
    return dist.distributed_c10d._get_object_coll_device(group)


def lock_pages(address: int, size: int) -> str | None:
    """Page-lock memory for all CUDA devices; returns why that failed, or None.

    ``torch.cuda.cudart`` is published, what is in it is not.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch's
    error = runtime.cudaHostRegister(address, size, _PORTABLE)
    if int(error) == 0:
        return None
    # CUDA keeps the error, and torch would raise it at the next kernel that it starts.
    with suppress(RuntimeError):
        torch.ones((), device="cuda")
    return str(runtime.cudaGetErrorString(error))


def unlock_pages(address: int) -> None:
    """Unlock what ``lock_pages`` has locked at this address."""
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]  # torch's


def numpy_seed(base_seed: int, worker_id: int) -> Any:
    """What torch seeds NumPy with in a worker; its mixing is not published."""
    return _utils.worker._generate_state(base_seed, worker_id)  # type: ignore[no-untyped-call]  # torch's


def stack_with(stack: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``default_collate`` stack tensors with ``stack`` in this process; returns torch's own.

    torch's own way, in a worker, is a new file of shared memory for each tensor. Somebody who has
    put a function of his own there keeps it.
    """
    functions = _utils.collate.default_collate_fn_map
    own = _utils.collate.collate_tensor_fn
    if functions[torch.Tensor] is own:
        functions[torch.Tensor] = _COLLATE_FUNCTIONS[torch.Tensor] = stack
    return own


def typed_storage(untyped: torch.UntypedStorage, dtype: torch.dtype) -> torch.TypedStorage:
    """A storage as torch's functions that restore a tensor expect it.

    Its constructor warns all others that the class is deprecated.
    """
    return torch.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]  # torch's


def untyped_storage(storage: torch.TypedStorage) -> torch.UntypedStorage:
    """The bytes of a storage; the published method warns that the class is deprecated."""
    return storage._untyped_storage


def default_collate_is_extended() -> bool:
    """Whether somebody has taught ``default_collate`` types of his own.

    Its docstring says to do that by changing this dict, which is not published elsewhere.
    """
    return _utils.collate.default_collate_fn_map != _COLLATE_FUNCTIONS


def is_profiled() -> bool:
    """Whether torch's profiler runs, for which its own loader marks each batch.

    ``record_function`` costs 13 us whether a profiler runs or not; whether one runs is not
    published.
    """
    return torch._C._autograd._profiler_enabled()


def _unchanged(batch: Any) -> Any:
    return batch
