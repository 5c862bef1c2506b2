"""The state of NumPy's legacy generator, saved and put back in a few microseconds.

`numpy.random.get_state` and `set_state` take 100 us together, because they turn 624 words into an
array and back: a tenth of the time in which a batch of 256 small samples is read. Here the words
are copied as memory, at the address that a bit generator publishes for foreign functions.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.random.mtrand import get_bit_generator

__all__ = ["put_back", "save", "words"]

# MT19937: 624 words of state and the place among them.
_STATE_BYTES = 624 * 4 + 4


def save() -> Any:
    """The state of ``numpy.random``, for :func:`put_back`; the generator is to be seeded anew."""
    words = _words()
    if words is None:
        return np.random.get_state(legacy=False)
    # A pair of normal numbers is made at a time and the second kept for the next call. Whether one
    # is kept shows only in a draw: one that leaves the words as they are was the kept one.
    normal = np.random.standard_normal()
    kept = normal if _words() == words else None
    return words, kept


def words() -> bytes:
    """The state of ``numpy.random``, to be compared: whether anybody has drawn."""
    words = _words()
    if words is None:
        whole: Any = np.random.get_state(legacy=False)
        return repr(whole["state"]).encode()
    return words


def put_back(state: Any) -> None:
    """Make ``numpy.random`` what it was when it was saved."""
    if isinstance(state, dict):
        np.random.set_state(state)
        return
    words, kept = state
    np.random.seed(0)  # forgets a kept normal number
    generator = get_bit_generator()
    with generator.lock:
        ctypes.memmove(generator.ctypes.state_address, words, _STATE_BYTES)
    if kept is not None:
        whole: dict[str, Any] = np.random.get_state(legacy=False)
        np.random.set_state({**whole, "has_gauss": 1, "gauss": kept})


def _words() -> bytes | None:
    """As they lie in memory, where that is known."""
    generator = get_bit_generator()
    if type(generator) is not np.random.MT19937 or not _memory_is_the_state():
        return None
    with generator.lock:
        return ctypes.string_at(generator.ctypes.state_address, _STATE_BYTES)


@cache
def _memory_is_the_state() -> bool:
    """Whether this NumPy lays the state out as all releases so far do."""
    source, target = np.random.MT19937(1), np.random.MT19937(2)
    source.random_raw(700)
    words = ctypes.string_at(source.ctypes.state_address, _STATE_BYTES)
    ctypes.memmove(target.ctypes.state_address, words, _STATE_BYTES)
    same_place = source.state["state"]["pos"] == target.state["state"]["pos"]
    return same_place and bool((source.random_raw(1500) == target.random_raw(1500)).all())
