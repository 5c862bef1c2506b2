"""The report of `inspect_checkpoint`: its values, as text and as JSON types."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataporter.fetch.failure import Failure
from dataporter.state.ledger import Ledger
from dataporter.tools.inspection.mixture_report import MixtureReport

__all__ = ["CheckpointReport", "ConverterReport", "FileReport", "Next", "StateReport"]

_BAR = 20
_SOURCES_SHOWN = 30
_CHANGES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Next:
    """The first batch that a rank receives after a resume.

    Attributes:
        rank, epoch, step: whose batch it is, and which one.
        count: its number of samples, 0 if this rank has none left; None for a stream, where it is
            known only when the samples are read.
        indices: the first of its samples' indices; of a mixture (source, index in it).
        shard, offset: for a stream, the shard it is read from, and its first sample in that shard.
    """

    rank: int
    epoch: int
    step: int
    count: int | None = None
    indices: tuple[int, ...] | tuple[tuple[str, int], ...] = ()
    shard: int | None = None
    offset: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The batch in JSON types."""
        fields = asdict(self)
        # Programs that read the JSON know the offset by this key.
        fields["place"] = fields.pop("offset")
        return fields

    def __str__(self) -> str:
        if self.shard is not None:
            return f"shard {self.shard}, from sample {self.offset:,}"
        if not self.count:
            return "none left"
        shown = ", ".join(
            f"{index[0]} {index[1]}" if isinstance(index, tuple) else str(index)
            for index in self.indices
        )
        more = self.count - len(self.indices)
        return f"{shown}, ... ({self.count:,} samples)" if more and shown else shown or "..."


@dataclass(frozen=True, slots=True)
class StateReport:
    """A state of a loader.

    Attributes:
        where: the keys that lead to it, as Python writes them behind the checkpoint's name.
        state: the state itself.
        reads: ``"index"`` for a map-style dataset, ``"stream"``; None for a damaged state.
        position: number of samples of the epoch delivered so far, over all ranks.
        length: number of samples that the epoch delivers; None if only the program knows it.
        may_change, must_stay: between the save and the load, in words.
        failed: number of samples that failed.
        failures: the records of them that the state has.
        next: the next batch of each of the first ranks; empty if it cannot be computed here.
        mixture: of which sources the run has had how much; None where the dataset is no mixture.
        notes: further facts, in words.
        fault: why the state cannot be loaded; None for a sound state.
    """

    where: str
    state: Mapping[str, Any]
    reads: Literal["index", "stream"] | None = None
    position: int | None = None
    length: int | None = None
    may_change: tuple[str, ...] = ()
    must_stay: tuple[str, ...] = ()
    failed: int = 0
    failures: tuple[Failure, ...] = ()
    next: tuple[Next, ...] = ()
    mixture: MixtureReport | None = None
    notes: tuple[str, ...] = ()
    fault: str | None = None

    @property
    def epoch(self) -> int | None:
        """The current epoch."""
        return self.state.get("epoch")

    @property
    def step(self) -> int | None:
        """Batches of this epoch delivered on each rank."""
        return self.state.get("step")

    @property
    def seed(self) -> int | None:
        """The loader's seed."""
        return self.state.get("seed")

    @property
    def strategy(self) -> str | None:
        """The name of the loader's strategy."""
        return self.state.get("strategy")

    @property
    def progress(self) -> float | None:
        """The delivered share of the epoch, 0 to 1; None if the length is not known."""
        if self.position is None or self.length is None:
            return None
        return self.position / self.length if self.length else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The state and the facts about it in JSON types."""
        batches = [batch.to_dict() for batch in self.next]
        return {**asdict(self), "next": batches, "progress": self.progress}


@dataclass(frozen=True, slots=True)
class ConverterReport:
    """A state of a ``KeyBasedDtypeConverter``.

    Attributes:
        where: the keys that lead to it, as Python writes them behind the checkpoint's name.
        originals: path → the original dtypes at that path.
    """

    where: str
    originals: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FileReport:
    """A checkpoint: a file, or a folder of ``torch.distributed.checkpoint``.

    Attributes:
        path: of the checkpoint.
        saved: when it was saved, in seconds since 1970.
        states, converters: the states in it.
        fault: why it cannot be read; None if it was.
    """

    path: str
    saved: float | None = None
    states: tuple[StateReport, ...] = ()
    converters: tuple[ConverterReport, ...] = ()
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """The result of :func:`inspect_checkpoint`; ``print`` shows it as tables.

    Attributes:
        path: the path that was inspected.
        files: the checkpoints there, newest first.
        left_out: number of older checkpoints that were not inspected.
    """

    path: str
    files: tuple[FileReport, ...]
    left_out: int = 0

    @property
    def states(self) -> tuple[StateReport, ...]:
        """The sound states of all files, newest first."""
        return tuple(state for file in self.files for state in file.states if state.fault is None)

    @property
    def faults(self) -> tuple[str, ...]:
        """The files that cannot be read, and the damaged states, in words."""
        return tuple(_faults(self.files))

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON types."""
        return {
            "path": self.path,
            "files": [
                {**asdict(file), "states": [state.to_dict() for state in file.states]}
                for file in self.files
            ],
            "left_out": self.left_out,
        }

    def show(self, console: Console) -> None:
        """Print the report."""
        empty = 0
        for file in self.files:
            if file.fault is not None:
                _line(console, file.fault, "red")
            elif not file.states and not file.converters:
                empty += 1
            else:
                _show_file(file, console)
        if empty and len(self.files) > 1:
            _line(console, f"{empty} other files hold no state of a loader.")
        if self.left_out:
            _line(console, f"{self.left_out} older files were not inspected.")

    def __str__(self) -> str:
        text = io.StringIO()
        self.show(Console(file=text, width=100, highlight=False))
        return text.getvalue().rstrip()


