"""Records for a SharedSequence, and how to compare them."""

from __future__ import annotations

import gc
import os
import struct
import sys
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


Pair = namedtuple("Pair", "left right")


@dataclass
class Note:
    text: str
    score: float


class Unwilling:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def same(mine: Any, theirs: Any) -> bool:
    """Whether two objects are equal, with the same types and bits throughout."""
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, float):
        return struct.pack("d", mine) == struct.pack("d", theirs)
    if isinstance(mine, dict):
        return same(list(mine.items()), list(theirs.items()))
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, Note):
        return same((mine.text, mine.score), (theirs.text, theirs.score))
    if isinstance(mine, torch.Tensor):
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)
    return bool(mine == theirs)


EXAMPLES = [{"path": f"images/{i:08d}.jpg", "label": i % 7, "score": i / 8} for i in range(40)]


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))
