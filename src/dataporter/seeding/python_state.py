"""The state of Python's `random`, saved and restored in less than a microsecond.

`random.getstate` and `setstate` together take 12 us, because they convert 624 words to a tuple of
numbers and back. This module copies the words as memory, which lie behind the object's header.
"""

from __future__ import annotations

import ctypes
import random
from typing import Any

__all__ = ["restore", "save"]

# CPython's RandomObject: the index of the next word, and 624 words of MT19937.
_Words = ctypes.c_char * (4 + 624 * 4)


def _words_of(generator: random.Random) -> Any:
    return _Words.from_address(id(generator) + object.__basicsize__)


def _memory_is_the_state() -> bool:
    """Whether this Python has the same memory layout as CPython 3.10 to 3.13."""
    source, target = random.Random(1), random.Random(2)
    base: Any = random.Random.__base__
    if base.__basicsize__ < object.__basicsize__ + ctypes.sizeof(_Words):
        return False
    for _ in range(700):
        source.random()
    words = _words_of(source).raw
    index, *numbers = memoryview(words).cast("I")
    if (*numbers, index) != source.getstate()[1]:
        return False
    _words_of(target).raw = words
    return source.getstate() == target.getstate()


# The functions of the module are the methods of one hidden object.
_GENERATOR: Any = random.random.__self__  # type: ignore[attr-defined]  # of a bound method
_getstate, _setstate = random.getstate, random.setstate
_WORDS = _words_of(_GENERATOR) if _memory_is_the_state() else None


def save() -> Any:
    """The state of ``random``, to compare with others, and for :func:`restore`."""
    if _WORDS is None:
        return _getstate()
    return _WORDS.raw, _GENERATOR.gauss_next


def restore(state: Any) -> None:
    """Return ``random`` to the saved state."""
    if _WORDS is None:
        _setstate(state)
        return
    _WORDS.raw, _GENERATOR.gauss_next = state
