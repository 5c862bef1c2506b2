"""How far each source of a mixture has been consumed, and what comes next of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Consumed"]


@dataclass(frozen=True, slots=True)
class Consumed:
    """How much of a source was consumed, and in which pass over it that ends.

    Attributes:
        count: number of samples, over all passes.
        passes: whole passes.
        offset: samples of the pass under way; 0 if none is.
        length: of the pass under way: of the source when that pass began, since a source may grow.
    """

    count: int = 0
    passes: int = 0
    offset: int = 0
    length: int = 0

    def left(self, length: int, passes: int) -> int:
        """How many samples are left until so many passes are whole, over a source of a length."""
        if passes <= self.passes:
            return 0
        if not self.offset:
            return (passes - self.passes) * length
        return self.length - self.offset + (passes - self.passes - 1) * length

    def after(self, taken: int, length: int) -> Consumed:
        """What was consumed once so many more samples were, of a source of a length."""
        count = self.count + taken
        if self.offset and taken < (rest := self.length - self.offset):
            return replace(self, count=count, offset=self.offset + taken)
        passes, over = self.passes, taken
        if self.offset:
            passes, over = passes + 1, taken - rest
        more, offset = divmod(over, length) if length else (0, 0)
        return Consumed(count, passes + more, offset, length if offset else 0)
