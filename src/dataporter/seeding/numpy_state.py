"""The state of NumPy's legacy generator, saved and restored in a few microseconds.

`numpy.random.get_state` and `set_state` together take 100 us, because they convert 624 words to an
array and back: a tenth of the time for reading a batch of 256 small samples. This module copies the
words as memory, at the address that a bit generator publishes for foreign functions.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.random.mtrand import get_bit_generator

__all__ = ["restore", "save", "words"]

# MT19937: 624 words of state, and the index of the next one.
_STATE_BYTES = 624 * 4 + 4


def save() -> Any:
    """The state of ``numpy.random``, for :func:`restore`; the call itself may change the state."""
    words = _words()
    if words is None:
        return np.random.get_state(legacy=False)
    # NumPy draws normal numbers in pairs and keeps the second for the next call. Only a draw shows
    # whether one is kept: if the words do not change, the draw returned the kept one.
    normal = np.random.standard_normal()
    kept = normal if _words() == words else None
    return words, kept


def words() -> bytes:
    """The state of ``numpy.random``, to detect whether anything was drawn in between."""
    words = _words()
    if words is None:
        whole: Any = np.random.get_state(legacy=False)
        return repr(whole["state"]).encode()
    return words


def restore(state: Any) -> None:
    """Return ``numpy.random`` to the saved state."""
    if isinstance(state, dict):
        np.random.set_state(state)
        return
    words, kept = state
    np.random.seed(0)  # discards a kept normal number
    generator = get_bit_generator()
    with generator.lock:
        ctypes.memmove(generator.ctypes.state_address, words, _STATE_BYTES)
    if kept is not None:
        whole: dict[str, Any] = np.random.get_state(legacy=False)
        np.random.set_state({**whole, "has_gauss": 1, "gauss": kept})


def _words() -> bytes | None:
    """The words in memory; None for a generator whose memory layout is not known."""
    generator = get_bit_generator()
    if type(generator) is not np.random.MT19937 or not _memory_is_the_state():
        return None
    with generator.lock:
        return ctypes.string_at(generator.ctypes.state_address, _STATE_BYTES)


@cache
def _memory_is_the_state() -> bool:
    """Whether this NumPy has the same memory layout as all releases so far."""
    source, target = np.random.MT19937(1), np.random.MT19937(2)
    source.random_raw(700)
    words = ctypes.string_at(source.ctypes.state_address, _STATE_BYTES)
    ctypes.memmove(target.ctypes.state_address, words, _STATE_BYTES)
    same_index = source.state["state"]["pos"] == target.state["state"]["pos"]
    return same_index and bool((source.random_raw(1500) == target.random_raw(1500)).all())
