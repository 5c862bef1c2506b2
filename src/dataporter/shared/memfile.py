"""Memory without a name: the system frees it, whichever process is killed."""

from __future__ import annotations

import errno
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dataporter.errors import TooManyOpenFilesError

__all__ = ["create_memory", "explaining_limit", "map_memory"]

_LIMITS = (errno.EMFILE, errno.ENFILE, getattr(errno, "ETOOMANYREFS", None))


def create_memory(size: int) -> int:
    """A descriptor of ``size`` zeroed bytes of memory without a name. The caller closes it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("dataporter", os.MFD_CLOEXEC)
    else:  # macOS: an unlinked file, which stays in memory while there is enough of it
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_memory(descriptor: int, size: int) -> memoryview:
    """The memory of a descriptor, which is needed no longer once this returns."""
    try:
        # mmap.mmap keeps a duplicate of the descriptor open as long as the memory is mapped.
        mapped = torch.from_file(
            f"/dev/fd/{descriptor}", shared=True, size=size, dtype=torch.uint8, device="cpu"
        )
    except RuntimeError:  # a system without these paths, or a failure that mmap explains
        return memoryview(mmap.mmap(descriptor, size))
    return mapped.numpy().data


@contextmanager
def explaining_limit(what: str) -> Iterator[None]:
    """Say what to do where the system's limit of open files is met while ``what`` is done.

    Raises:
        TooManyOpenFilesError: (an ``OSError``) the limit is met.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _LIMITS or isinstance(error, TooManyOpenFilesError):
            raise
        raise TooManyOpenFilesError(
            error.errno,
            f"{what} takes an open file, of which there are as many as the limit allows"
            f"{_limit()}: raise the limit (`ulimit -n 65536` before the program, or "
            "resource.setrlimit), use fewer workers, or close files that are no longer needed",
        ) from error


def _limit() -> str:
    if sys.platform == "win32":
        return ""
    import resource

    return f" ({resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,} in this process)"
