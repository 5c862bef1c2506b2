"""`ConversionPlan`: what an advisor suggests for each path, as rules, as a table, and as JSON."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataporter.convert.casting import OnLoss
from dataporter.convert.converter import KeyBasedDtypeConverter

__all__ = ["ConversionPlan", "Suggestion"]

Certainty = Literal["certain", "guess"]

_WIDTH = 100
_LEGEND = {
    "certain": "all samples were looked at, or the dtype, or maximum=, leaves no other values",
    "guess": "by a sample; a value that does not fit will raise, and is never changed silently",
    "rounded": "values change, within the tolerance",
}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What was seen at a path, and the narrowest form that holds it.

    Attributes:
        path: as the rules of a converter name it.
        dtypes: what is there now; several where it changes.
        low, high: the smallest and the largest finite number that was seen; None where there was
            none, or the numbers are complex.
        values: how many numbers were seen.
        form: name of the suggested dtype or form; None where nothing narrower is known to do.
        certainty: ``"certain"``: all samples were looked at, or the dtype or ``maximum`` leaves no
            other values; ``"guess"``: only a sample was looked at, or samples are random; None
            without a form.
        rounded: whether values change, within the tolerance that was given.
        headroom: how many times larger the numbers could be than what was seen, or than the
            ``maximum`` given for them; None where that says nothing.
        before, after: bytes of a sample, on average.
        notes: what else there is to say.
    """

    path: str
    dtypes: tuple[str, ...]
    low: int | float | None
    high: int | float | None
    values: int
    form: str | None
    certainty: Certainty | None
    rounded: bool
    headroom: float | None
    before: float
    after: float
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The certainty in words, and whether it is rounded."""
        return ", ".join([*filter(None, [self.certainty]), *["rounded"] * self.rounded])


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What :func:`~dataporter.suggest_conversions` suggests; ``print`` shows it as a table.

    Attributes:
        suggestions: one for each path at which there are numbers.
        samples: how many were looked at.
        length: samples in the dataset; None where it has no length.
        tolerance: relative, for floats; 0 allows no rounding.
        notes: what there is to say about the whole.
    """

    suggestions: tuple[Suggestion, ...]
    samples: int
    length: int | None
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> float:
        """Bytes of a sample as it is, on average."""
        return sum(suggestion.before for suggestion in self.suggestions)

    @property
    def after(self) -> float:
        """Bytes of a sample as it would be, on average."""
        return sum(suggestion.after for suggestion in self.suggestions)

    @property
    def saved(self) -> float:
        """The share of the bytes that is saved, 0 to 1."""
        return 1 - self.after / self.before if self.before else 0.0

    def as_rules(self) -> dict[str, str]:
        """Path → dtype, as :class:`~dataporter.KeyBasedDtypeConverter` takes it."""
        return {
            suggestion.path: suggestion.form
            for suggestion in self.suggestions
            if suggestion.form is not None
        }

    def converter(
        self, *, on_loss: OnLoss = "error", strict: bool = False
    ) -> KeyBasedDtypeConverter:
        """A converter by these rules, that raises where a float is rounded beyond the tolerance.

        Args:
            on_loss, strict: as in :class:`~dataporter.KeyBasedDtypeConverter`.
        """
        return KeyBasedDtypeConverter(
            self.as_rules(), on_loss=on_loss, rtol=self.tolerance, strict=strict
        )

    def without_guesses(self) -> ConversionPlan:
        """The plan with what is certain alone; guesses become notes."""
        return replace(self, suggestions=tuple(map(_unguessed, self.suggestions)))

    def to_dict(self) -> dict[str, Any]:
        """The plan in JSON types."""
        return {
            "samples": self.samples,
            "length": self.length,
            "tolerance": self.tolerance,
            "before": self.before,
            "after": self.after,
            "saved": self.saved,
            "rules": self.as_rules(),
            "suggestions": [_as_json(suggestion) for suggestion in self.suggestions],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        text = io.StringIO()
        # A width of its own, since what is printed here may be read elsewhere.
        console = Console(file=text, width=_WIDTH, color_system=None, highlight=False)
        share = f"{self.samples:,} samples" if self.length is None else _share(self)
        console.print(f"Suggested conversions, by {share}:")
        if self.suggestions:
            console.print(_table(self))
        for line in _lines(self):
            console.print(line, markup=False, soft_wrap=True)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def _unguessed(suggestion: Suggestion) -> Suggestion:
    if suggestion.certainty != "guess":
        return suggestion
    return replace(
        suggestion,
        form=None,
        certainty=None,
        rounded=False,
        headroom=None,
        after=suggestion.before,
        notes=(f"{suggestion.form} would be a guess", *suggestion.notes),
    )


def _as_json(suggestion: Suggestion) -> dict[str, Any]:
    plain = asdict(suggestion)
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()
    }


def _share(plan: ConversionPlan) -> str:
    if plan.samples == plan.length:
        return f"all {plan.samples:,} samples"
    return f"{plan.samples:,} of {plan.length:,} samples"


def _table(plan: ConversionPlan) -> Table:
    table = Table(box=box.MARKDOWN, pad_edge=True, show_footer=True)
    table.add_column("path", "all", overflow="fold", ratio=1, min_width=8)
    for name in ("now", "seen", "suggested", "kind"):
        table.add_column(name, overflow="fold")
    for name, sum_of in (("bytes", plan.before), ("then", plan.after)):
        table.add_column(name, _number_of(sum_of), justify="right", overflow="fold")
    table.add_column("headroom", f"{plan.saved:.1%} saved", justify="right", overflow="fold")
    for suggestion in plan.suggestions:
        cells = (
            repr(suggestion.path),
            ", ".join(suggestion.dtypes),
            _range(suggestion),
            suggestion.form or "",
            suggestion.kind,
            _number_of(suggestion.before),
            _number_of(suggestion.after),
            "" if suggestion.headroom is None else f"{_factor(suggestion.headroom)}x",
        )
        table.add_row(*map(escape, cells))
    return table


def _lines(plan: ConversionPlan) -> Iterator[str]:
    for suggestion in plan.suggestions:
        for note in suggestion.notes:
            yield f"{suggestion.path!r}: {note}"
    yield from plan.notes
    rules = plan.as_rules()
    if not rules:
        yield "Nothing can be narrowed."
        return
    kinds = {suggestion.path: suggestion.kind for suggestion in plan.suggestions}
    for word, meaning in _LEGEND.items():
        if any(word in kinds[path] for path in rules):
            yield f"{word}: {meaning}"
    yield "bytes, then: of a sample, on average"
    yield ""
    yield "KeyBasedDtypeConverter("
    yield "    {"
    for path, form in rules.items():
        yield f"        {path!r}: {form!r},  # {kinds[path]}"
    yield "    },"
    yield f"    rtol={plan.tolerance!r},"
    yield ")"


def _range(suggestion: Suggestion) -> str:
    if suggestion.low is None or suggestion.high is None:
        return ""
    if suggestion.low == suggestion.high:
        return _value(suggestion.low)
    return f"{_value(suggestion.low)} to {_value(suggestion.high)}"


def _value(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _factor(factor: float) -> str:
    return f"{factor:.1f}" if factor < 10 else f"{factor:,.0f}"


def _number_of(size: float) -> str:
    return f"{size:,.0f}" if size == int(size) or size >= 100 else f"{size:.1f}"
