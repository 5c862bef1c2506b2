"""The page: a report as one self-contained HTML file, with its plots as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataporter.tools.verification.report import Case, VerifyReport

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --good: #1a7f37; --bad: #cf222e; --none: #9a6700;
  --line: #8886; --dim: #8883; --ours: #0969da; --other: #8b949e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.exact { color: var(--good); } .differs { color: var(--bad); } .left { color: var(--none); }
.verdict { font-size: 1.2rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; } td, th { border: 1px solid var(--line); padding: .3rem .6rem;
  text-align: left; font-weight: normal; } th { font-weight: 600; } td.cell { text-align: center; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
.why { border-left: 4px solid var(--bad); padding-left: 1rem; }
svg { display: block; max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif;
  fill: currentColor; }
"""
_MARKS = {
    "exact": "✓",
    "not exact": "✗",
    "failed": "✗ raised",
    "refused": "refused",
    "not run": "not run",
}
_CLASSES = {
    "exact": "exact",
    "not exact": "differs",
    "failed": "differs",
    "refused": "left",
    "not run": "left",
}
_VERDICTS = {"exact": "exact", "not exact": "differs", "not proven": "left"}
_WIDTH, _LABEL, _ROW = 900, 330, 22


def page(report: VerifyReport) -> str:
    """The whole page."""
    facts = report.facts
    kind = str(facts.get("loader", "loader"))
    strategy = f", <code>{escape(str(facts['strategy']))}</code>" if facts.get("strategy") else ""
    verdict = _VERDICTS[report.verdict]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Exact resume: {escape(report.subject)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>Does <code>{escape(report.subject)}</code> resume exactly?</h1>",
        f'<p class="verdict {verdict}">{escape(report.summary())}</p>',
        f"<p>{escape(kind)}{strategy} over a {escape(str(facts.get('dataset')))}; "
        f"{report.events} batches and ends of epochs per run, {report.seconds:.0f} s in total. "
        f"Random steps drawn with seed {report.seed}.</p>",
        *_reasons(report),
        "<h2>The matrix</h2>",
        "<p>Number of batches after the interruption that equal those of the uninterrupted run; "
        "with another batch size or number of ranks, number of samples.</p>",
        _matrix(report.cases),
        "<h2>The timelines</h2>",
        "<p>Each run from left to right: grey is before the interruption, green equals the "
        "uninterrupted run, red differs from it.</p>",
        _timelines(report),
        *_faults(report),
        "<h2>Measurements</h2>",
        "<ul>",
        *(f"<li>{escape(line)}</li>" for line in report.measures.sentences()),
        "</ul>",
        _resume_times(report),
        _rates(report),
        *_notes(report),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _reasons(report: VerifyReport) -> list[str]:
    if not report.diagnoses:
        return []
    found = ["<h2>Why</h2>"]
    for diagnosis in report.diagnoses:
        found.append(
            f'<div class="why"><p><strong>{escape(diagnosis.cause)}</strong></p>'
            f"<p>{escape(diagnosis.because)}</p><p>What to do: {escape(diagnosis.remedy)}</p></div>"
        )
    return found


def _matrix(cases: Sequence[Case]) -> str:
    settings = list(dict.fromkeys(case.setting for case in cases))
    names = list(dict.fromkeys(case.name for case in cases))
    held = {(case.setting, case.name): case for case in cases}
    head = "".join(f'<th scope="col">{escape(setting)}</th>' for setting in settings)
    rows = []
    for name in names:
        cells = "".join(_cell(held.get((setting, name))) for setting in settings)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table><thead><tr><th>interrupted</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(case: Case | None) -> str:
    if case is None:
        return '<td class="cell"></td>'
    comparison = case.comparison
    count = ""
    if comparison is not None:
        equal = comparison.batches - comparison.differing
        count = f" {equal} of {comparison.batches}"
    title = "" if case.verdict == "exact" else f' title="{escape(case.fault)}"'
    mark = _MARKS[case.verdict]
    return f'<td class="cell {_CLASSES[case.verdict]}"{title}>{mark}{count}</td>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}" '
        f'role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, fill: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.0):.1f}" height="{_ROW - 8}" '
        f'style="fill:var(--{fill})">{inner}</rect>'
    )


