"""The page cache: how much of a file it holds, and how to drop the file from it (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

__all__ = ["advise", "bytes_read", "forget", "resident"]

_libc = ctypes.CDLL(None, use_errno=True)


def resident(path: Path) -> int:
    """Bytes of the file in the page cache, according to mincore."""
    size, page = path.stat().st_size, mmap.PAGESIZE
    held = (ctypes.c_ubyte * -(-size // page))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        start = np.frombuffer(mapped, dtype=np.uint8)
        address = ctypes.c_void_p(start.ctypes.data)
        failed = _libc.mincore(address, ctypes.c_size_t(size), held)
        del start  # a mapping with a view cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return int((np.frombuffer(bytes(held), dtype=np.uint8) & 1).sum()) * page


def forget(path: Path) -> None:
    """Drop the file from the page cache, also if this process has mapped it.

    The kernel keeps mapped pages, so the mappings release theirs first; they stay valid.
    """
    advise(path, mmap.MADV_DONTNEED)
    with path.open("rb") as file:
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def advise(path: Path, advice: int) -> None:
    """Pass advice to ``madvise`` for this process's mappings of the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if fields[-1] == str(path):
            begin, end = (int(address, 16) for address in fields[0].split("-"))
            length = ctypes.c_size_t(end - begin)
            if _libc.madvise(ctypes.c_void_p(begin), length, advice):
                raise OSError(ctypes.get_errno(), f"madvise of {path}")


def bytes_read() -> int:
    """Bytes read from disks for this process so far, including read-ahead."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])
