"""`ConversionPlan`: the suggestion for each path, as rules, as a table, and as JSON."""

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
    "certain": "all samples were read, or the dtype or maximum= excludes other values",
    "guess": "only some samples were read; a value that does not fit raises an error",
    "rounded": "values change, within the tolerance",
}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """The values seen at a path, and the narrowest form that holds them.

    Attributes:
        path: as in the rules of a converter.
        dtypes: the present dtype; several if it changes.
        low, high: the smallest and largest finite numbers seen; None if there were none, or the
            numbers are complex.
        values: how many numbers were seen.
        form: name of the suggested dtype or form; None if none is narrower.
        certainty: ``"certain"``: all samples were read, or the dtype or ``maximum`` excludes other
            values; ``"guess"``: only some samples were read, or samples are random; None without
            a form.
        rounded: whether values change, within the given tolerance.
        headroom: how many times larger than those seen, or than the given ``maximum``, the numbers
            could be; None if that has no meaning.
        before, after: average bytes of a sample.
        notes: further remarks.
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
        """The certainty, with a remark if values are rounded."""
        return ", ".join([*filter(None, [self.certainty]), *["rounded"] * self.rounded])


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """The suggestions of :func:`~dataporter.suggest_conversions`; ``print`` shows a table.

    Attributes:
        suggestions: one for each path that has numbers.
        samples: how many were read.
        length: samples in the dataset, or None if it has no length.
        tolerance: relative, for floats; 0 allows no rounding.
        notes: remarks about the plan as a whole.
    """

    suggestions: tuple[Suggestion, ...]
    samples: int
    length: int | None
    tolerance: float
    notes: tuple[str, ...] = ()

    @property
    def before(self) -> float:
        """Average bytes of a sample before conversion."""
        return sum(suggestion.before for suggestion in self.suggestions)

    @property
    def after(self) -> float:
        """Average bytes of a sample after conversion."""
        return sum(suggestion.after for suggestion in self.suggestions)

    @property
    def saved(self) -> float:
        """The share of bytes saved, 0 to 1."""
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
        """A converter with these rules, which raises if a float is rounded beyond the tolerance.

        Args:
            on_loss, strict: as in :class:`~dataporter.KeyBasedDtypeConverter`.
        """
        return KeyBasedDtypeConverter(
            self.as_rules(), on_loss=on_loss, rtol=self.tolerance, strict=strict
        )

    def without_guesses(self) -> ConversionPlan:
        """The plan without its guesses, which become notes."""
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
        # A fixed width, since the text may be read in another terminal.
        console = Console(file=text, width=_WIDTH, color_system=None, highlight=False)
        share = f"{self.samples:,} samples" if self.length is None else _share(self)
        console.print(f"Suggested conversions, from {share}:")
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
    yield "bytes, then: average of a sample, now and after conversion"
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
