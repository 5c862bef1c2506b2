"""The machine and the library versions with which the figures were measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

__all__ = ["cpu_model", "describe"]

_LIBRARIES = ("dataporter", "torch", "numpy", "torchdata", "grain", "spdl", "datasets")


def describe(libraries: Sequence[str] = _LIBRARIES) -> dict[str, str]:
    """Facts by name, including the versions of ``libraries``."""
    return {
        "date": date.today().isoformat(),
        "CPU": f"{cpu_model()}, {psutil.cpu_count(logical=False)} cores, "
        f"{psutil.cpu_count()} threads",
        "load": f"{os.getloadavg()[0]:.1f} (1 minute, before the run)",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "libraries": ", ".join(f"{name} {version(name)}" for name in libraries),
        "torch threads": str(torch.get_num_threads()),
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
