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
    "REQUIRED",
    "UNINTERRUPTED",
    "WORKER_KILLED",
    "Case",
    "Conclusion",
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

Verdict = Literal["exact", "not exact", "failed", "refused", "not run"]
Conclusion = Literal["exact", "not proven", "not exact"]

# Interruptions without which nothing is proven, and how a sentence names them.
REQUIRED = {
    "mid-epoch": "an interruption in mid-epoch",
    "end of epoch": "an interruption at the end of the epoch",
    KILLED: "SIGKILL",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One interruption, or one uninterrupted run.

    Attributes:
        setting: of the loader that resumed, as the table shows it.
        name: where and how the run was interrupted.
        verdict: ``"failed"``: the loader raised; ``"refused"``: it said that it cannot resume this
            state, rather than deliver something else; ``"not run"``: no time was left.
        after: number of batches and ends of passes before the interruption.
        comparison: with the uninterrupted run; None where there was nothing to compare.
        error: what the loader raised, or why the case was not run.
        resume_seconds: from ``load_state_dict`` to the first batch.
        saved_under: the setting in which the state was saved, if it is another one.
        whole: the run survived its interruption and was compared from its start.
        by_sample: samples were compared, since the batches differ.
        begun_at: the step to which both runs jumped first, to reach the end of a long epoch.
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
    begun_at: int = 0

    @property
    def interruption(self) -> str:
        """Where it was interrupted, without what the run was compared with or began from."""
        return self.name.partition(", ")[0]

    @property
    def refusal(self) -> str:
        """The refusal, in the loader's words."""
        return f"Refused: {self.setting}, {self.name}: {self.error}"

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
    """Batches per second of a loader, and of torch's ``DataLoader`` on the same dataset.

    The start of workers does not count; None: an epoch is too short to leave it out.
    """

    setting: str
    loader: float | None
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
            plain = f"; torch's DataLoader {_rate(rate.plain)}" if rate.plain is not None else ""
            own = "not known, the epoch is too short" if rate.loader is None else _rate(rate.loader)
            lines.append(f"Batches per second, {rate.setting}: {own}{plain}.")
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
        steps: number of batches per run that was asked for; None: an epoch and part of the next.
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
    steps: int | None = None

    @property
    def verdict(self) -> Conclusion:
        """Exact only if no case differs and none of the interruptions that matter is missing."""
        if self.faults:
            return "not exact"
        return "not proven" if self.missing or self.refused else "exact"

    @property
    def exact(self) -> bool:
        """Whether no case differs, and at least an interruption in mid-epoch, one at the end of an
        epoch and a SIGKILL were run, and an interruption with each number of workers."""
        return self.verdict == "exact"

    @property
    def missing(self) -> tuple[str, ...]:
        """What was not run, although nothing is proven without it."""
        whole = [case for case in self.cases if not case.by_sample]
        run = [case for case in whole if case.verdict != "not run"]
        kinds = {case.interruption for case in run}
        lacking = [named for kind, named in REQUIRED.items() if kind not in kinds]
        interrupted = {case.setting for case in run if case.interruption != UNINTERRUPTED}
        settings = dict.fromkeys(case.setting for case in whole)
        without = [setting for setting in settings if setting not in interrupted]
        if len(lacking) < len(REQUIRED):
            lacking += [f"any interruption with {setting}" for setting in without]
        return tuple(lacking)

    @property
    def refused(self) -> tuple[Case, ...]:
        """The cases in which the loader refused to resume."""
        return tuple(case for case in self.cases if case.verdict == "refused")

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
        found |= {"exact": self.exact, "verdict": self.verdict, "missing": list(self.missing)}
        made: dict[str, Any] = json.loads(json.dumps(found, default=str))
        return made

    def save_html(self, path: str | Path) -> None:
        """Write the report as one self-contained page."""
        Path(path).write_text(page(self), encoding="utf-8")

    def summary(self) -> str:
        """The verdict in one line."""
        run = len(self.cases) - self.not_run
        left = f"; {self.not_run} were not run for lack of time" if self.not_run else ""
        if self.verdict == "exact":
            return f"Exact: all {run} cases match the uninterrupted run{left}."
        if self.verdict == "not exact":
            return (
                f"NOT exact: {len(self.faults)} of {run} cases differ from the uninterrupted "
                f"run{left}."
            )
        if self.refused:
            return (
                f"Not proven: the loader refuses to resume in {len(self.refused)} of {run} cases"
                f"{left}."
            )
        return (
            f"Not proven: {_listed(self.missing)} {'was' if len(self.missing) == 1 else 'were'} "
            f"not run. {self._remedy()}"
        )

    def _remedy(self) -> str:
        """What to write so that the missing cases are run."""
        if self.steps and not self.not_run:
            return "Take more batches: raise --steps (in Python: steps=), or leave it out."
        if self.not_run or not self.epoch_batches:
            return (
                f"Give it more time: --max-seconds {_rounded_up(3 * self.seconds)} (in Python: "
                "max_seconds=), or verify the loader on less data."
            )
        return "The epoch is too short: let the function make more batches."

    def __str__(self) -> str:
        lines = [self.summary()]
        fault = self.first_fault
        if fault is not None:
            lines.append(f"First: {fault.setting}, {fault.name}: {fault.fault}")
        lines += [case.refusal for case in self.refused[:1]]
        lines += [f"Why: {diagnosis}" for diagnosis in self.diagnoses]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)


# Names that are not here come after these and before the kills.
_NAMES = (
    *(UNINTERRUPTED, "start", "mid-epoch", "random step"),
    *("last step", "end of epoch", "second epoch"),
)
_KILLS = {KILLED: len(_NAMES) + 1, WORKER_KILLED: len(_NAMES) + 2}


def _rank(case: Case, names: Mapping[str, int]) -> int:
    # One whose state comes from another setting stands after those of its own.
    is_own = ", from " not in case.name
    return names.get(case.interruption, len(_NAMES)) if is_own else len(_NAMES)


def in_order(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases grouped by setting, in the order in which the settings were tried."""
    settings = list(dict.fromkeys(case.setting for case in cases))
    names = {name: number for number, name in enumerate(_NAMES)} | _KILLS
    return tuple(
        sorted(
            cases,
            key=lambda case: (
                settings.index(case.setting),
                _rank(case, names),
            ),
        )
    )


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _listed(texts: Sequence[str]) -> str:
    *most, last = texts
    return f"{', '.join(most)} and {last}" if most else last


def _rounded_up(seconds: float) -> int:
    return max(60, -(-int(seconds) // 30) * 30)


def time_shown(seconds: float) -> str:
    """A time in the unit that fits."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
