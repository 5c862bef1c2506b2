"""Memory without a name: the system frees it, whichever process is killed."""

from __future__ import annotations

import os
import tempfile

__all__ = ["create_memory"]


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
