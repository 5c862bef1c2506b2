"""The report of `memory_report`: its values, as tables and as JSON types."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Held", "LeafMemory", "MemoryReport"]


@dataclass(frozen=True, slots=True)
class LeafMemory:
    """A tensor or array of a batch, in bytes before and after conversion.

    Attributes:
        path: as the rules of a converter name it.
        dtype, converted: names of the dtypes before and after.
        before, after: bytes of the leaf.
    """

    path: str
    dtype: str
    converted: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Held:
    """Memory with one purpose, with DataPorter and as torch's loader would need it.

    Attributes:
        what: the purpose, in words.
        now: bytes with DataPorter.
        without: bytes without DataPorter.
    """

    what: str
    now: int
    without: int


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The result of :func:`memory_report`; ``print`` shows it as tables.

    Attributes:
        batch_size: samples in the measured batch.
        leaves: the tensors and arrays of that batch.
        held: the most memory that a training holds while it reads from the loader, by purpose;
            computed from that batch, the loader's arguments and the dataset's objects.
        measured: bytes held right now. ``"training"`` and ``"workers"`` are proportional set sizes
            (PSS), where the system has them; ``"slots"`` is the memory shared with the workers
            that this process has mapped, while a pass runs.
    """

    batch_size: int
    leaves: tuple[LeafMemory, ...]
    held: tuple[Held, ...]
    measured: Mapping[str, int]

    @property
    def before(self) -> int:
        """Bytes of the batch before conversion."""
        return sum(leaf.before for leaf in self.leaves)

    @property
    def after(self) -> int:
        """Bytes of the batch after conversion."""
        return sum(leaf.after for leaf in self.leaves)

    @property
    def now(self) -> int:
        """Bytes held in total, with DataPorter."""
        return sum(held.now for held in self.held)

    @property
    def without(self) -> int:
        """Bytes held in total, without DataPorter."""
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
                escape(repr(leaf.path)),
                leaf.dtype,
                leaf.converted,
                *_compared(leaf.before, leaf.after),
            )
        batch.add_section()
        batch.add_row("total", "", "", *_compared(self.before, self.after))
        total = Table(title="Memory while training", title_justify="left")
        total.add_column("held by")
        for name in ("without DataPorter", "now", "saved"):
            total.add_column(name, justify="right")
        for held in self.held:
            total.add_row(escape(held.what), *_compared(held.without, held.now))
        total.add_section()
        total.add_row("total", *_compared(self.without, self.now))
        text = io.StringIO()
        console = Console(file=text, width=100)
        console.print(batch)
        console.print(total)
        if self.measured:
            shown = ", ".join(f"{name} {_size(size)}" for name, size in self.measured.items())
            console.print(f"Measured right now: {shown}", highlight=False)
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
