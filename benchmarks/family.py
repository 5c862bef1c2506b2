"""Family: the memory of this process and all its descendants, shared pages counted once."""

from __future__ import annotations

import os

import psutil

__all__ = ["held_by_family", "with_unmapped_memory"]


def held_by_family() -> int:
    """Bytes: the proportional set sizes (PSS) of this process and its descendants."""
    return sum(int(each.memory_full_info().pss) for each in _family())


def with_unmapped_memory() -> int:
    """The same, plus the shared memory that no process has currently mapped.

    torch's workers unmap a batch after sending it, and the training process maps it on receipt. In
    between, the memory is in no process's PSS, but in the system's shared memory, which is counted
    here in full: run this on an otherwise idle machine.
    """
    total = 0
    for each in _family():
        with open(f"/proc/{each.pid}/smaps_rollup") as file:
            sizes = {line.split()[0]: int(line.split()[1]) for line in file if "kB" in line}
        total += sizes["Pss_Anon:"] + sizes["Pss_File:"]
    with open("/proc/meminfo") as file:
        shared = next(int(line.split()[1]) for line in file if line.startswith("Shmem:"))
    return (total + shared) * 1024


def _family() -> list[psutil.Process]:
    process = psutil.Process(os.getpid())
    return [process, *process.children(recursive=True)]
