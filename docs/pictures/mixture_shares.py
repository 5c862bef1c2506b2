"""Draws the shares of a mixture's sources over the steps of a run, with changes in its middle.

python docs/pictures/mixture_shares.py    # writes mixture_shares.svg beside it
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

from dataporter import LinearWeights, Mixture, ResumableDataLoader

PICTURE = Path(__file__).with_suffix(".svg")

STEPS, BATCH_SIZE, WINDOW = 600, 32, 8
RAMP, CHANGE = 240, 360  # steps
SOURCES = {"web": range(100_000), "code": range(20_000), "books": range(2_000)}
START, END = {"web": 0.8, "code": 0.2}, {"web": 0.45, "code": 0.55}
LATER = {"web": 0.3, "code": 0.5, "books": 0.2}

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 52, 76, 34, 44
COLOURS = {"web": "#2f6fde", "code": "#d9772b", "books": "#2a9d63"}
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .card { fill: #fff } .grid { stroke: #ddd } .mark { stroke: #888; stroke-dasharray: 4 3 }
  .wanted { fill: none; stroke-width: 1; stroke-dasharray: 2 2 }
  .found { fill: none; stroke-width: 2 }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .card { fill: #16181d } .grid { stroke: #333 } .mark { stroke: #999 }
  }
"""


def run() -> list[Counter[str]]:
    """For each step, how many samples each source gave."""
    stopping = STEPS * BATCH_SIZE
    two = {name: SOURCES[name] for name in START}
    ramp = LinearWeights([(0, START), (RAMP * BATCH_SIZE, END)])
    loader = loader_of(Mixture(two, ramp, stopping=stopping))
    counts = [Counter(name for name, _ in loader.samples_at(0, step)) for step in range(CHANGE)]
    loader.seek(epoch=0, step=CHANGE)
    resumed = loader_of(Mixture(SOURCES, LATER, stopping=stopping))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says what has changed
        resumed.load_state_dict(loader.state_dict())
    for step in range(CHANGE, STEPS):
        counts.append(Counter(name for name, _ in resumed.samples_at(0, step)))
    return counts


def loader_of(mixture: Mixture) -> ResumableDataLoader[object]:
    """A loader of either part of the run."""
    return ResumableDataLoader(mixture, BATCH_SIZE, shuffle=True, seed=1)


def x_of(step: float) -> float:
    """Where a step lies."""
    return LEFT + step / STEPS * (WIDTH - LEFT - RIGHT)


def y_of(share: float) -> float:
    """Where a share lies."""
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def polyline(kind: str, name: str, points: list[tuple[float, float]]) -> str:
    """The line of a source through steps and shares."""
    shown = " ".join(f"{x_of(step):.1f},{y_of(share):.1f}" for step, share in points)
    return f'<polyline class="{kind}" stroke="{COLOURS[name]}" points="{shown}"/>'


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """Words at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def picture() -> str:
    """The picture, as SVG."""
    counts = run()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Shares of a mixture's sources over the steps of a run</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
    ]
    for percent in range(0, 101, 20):
        y = y_of(percent / 100)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{percent}%", "end"))
    for step in range(0, STEPS + 1, 120):
        parts.append(text(x_of(step), HEIGHT - BOTTOM + 18, str(step)))
    parts.append(text(x_of(STEPS / 2), HEIGHT - 8, f"step, in batches of {BATCH_SIZE}"))
    for step in (RAMP, CHANGE):
        parts.append(f'<path class="mark" d="M{x_of(step):.1f} {TOP - 6}V{HEIGHT - BOTTOM}"/>')
    parts.append(text(x_of(RAMP) - 5, TOP - 10, "the ramp ends", "end"))
    parts.append(text(x_of(CHANGE), TOP - 10, "resumed with books", "start"))
    for name in SOURCES:
        if name in START:
            wanted = [(0, START[name]), (RAMP, END[name]), (CHANGE, END[name])]
            parts.append(polyline("wanted", name, wanted))
        parts.append(polyline("wanted", name, [(CHANGE, LATER[name]), (STEPS, LATER[name])]))
        found = []
        for begin in range(0 if name in START else CHANGE, STEPS, WINDOW):
            count = sum(each[name] for each in counts[begin : begin + WINDOW])
            found.append((begin + WINDOW / 2, count / (WINDOW * BATCH_SIZE)))
        parts.append(polyline("found", name, found))
        parts.append(text(WIDTH - RIGHT + 8, y_of(LATER[name]) + 4, name, "start"))
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture())
