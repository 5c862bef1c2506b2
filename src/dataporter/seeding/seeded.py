"""Seeded: the global generators that a `worker_init_fn` has seeded, to no effect (C8)."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

__all__ = ["notice_of_seeding"]

# A Mersenne Twister stands here after it was seeded, and hardly ever after a draw.
_SEEDED_AT = 624


def notice_of_seeding(function: Callable[[int], None], worker: int) -> str | None:
    """Call a ``worker_init_fn``, and say which global generators it has seeded by its own numbers.

    The usual recipe derives its seeds from ``torch.initial_seed()``, so that workers differ; that
    they do here as well, so there is nothing to say. Nor is there for functions of libraries,
    which their users cannot change.

    Returns:
        A warning; None if there is nothing to say.
    """
    torchs, before = torch.initial_seed(), (_python(), _numpy())
    function(worker)
    if _is_of_a_library(function):
        return None
    usual = {torchs, torchs % 2**32, (torchs + worker) % 2**32, torchs % 2**32 + worker}
    seeded = []
    if torch.initial_seed() not in usual:
        seeded.append("torch's default generator")
    now = _numpy()
    own = now != before[1] and now[-1] == _SEEDED_AT
    if own and now[0] not in {_words(seed) for seed in usual if seed < 2**32}:
        seeded.append("numpy.random")
    state = _python()
    own = state != before[0] and state[1][-1] == _SEEDED_AT
    if own and state not in {random.Random(seed).getstate() for seed in usual}:
        seeded.append("Python's random")
    if not seeded:
        return None
    return (
        f"worker_init_fn seeds {' and '.join(seeded)}, which has no effect on the samples: the "
        "loader seeds the global generators by seed=, epoch and position before it reads each "
        "sample (strategy='simple': each batch), so that a resume is exact. Leave the seeding out, "
        "and pass seed= to choose the samples' randomness"
    )


def _python() -> Any:
    return random.getstate()


def _numpy() -> tuple[Any, ...]:
    state: Any = np.random.get_state(legacy=False)["state"]
    return (state["key"].tobytes(), state["pos"]) if "key" in state else (None, None)


def _words(seed: int) -> bytes:
    state: Any = np.random.RandomState(seed).get_state(legacy=False)
    words: bytes = state["state"]["key"].tobytes()
    return words


def _is_of_a_library(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    libraries = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib"))
    return code is not None and code.co_filename.startswith(libraries)
