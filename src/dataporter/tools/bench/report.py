"""The report of `dataporter bench`: its values, as tables with bars and as JSON types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["BenchReport", "Latency", "Stage", "Trial", "duration", "rate"]

_BAR = 20


class Latency(NamedTuple):
    """Time the loop waits for a batch, in seconds.

    Attributes:
        first: for the first batch of a pass, median over the passes; the other figures leave it
            out.
        p50, p90, p99, longest: for the other batches; None if there are none.
        batches: how many other batches there are.
    """

    first: float
    p50: float | None
    p90: float | None
    p99: float | None
    longest: float | None
    batches: int

    @classmethod
    def measured(cls, firsts: Sequence[float], waits: Sequence[float]) -> Latency:
        """The percentiles of the waits for first and for other batches."""
        if not waits:
            return cls(median(firsts), None, None, None, None, 0)
        p50, p90, p99 = map(float, np.percentile(waits, [50, 90, 99]))
        return cls(median(firsts), p50, p90, p99, max(waits), len(waits))


class Stage(NamedTuple):
    """One stage on the way of a batch, in seconds.

    Attributes:
        name: of the stage.
        where: the process or thread that it runs in.
        p50, p90: percentiles over the batches.
        batches: number of batches.
    """

    name: str
    where: str
    p50: float
    p90: float
    batches: int


@dataclass(frozen=True, slots=True)
class Trial:
    """A number of workers, and the samples per second of each round with it."""

    workers: int
    rates: tuple[float, ...]

    @property
    def median(self) -> float:
        """The rate of the middle round."""
        return median(self.rates)


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The measurements of a loader; :meth:`show` prints them as tables.

    Attributes:
        loader: name of its class.
        workers: its number of workers.
        cores: number of cores that this process may use.
        batch_samples, batch_bytes: average samples of a batch, and bytes of its tensors.
        samples_per_second, batches_per_second: rates of the loop, steps included.
        step: seconds the loop slept after each batch.
        waited: share of its time that the loop waited.
        latency: the waits of the loop.
        stages: where the time of a batch goes.
        trials: other numbers of workers.
        advice, notes: in words.
    """

    loader: str
    workers: int
    cores: int
    batch_samples: float
    batch_bytes: int
    samples_per_second: float
    batches_per_second: float
    step: float
    waited: float
    latency: Latency
    stages: tuple[Stage, ...]
    trials: tuple[Trial, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report in JSON types; seconds and bytes."""
        found = asdict(self)
        found["latency"] = self.latency._asdict()
        found["stages"] = [stage._asdict() for stage in self.stages]
        found["trials"] = [{**asdict(trial), "median": trial.median} for trial in self.trials]
        return found

    def show(self, console: Console) -> None:
        """Print the report."""
        _line(console, self._heading(), "bold")
        _line(console, self._rates())
        console.print(self._latency_table())
        if self.stages:
            console.print(self._stage_table(ascii_only=console.options.ascii_only))
        if self.trials:
            console.print(self._trial_table(ascii_only=console.options.ascii_only))
        for line in self.advice:
            _line(console, f"Advice: {line}.", "green")
        for line in self.notes:
            _line(console, f"Note: {line}.")

    def _heading(self) -> str:
        return (
            f"{self.loader}, num_workers={self.workers}, batches of {self.batch_samples:,.4g} "
            f"samples and {size(self.batch_bytes)}, {self.cores} cores"
        )

    def _rates(self) -> str:
        step = f" with a step of {duration(self.step)}" if self.step else ""
        return (
            f"{rate(self.samples_per_second)} samples/s, {rate(self.batches_per_second)} batches/s"
            f"{step}; the loop waited {self.waited:.0%} of its time"
        )

    def _latency_table(self) -> Table:
        table = _table("The loop waited for a batch")
        for name in ("first", "p50", "p90", "p99", "max", "batches"):
            table.add_column(name, justify="right")
        latency = self.latency
        table.add_row(
            duration(latency.first),
            *("-" if value is None else duration(value) for value in latency[1:5]),
            f"{latency.batches:,}",
        )
        return table

    def _stage_table(self, *, ascii_only: bool) -> Table:
        table = _table("Where a batch's time goes")
        table.add_column("stage", no_wrap=True)
        table.add_column("in", no_wrap=True)
        table.add_column("p50", justify="right", no_wrap=True)
        table.add_column("p90", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        longest = max(stage.p50 for stage in self.stages)
        for stage in self.stages:
            bar = _bar(stage.p50, longest, ascii_only=ascii_only)
            table.add_row(stage.name, stage.where, duration(stage.p50), duration(stage.p90), bar)
        if any(stage.name == "(hand over)" for stage in self.stages):
            table.caption = "(hand over): measured with one worker; this loader has none"
            table.caption_justify = "left"
        return table

    def _trial_table(self, *, ascii_only: bool) -> Table:
        table = _table(f"Numbers of workers, in {len(self.trials[0].rates)} alternating rounds")
        table.add_column("num_workers", justify="right")
        table.add_column("samples/s", justify="right")
        table.add_column("lowest to highest", justify="right")
        table.add_column("", no_wrap=True)
        most = max(trial.median for trial in self.trials)
        for trial in self.trials:
            table.add_row(
                str(trial.workers),
                rate(trial.median),
                f"{rate(min(trial.rates))} to {rate(max(trial.rates))}",
                _bar(trial.median, most, ascii_only=ascii_only),
            )
        return table


def duration(seconds: float) -> str:
    """Seconds as text, in the unit that fits."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e6:.3g} us"


def rate(value: float) -> str:
    """A rate as text with three significant digits, since more are noise."""
    return f"{float(f'{value:.3g}'):,.10g}"


def size(count: int) -> str:
    """Bytes as text, in the unit that fits."""
    for unit, name in ((1 << 20, "MB"), (1 << 10, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left")


def _bar(value: float, longest: float, *, ascii_only: bool) -> Text:
    if longest <= 0 or value <= 0:
        return Text("")
    length = max(1, round(value / longest * _BAR))
    return Text(("#" if ascii_only else "█") * length, style="cyan")


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)
