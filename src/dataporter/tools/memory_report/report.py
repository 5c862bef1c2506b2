"""The report of `memory_report`: its values, as tables and as JSON types."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Held", "LeafMemory", "MemoryReport"]


@dataclass(frozen=True, slots=True)
class LeafMemory:
    """A tensor or array of a batch, in bytes before and after conversion.

    Attributes:
        path: as the rules of a converter name it.
        dtype, converted: names of the dtypes.
        before, after: bytes in the batch.
    """

    path: str
    dtype: str
    converted: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that something holds, now and if torch's loader did the same work.

    Attributes:
        what: in words.
        now: bytes.
        without: bytes without DataPorter.
    """

    what: str
    now: int
    without: int


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What :func:`memory_report` found; ``print`` shows it as tables.

    Attributes:
        batch_size: samples in the batch that was looked at.
        leaves: its tensors and arrays.
        held: what is held at most while a training reads from the loader; computed from that batch,
            the loader's arguments and the dataset's objects.
        measured: what is there at this moment: ``"training"`` and ``"workers"``, proportional set
            sizes (PSS) in bytes, where the system tells them, and ``"slots"``, the memory that
            workers share, as far as a pass is under way and this process has mapped it.
    """

    batch_size: int
    leaves: tuple[LeafMemory, ...]
    held: tuple[Held, ...]
    measured: Mapping[str, int]

    @property
    def before(self) -> int:
        """Bytes of a batch as it is collated."""
        return sum(leaf.before for leaf in self.leaves)

    @property
    def after(self) -> int:
        """Bytes of a batch as it is delivered."""
        return sum(leaf.after for leaf in self.leaves)

    @property
    def now(self) -> int:
        """Bytes held in all."""
        return sum(held.now for held in self.held)

    @property
    def without(self) -> int:
        """Bytes that would be held in all without DataPorter."""
        return sum(held.without for held in self.held)

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON types."""
        return {
            "batch_size": self.batch_size,
            "batch": {
                "before": self.before,
                "after": self.after,
                "leaves": [asdict(leaf) for leaf in self.leaves],
            },
            "held": [asdict(held) for held in self.held],
            "total": {"now": self.now, "without": self.without},
            "measured": dict(self.measured),
        }

    def __str__(self) -> str:
        batch = Table(title=f"A batch of {self.batch_size} samples", title_justify="left")
        for name in ("path", "dtype", "converted"):
            batch.add_column(name)
        for name in ("before", "after", "saved"):
            batch.add_column(name, justify="right")
        for leaf in self.leaves:
            batch.add_row(
                repr(leaf.path), leaf.dtype, leaf.converted, *_compared(leaf.before, leaf.after)
            )
        batch.add_section()
        batch.add_row("all", "", "", *_compared(self.before, self.after))
        whole = Table(title="Held while training", title_justify="left")
        whole.add_column("by")
        for name in ("without DataPorter", "now", "saved"):
            whole.add_column(name, justify="right")
        for held in self.held:
            whole.add_row(held.what, *_compared(held.without, held.now))
        whole.add_section()
        whole.add_row("all", *_compared(self.without, self.now))
        text = io.StringIO()
        console = Console(file=text, width=100)
        console.print(batch)
        console.print(whole)
        if self.measured:
            shown = ", ".join(f"{name} {_size(size)}" for name, size in self.measured.items())
            console.print(f"Measured at this moment: {shown}", highlight=False)
        return text.getvalue().rstrip()


def _compared(before: int, after: int) -> tuple[str, str, str]:
    saved = f"{(1 - after / before):.1%}" if before else ""
    return _size(before), _size(after), saved


def _size(size: int) -> str:
    if size < 1000:
        return f"{size} B"
    if size < 1_000_000:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:,.1f} MB"