def _timelines(report: VerifyReport) -> str:
    # With another batch size or number of ranks the batches differ, so this axis does not fit; nor
    # does it fit runs that jumped to the end of the epoch first.
    cases = [
        case
        for case in report.cases
        if case.comparison is not None and not case.by_sample and not case.begun_at
    ]
    total = max(1, report.events)
    scale = (_WIDTH - _LABEL - 10) / total
    parts = []
    for number, case in enumerate(cases):
        y = number * _ROW + 4
        parts.append(_text(_LABEL - 8, y + 11, f"{case.setting}, {case.name}", "end"))
        start = 0 if case.whole else case.after
        parts.append(_bar(_LABEL, y, start * scale, "dim"))
        first = case.comparison.first if case.comparison is not None else None
        delivered = case.comparison.batches if case.comparison is not None else 0
        if case.verdict == "exact":
            parts.append(_bar(_LABEL + start * scale, y, (total - start) * scale, "good"))
            continue
        equal = first.batch if first is not None else delivered
        parts.append(_bar(_LABEL + start * scale, y, equal * scale, "good"))
        rest = total - start - equal
        fault = case.fault
        parts.append(_bar(_LABEL + (start + equal) * scale, y, rest * scale, "bad", fault))
    if report.epoch_batches is not None:
        x = _LABEL + (report.epoch_batches + 0.5) * scale
        bottom = len(cases) * _ROW + 4
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" '
            'style="stroke:currentColor;stroke-dasharray:3 3"/>'
        )
        parts.append(_text(x, bottom + 12, "end of the epoch", "middle"))
    label = "a timeline of each case, and where it starts to differ"
    return f'<div class="wide">{_svg(len(cases) * _ROW + 22, label, parts)}</div>'


def _faults(report: VerifyReport) -> list[str]:
    cases = [*report.faults, *report.refused]
    if not cases:
        return []
    rows = "".join(
        f"<tr><td>{escape(case.setting)}</td><td>{escape(case.name)}</td>"
        f"<td><code>{escape(case.fault)}</code></td></tr>"
        for case in cases
    )
    return [
        "<h2>The first difference of each case, or why it was refused</h2>",
        '<div class="wide"><table><thead><tr><th>resumed with</th><th>interrupted</th>'
        f"<th>first difference</th></tr></thead><tbody>{rows}</tbody></table></div>",
    ]


def _bars(title: str, label: str, bars: Sequence[tuple[str, float, str, str]], unit: str) -> str:
    if not bars:
        return ""
    scale = (_WIDTH - _LABEL - 110) / max(value for _, value, _, _ in bars)
    parts = []
    for number, (name, value, fill, shown) in enumerate(bars):
        y = number * _ROW + 4
        parts.append(_text(_LABEL - 8, y + 11, name, "end"))
        parts.append(_bar(_LABEL, y, value * scale, fill))
        parts.append(_text(_LABEL + value * scale + 6, y + 11, f"{shown} {unit}"))
    drawn = _svg(len(bars) * _ROW + 8, label, parts)
    return f'<h2>{escape(title)}</h2><div class="wide">{drawn}</div>'


def _resume_times(report: VerifyReport) -> str:
    bars = [
        (f"{case.setting}, {case.name}", 1e3 * case.resume_seconds, "ours", "")
        for case in report.cases
        if case.resume_seconds is not None and case.after and not case.whole
    ]
    shown = [(name, value, fill, f"{value:.3g}") for name, value, fill, _ in bars]
    label = "milliseconds from load_state_dict to the first batch, by case"
    return _bars("From load_state_dict to the first batch", label, shown, "ms")


def _rates(report: VerifyReport) -> str:
    bars = []
    for rate in report.measures.throughput:
        named = str(report.facts.get("loader"))
        if rate.loader is not None:
            bars.append((f"{rate.setting}, {named}", rate.loader, "ours", f"{rate.loader:,.0f}"))
        if rate.plain is not None:
            name = f"{rate.setting}, torch's DataLoader"
            bars.append((name, rate.plain, "other", f"{rate.plain:,.0f}"))
    return _bars("Batches per second", "batches per second of each loader", bars, "per second")


def _notes(report: VerifyReport) -> list[str]:
    found = []
    for title, texts in (("Not covered", report.notes), ("Warnings", report.warnings)):
        if texts:
            items = "".join(f"<li>{escape(text)}</li>" for text in texts)
            found.append(f"<h2>{title}</h2><ul>{items}</ul>")
    return found
