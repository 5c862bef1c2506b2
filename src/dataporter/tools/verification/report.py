"""The report: every case and its verdict, as text, as JSON, and as one page of HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataporter.tools.verification.comparison import Comparison
from dataporter.tools.verification.page import page

__all__ = [
    "KILLED",
    "UNINTERRUPTED",
    "WORKER_KILLED",
    "Case",
    "Diagnosis",
    "Measures",
    "Throughput",
    "Verdict",
    "VerifyReport",
    "in_order",
    "time_shown",
]

# Names of cases; the others are those of interruptions.
UNINTERRUPTED = "uninterrupted"
KILLED = "SIGKILL"
WORKER_KILLED = "SIGKILL to a worker"

Verdict = Literal["exact", "not exact", "failed", "not run"]


@dataclass(frozen=True, slots=True)
class Case:
    """One interruption, or one uninterrupted run.

    Attributes:
        setting: of the loader that resumed, as the table shows it.
        name: where and how the run was interrupted.
        verdict: ``"failed"``: the loader raised; ``"not run"``: no time was left.
        after: number of batches and ends of passes before the interruption.
        comparison: with the uninterrupted run; None where there was nothing to compare.
        error: what the loader raised, or why the case was not run.
        resume_seconds: from ``load_state_dict`` to the first batch.
        saved_under: the setting in which the state was saved, if it is another one.
        whole: the run survived its interruption and was compared from its start.
        by_sample: samples were compared, since the batches differ.
    """

    setting: str
    name: str
    verdict: Verdict
    after: int = 0
    comparison: Comparison | None = None
    error: str | None = None
    resume_seconds: float | None = None
    saved_under: str | None = None
    whole: bool = False
    by_sample: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether it was run and is not exact."""
        return self.verdict in ("not exact", "failed")

    @property
    def fault(self) -> str:
        """The fault, in words."""
        if self.comparison is not None and self.comparison.first is not None:
            return str(self.comparison.first)
        return self.error or "no batch was delivered"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a loader is not exact, as far as experiments can show.

    Attributes:
        cause: a short name, such as ``"hash randomisation"``.
        because: what the experiments showed.
        remedy: how to fix it.
    """

    cause: str
    because: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause}: {self.because} {self.remedy}"


@dataclass(frozen=True, slots=True)
class Throughput:
    """Batches per second of a loader, and of torch's ``DataLoader`` on the same dataset."""

    setting: str
    loader: float
    plain: float | None


@dataclass(frozen=True, slots=True)
class Measures:
    """Sizes and times that were measured along the way.

    Attributes:
        state_bytes: size of the largest state as ``torch.save`` writes it; None: it has no state.
        state_seconds: the median time of a ``state_dict()``.
        resume_seconds: the median time from ``load_state_dict`` to the first batch.
        throughput: in batches per second.
    """

    state_bytes: int | None
    state_seconds: float | None
    resume_seconds: float | None
    throughput: tuple[Throughput, ...] = ()

    def sentences(self) -> list[str]:
        """The measurements, in a sentence each."""
        lines = []
        if self.state_bytes is not None and self.state_seconds is not None:
            lines.append(
                f"State: {self.state_bytes:,} bytes as torch.save writes it; state_dict() takes "
                f"{time_shown(self.state_seconds)}."
            )
        if self.resume_seconds is not None:
            lines.append(
                f"From load_state_dict to the first batch: {time_shown(self.resume_seconds)}."
            )
        for rate in self.throughput:
            plain = f"; torch's DataLoader {rate.plain:,.0f}" if rate.plain is not None else ""
            lines.append(f"Batches per second, {rate.setting}: {rate.loader:,.0f}{plain}.")
        return lines


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        subject: the function that was verified.
        facts: about the loader that it makes.
        cases: one for each interruption and setting.
        epoch_batches: number of batches in the first epoch; None: its end was not reached.
        events: number of batches and ends of passes in each run.
        measures: sizes, times and rates.
        diagnoses: why it is not exact; empty if it is, or if no cause was found.
        notes: what could not be varied or covered, and why.
        seed: of the random steps.
        seconds: duration of the verification.
        warnings: those of the loader.
    """

    subject: str
    facts: Mapping[str, Any]
    cases: tuple[Case, ...]
    epoch_batches: int | None
    events: int
    measures: Measures
    diagnoses: tuple[Diagnosis, ...] = ()
    notes: tuple[str, ...] = ()
    seed: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = field(default=())

    @property
    def exact(self) -> bool:
        """Whether every case that was run is exact, and at least one was run."""
        return not self.faults and self.not_run < len(self.cases)

    @property
    def not_run(self) -> int:
        """Number of cases that had no time left."""
        return sum(case.verdict == "not run" for case in self.cases)

    @property
    def faults(self) -> tuple[Case, ...]:
        """The cases that were run and are not exact."""
        return tuple(case for case in self.cases if case.is_fault)

    @property
    def first_fault(self) -> Case | None:
        """The first case that was run and is not exact."""
        return next(iter(self.faults), None)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        found = asdict(self)
        for case in found["cases"]:
            if case["comparison"] is not None:
                case["comparison"]["kinds"] = sorted(case["comparison"]["kinds"])
        found["exact"] = self.exact
        made: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return made

    def save_html(self, path: str | Path) -> None:
        """Write the report as one self-contained page."""
        Path(path).write_text(page(self), encoding="utf-8")

    def summary(self) -> str:
        """The verdict in one line."""
        run = len(self.cases) - self.not_run
        left = f"; {self.not_run} were not run for lack of time" if self.not_run else ""
        if self.exact:
            return f"Exact: all {run} cases match the uninterrupted run{left}."
        return (
            f"NOT exact: {len(self.faults)} of {run} cases differ from the uninterrupted run{left}."
        )

    def __str__(self) -> str:
        lines = [self.summary()]
        fault = self.first_fault
        if fault is not None:
            lines.append(f"First: {fault.setting}, {fault.name}: {fault.fault}")
        lines += [f"Why: {diagnosis}" for diagnosis in self.diagnoses]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)


# Names that are not here come after these and before the kills.
_NAMES = (
    *(UNINTERRUPTED, "start", "mid-epoch", "random step"),
    *("last step", "end of epoch", "second epoch"),
)
_KILLS = {KILLED: len(_NAMES) + 1, WORKER_KILLED: len(_NAMES) + 2}


def in_order(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases grouped by setting, in the order in which the settings were tried."""
    settings = list(dict.fromkeys(case.setting for case in cases))
    names = {name: number for number, name in enumerate(_NAMES)} | _KILLS
    return tuple(
        sorted(
            cases,
            key=lambda case: (
                settings.index(case.setting),
                names.get(case.name.partition(", as ")[0], len(_NAMES)),
            ),
        )
    )


def time_shown(seconds: float) -> str:
    """A time in the unit that fits."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
