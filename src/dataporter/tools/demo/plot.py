"""The plot: the loss curves, and below them how often each sample was seen."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from dataporter.tools.demo.runs import DemoError, Run
from dataporter.tools.demo.steps import Step
from dataporter.tools.demo.verdict import coverage, redone

__all__ = ["check_output", "save_plot"]

# From Okabe and Ito's palette, which is distinguishable with any colour vision.
_SKY, _ORANGE, _VERMILION, _BLACK, _GREY = "#8CC8EC", "#E69F00", "#D55E00", "#1A1A1A", "#D9DDE1"
_LINES = ((_ORANGE, 3.0, "solid"), (_BLACK, 1.2, (0, (3, 2))))
_TEXT = 11
_HEADING: dict[str, Any] = {"fontsize": 14, "fontweight": "bold"}
# Width of the grid of samples relative to its height.
_GRID_ASPECT = 2.9
_STEPS_AROUND = 13


def check_output(output: Path) -> None:
    """Raise before the work begins, not after it, if the plot cannot be saved.

    Raises:
        DemoError: the directory does not exist, or the image format is not supported.
    """
    if not output.absolute().parent.is_dir():
        raise DemoError(
            f"--output {output}: the directory {output.parent} does not exist; create it"
        )
    formats = FigureCanvasBase.get_supported_filetypes()
    if output.is_dir() or output.suffix.lstrip(".").lower() not in formats:
        raise DemoError(f"--output {output}: expected a file name that ends in .png, .svg or .pdf")


def save_plot(output: Path, alone: Run, resumed: Sequence[Run], plain: Run, length: int) -> None:
    """Draw the runs that should be one curve, and how often each loader delivered each sample.

    Args:
        output: the image file.
        alone: the uninterrupted run.
        resumed: the runs that were killed and should equal it.
        plain: the run that was killed and used torch's DataLoader.
        length: number of samples.
    """
    figure = Figure(figsize=(13, 8.2), layout="constrained")
    losses, samples = figure.subfigures(
        2, 1, squeeze=False, height_ratios=(1.25, 1), hspace=0.04
    ).flat
    _draw_losses(losses, alone, resumed)
    _draw_samples(samples, resumed[0], plain, length)
    figure.savefig(output, dpi=120)


def _draw_losses(figure: SubFigure, alone: Run, resumed: Sequence[Run]) -> None:
    figure.suptitle("Killed mid-epoch and resumed", **_HEADING)
    whole, close = figure.subplots(1, 2, width_ratios=(1.7, 1))
    whole.set_title(f"loss of every step, {1 + len(resumed)} training runs", fontsize=_TEXT)
    _draw_loss(whole, alone.steps, 0, "uninterrupted", color=_SKY, linewidth=7)
    # The widest is drawn first, so that all are visible where they coincide.
    for run, (color, linewidth, style) in zip(resumed, _LINES):
        label = f"killed and resumed, {run.scenario.name}"
        _draw_loss(whole, run.steps, 0, label, color=color, linewidth=linewidth, linestyle=style)
    for run in resumed:
        whole.axvline(len(run.first) - 1, color=_VERMILION, linewidth=1.5)
    whole.set_xlim(-1, len(alone.steps))
    whole.set_ylim(bottom=0)
    _write_beside(whole, len(resumed[0].first) - 1, "SIGKILL", color=_VERMILION, top=False)
    whole.legend(loc="upper right", frameon=False, fontsize=_TEXT)
    whole.set_ylabel("loss")

    run = resumed[0]
    killed_at = len(run.first) - 1
    again = redone(run.first, run.kept, run.resumed)
    close.set_title(
        f"around the kill: {again.steps} steps redone, {again.same} of them equal",
        fontsize=_TEXT,
    )
    close.axvspan(run.kept - 0.5, killed_at, color=_GREY, alpha=0.6, linewidth=0)
    from_step = max(0, run.kept - _STEPS_AROUND)
    before = run.first[from_step:]
    after = run.resumed[: killed_at + _STEPS_AROUND - run.kept]
    marked = {"marker": "o", "linestyle": "solid"}
    _draw_loss(close, before, from_step, "process 1", color=_SKY, linewidth=7, **marked)
    _draw_loss(
        close,
        after,
        run.kept,
        "process 2",
        color=_BLACK,
        linewidth=1.2,
        markersize=4,
        **marked,
    )
    close.axvline(killed_at, color=_VERMILION, linewidth=1.5)
    _write_beside(close, killed_at, "SIGKILL", color=_VERMILION)
    close.axvline(run.kept - 0.5, color=_BLACK, linewidth=1, linestyle="dotted")
    _write_beside(close, run.kept - 0.5, "checkpoint", color=_BLACK, left=True)
    close.margins(y=0.2)
    close.legend(loc="lower left", frameon=False, fontsize=_TEXT)
    for axes in (whole, close):
        axes.set_xlabel("training step")
        axes.spines[["top", "right"]].set_visible(False)


def _draw_loss(axes: Axes, steps: Sequence[Step], start: int, label: str, **style: Any) -> None:
    losses = [float.fromhex(step.loss) for step in steps]
    axes.plot(range(start, start + len(losses)), losses, label=label, **style)


def _write_beside(
    axes: Axes, x: float, text: str, *, color: str, left: bool = False, top: bool = True
) -> None:
    axes.annotate(
        text,
        (x, 1 if top else 0),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, -4 if top else 4),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top" if top else "bottom",
        color=color,
        fontsize=_TEXT,
        fontweight="bold",
    )


def _draw_samples(figure: SubFigure, resumed: Run, plain: Run, length: int) -> None:
    figure.suptitle("How often each sample was seen in the epoch of the kill", **_HEADING)
    colors = ListedColormap((_VERMILION, _GREY, _ORANGE))
    for axes, run, name in zip(
        figure.subplots(1, 2), (resumed, plain), ("ResumableDataLoader", "plain DataLoader")
    ):
        seen = coverage(run.steps, run.kill_epoch, length)
        columns = ceil((length * _GRID_ASPECT) ** 0.5)
        grid = np.full(ceil(length / columns) * columns, np.nan)
        grid[:length] = np.minimum(seen.counts, 2)
        axes.pcolormesh(
            grid.reshape(-1, columns),
            cmap=colors,
            vmin=0,
            vmax=2,
            edgecolors="white",
            linewidth=0.5,
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_axis_off()
        axes.set_title(
            f"{name}: {seen.repeated} repeated, {seen.never_seen} never seen",
            fontsize=_TEXT + 1,
            color=_BLACK if seen.is_whole else _VERMILION,
        )
    figure.legend(
        handles=[
            Patch(color=_GREY, label=f"one of {length} samples, seen once"),
            Patch(color=_ORANGE, label="seen twice or more"),
            Patch(color=_VERMILION, label="never seen"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=_TEXT,
    )
