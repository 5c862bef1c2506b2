"""The state of NumPy's legacy generator, saved and restored in less than a microsecond.

`numpy.random.get_state` and `set_state` together take 100 us, because they convert 624 words to an
array and back: a quarter of the time for reading a batch of 256 small samples. This module copies
the words as memory, at the address that a bit generator publishes for foreign functions. NumPy
draws normal numbers in pairs and keeps the second for the next call; that one lies in the object
behind `numpy.random` itself.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.random.mtrand import get_bit_generator, set_bit_generator

__all__ = ["restore", "save", "seed"]

# MT19937: 624 words of state, and the index of the next one.
_Words = ctypes.c_char * (624 * 4 + 4)
# The methods of one hidden object are the functions of the module.
_LEGACY: Any = np.random.mtrand._rand
_get_state, _set_state = np.random.get_state, np.random.set_state


class _Kept(NamedTuple):
    """The memory of a kept normal number: whether there is one, and its value."""

    is_kept: ctypes.c_int
    value: ctypes.c_double

    @classmethod
    def of(cls, legacy: Any, offset: int) -> _Kept:
        address = id(legacy) + offset
        return cls(ctypes.c_int.from_address(address - 8), ctypes.c_double.from_address(address))


def _words_of(generator: Any) -> Any:
    return _Words.from_address(generator.ctypes.state_address)


def _memory_is_the_state() -> bool:
    """Whether this NumPy has the same memory layout as all releases so far."""
    source, target = np.random.MT19937(1), np.random.MT19937(2)
    source.random_raw(700)
    _words_of(target).raw = _words_of(source).raw
    same_index = source.state["state"]["pos"] == target.state["state"]["pos"]
    return same_index and bool((source.random_raw(1500) == target.random_raw(1500)).all())


def _offset_of_kept() -> int | None:
    """Where in the object behind ``numpy.random`` the kept normal number lies, if it is found."""
    first, second = (np.random.RandomState(np.random.MT19937(seed)) for seed in (1, 2))
    first.standard_normal()
    second.standard_normal()
    size = type(first).__basicsize__
    offsets = []
    for legacy in (first, second):
        memory = ctypes.string_at(id(legacy), size)
        value: Any = legacy.get_state(legacy=False)
        offsets.append(memory.find(struct.pack("d", value["gauss"])))
    if offsets[0] != offsets[1] or offsets[0] < 8:
        return None
    kept = _Kept.of(second, offsets[0])
    if kept.is_kept.value != 1:
        return None
    kept.is_kept.value = 0
    state: Any = second.get_state(legacy=False)
    if state["has_gauss"] != 0:
        return None
    kept.is_kept.value, kept.value.value = 1, 0.25
    return offsets[0] if second.standard_normal() == 0.25 else None


def _memory() -> _Kept | None:
    offset = _offset_of_kept() if _memory_is_the_state() else None
    return None if offset is None else _Kept.of(_LEGACY, offset)


_KEPT = _memory()
# The words of the bit generator that `numpy.random` had last; set_bit_generator() changes it.
_last: tuple[Any, Any] = (None, None)


def seed(key: int) -> None:
    """Seed ``numpy.random`` with 32 bits."""
    try:
        _LEGACY.seed(key)
    except TypeError:  # numpy.random.set_bit_generator set a different kind
        generator = get_bit_generator()
        generator.state = type(generator)(key).state


def save() -> Any:
    """The state of ``numpy.random``, to compare with others, and for :func:`restore`."""
    generator, words = _words()
    if words is None:
        return _Whole(generator, _get_state(legacy=False))
    with generator.lock:
        kept = _KEPT.value.value if _KEPT.is_kept.value else None  # type: ignore[union-attr]  # there are words
        return generator, words.raw, kept


def restore(state: Any) -> None:
    """Return ``numpy.random`` to the saved state."""
    saved = state.generator if isinstance(state, _Whole) else state[0]
    if get_bit_generator() is not saved:  # numpy.random.set_bit_generator set another
        set_bit_generator(saved)
    if isinstance(state, _Whole):
        _set_state(state.state)
        return
    _, words = _words()
    generator, raw, kept = state
    with generator.lock:
        words.raw = raw
        _KEPT.is_kept.value = kept is not None  # type: ignore[union-attr]  # as in save()
        _KEPT.value.value = kept or 0.0  # type: ignore[union-attr]  # as in save()


class _Whole:
    """The state of a generator whose memory layout is not known."""

    def __init__(self, generator: Any, state: Any) -> None:
        self.generator = generator
        self.state = state
        self._shown = repr(state)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Whole):
            return NotImplemented
        return self.generator is other.generator and self._shown == other._shown

    __hash__ = None  # type: ignore[assignment]  # it holds arrays


def _words() -> tuple[Any, Any]:
    """The present bit generator, and its words in memory if their layout is known."""
    global _last
    generator = get_bit_generator()
    if generator is not _last[0]:
        known = _KEPT is not None and type(generator) is np.random.MT19937
        _last = (generator, _words_of(generator) if known else None)
    return _last