def _faults(files: tuple[FileReport, ...]) -> Iterator[str]:
    for file in files:
        if file.fault is not None:
            yield file.fault
        for state in file.states:
            if state.fault is not None:
                yield f"{file.path}{state.where}: {state.fault}"


@dataclass
class _Rows:
    """A table of names and values, built row by row."""

    table: Table = field(default_factory=lambda: Table.grid(padding=(0, 2)))

    def add(self, name: str, value: object, style: str = "") -> None:
        # Text, since a path with brackets would be read as markup.
        self.table.add_row(Text(name, style="bold"), Text(str(value), style=style))


def _show_file(file: FileReport, console: Console) -> None:
    saved = ""
    if file.saved is not None:
        saved = f", saved {datetime.fromtimestamp(file.saved):%Y-%m-%d %H:%M:%S}"
    _line(console, f"{file.path}{saved}", "bold")
    for state in file.states:
        where = f"  loader's state at {state.where}" if state.where else "  a loader's state"
        if state.fault is not None:
            _line(console, f"{where} is damaged: {state.fault}", "red")
            continue
        _line(console, where)
        console.print(_table(state, ascii_only=console.options.ascii_only))
        if state.mixture is not None:
            console.print(_sources(state.mixture))
        if state.failures:
            console.print(_failures(state.failures))
    for converter in file.converters:
        dtypes = ", ".join(f"{path!r} was {names}" for path, names in converter.originals.items())
        where = f"at {converter.where} " if converter.where else ""
        _line(console, f"  converter's state {where}({dtypes or 'nothing converted yet'})")


def _table(state: StateReport, *, ascii_only: bool) -> Table:
    rows = _Rows()
    rows.add("    epoch", f"{state.epoch:,}")
    rows.add("    step", f"{state.step:,}")
    rows.add("    position", _position(state))
    if state.progress is not None:
        full, rest = ("#", "-") if ascii_only else ("█", "░")
        filled = int(state.progress * _BAR)
        bar = full * filled + rest * (_BAR - filled)
        # Rounded down, so that 100% means the end.
        rows.add("    progress", f"{bar} {int(state.progress * 1000) / 10}%", "green")
    if state.failed:
        rows.add("    failed", _failed(state), "red")
    rows.add("    seed", state.seed)
    rows.add("    strategy", state.strategy)
    rows.add("    may change", ", ".join(state.may_change))
    rows.add("    must stay", ", ".join(state.must_stay))
    if state.mixture is not None:
        rows.add("    mixture", state.mixture)
        changes = state.mixture.changes
        for change in changes[:_CHANGES_SHOWN]:
            rows.add("    weights", change)
        if (more := len(changes) - _CHANGES_SHOWN) > 0:
            rows.add("    weights", f"{more:,} more changes; --json lists them")
    for batch in state.next:
        name = "next batch" if len(state.next) == 1 else f"next, rank {batch.rank}"
        rows.add(f"    {name}", f"epoch {batch.epoch:,}, step {batch.step:,}: {batch}")
    for note in state.notes:
        rows.add("    note", note)
    return rows.table


def _sources(mixture: MixtureReport) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("   ")  # an indent
    table.add_column("source", overflow="fold")
    for column in ("samples", "consumed", "passes", "share so far", "weight now"):
        table.add_column(column, no_wrap=True, justify="right")
    for source in mixture.sources[:_SOURCES_SHOWN]:
        passes = f"{source.passes:,.2f}"
        if source.max_passes is not None:
            passes += f" of {source.max_passes:,}"
        table.add_row(
            "",
            Text(source.name),
            "left out" if source.length is None else f"{source.length:,}",
            f"{source.consumed:,}",
            passes,
            f"{source.share:.1%}",
            "-" if source.weight is None else f"{source.weight:.1%}",
        )
    if (more := len(mixture.sources) - _SOURCES_SHOWN) > 0:
        table.add_row("", f"{more:,} more; --json lists them")
    return table


def _failures(failures: tuple[Failure, ...]) -> Table:
    columns = ["index", "name", "epoch", "step", "position", "times", "error"]
    if all(failure.name is None for failure in failures):
        columns.remove("name")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("   ")  # an indent
    for column in columns:
        # Numbers stay whole; names and messages share what is left of the line.
        table.add_column(column, no_wrap=column not in ("name", "error"), overflow="fold")
    for failure in failures:
        text = f": {failure.message}" if failure.message else ""
        values = {
            "index": repr(failure.index),
            "name": failure.name or "",
            "epoch": f"{failure.epoch:,}",
            "step": f"{failure.step:,}",
            "position": f"{failure.position:,}",
            "times": f"{failure.count:,}",
            "error": f"{failure.error}{text}",
        }
        table.add_row("", *(Text(values[column]) for column in columns))
    return table


def _failed(state: StateReport) -> str:
    samples = "1 sample" if state.failed == 1 else f"{state.failed:,} samples"
    left_out = Ledger(state.failures, state.failed).left_out
    return f"{samples}, of which {left_out:,} are in no record" if left_out else samples


def _position(state: StateReport) -> str:
    length = "" if state.length is None else f" of {state.length:,}"
    return f"{state.position:,}{length} samples{_ranks(state)}"


def _ranks(state: StateReport) -> str:
    world = state.state.get("world_size")
    if state.state.get("rank") is not None:
        return f" on rank {state.state['rank']}"
    return f" over {world:,} ranks" if isinstance(world, int) and world > 1 else ""


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
