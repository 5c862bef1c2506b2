"""Mixtures: a training on several texts is killed twice, and resumes with another mixture."""

from __future__ import annotations

import json
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataporter.tools.demo.mixture_training import CHECKPOINT_EVERY, CONTEXT, loader_of
from dataporter.tools.demo.runs import DemoError
from dataporter.tools.demo.steps import Step
from dataporter.tools.demo.training import CHECKPOINT
from dataporter.tools.demo.worlds import World, trained_steps

__all__ = [
    "LIVES",
    "STEPS",
    "Life",
    "Lived",
    "MixtureRun",
    "Proof",
    "Source",
    "own_order",
    "prove",
    "run_mixtures",
    "texts_in",
]

STEPS = 120
_SECONDS_BETWEEN_LOOKS = 0.002
# Of each text as many bytes, so that one of them comes more than once.
_SIZES = {"code": 400_000, "prose": 40_000, "headers": 200_000}


@dataclass(frozen=True, slots=True)
class Life:
    """One run of the training, to its kill or its end.

    Attributes:
        ranks: number of ranks.
        weights: of the mixture that it trains on.
        kill_after: step after which it is killed; None for the last, which ends by itself.
    """

    ranks: int
    weights: Mapping[str, float]
    kill_after: int | None


LIVES = (
    Life(1, {"code": 0.7, "prose": 0.3}, 23),
    Life(1, {"code": 0.7, "prose": 0.3}, 43),
    Life(2, {"code": 0.4, "prose": 0.2, "headers": 0.4}, None),
)


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of a life.

    Attributes:
        life: as it was planned.
        steps: each step that all ranks have logged, with an entry for each rank.
        kept: how many of them the last checkpoint includes.
        said: the warnings with which it resumed.
    """

    life: Life
    steps: tuple[tuple[Step, ...], ...]
    kept: int
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MixtureRun:
    """The lives of a training, and the same training uninterrupted on its first mixture."""

    lives: tuple[Lived, ...]
    alone: tuple[Step, ...]

    @property
    def kept(self) -> tuple[tuple[Step, ...], ...]:
        """The steps that trained the final model."""
        return tuple(step for lived in self.lives for step in lived.steps[: lived.kept])


def texts_in(directory: Path) -> tuple[Path, dict[str, NDArray[np.uint8]]]:
    """Write texts that every machine has for all training processes; returns them as well.

    Raises:
        DemoError: there are no such texts.
    """
    library, packages = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    places = {
        "code": (library, ["*.py"]),
        "prose": (packages, ["*.dist-info/**/LICENSE*", "*.dist-info/METADATA"]),
        "headers": (packages, ["torch/include/c10/**/*.h"]),
    }
    texts = {
        name: _rows(Path(folder), patterns, _SIZES[name])
        for name, (folder, patterns) in places.items()
    }
    for name, rows in texts.items():
        if len(rows) < STEPS:
            folder, patterns = places[name]
            raise DemoError(f"the demo needs more text than {', '.join(patterns)} in {folder} has")
    path = directory / "texts.npz"
    # By keyword, as NumPy wants the names of arrays.
    arrays: dict[str, Any] = {**texts}
    np.savez(path, **arrays)
    return path, texts


def _rows(folder: Path, patterns: Sequence[str], size: int) -> NDArray[np.uint8]:
    text = bytearray()
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        if len(text) >= size:
            break
        text += file.read_bytes()
    rows = len(text[:size]) // (CONTEXT + 1)
    return np.frombuffer(bytes(text), np.uint8, rows * (CONTEXT + 1)).reshape(rows, CONTEXT + 1)


def run_mixtures(
    lives: Sequence[Life], directory: Path, data: Path, on_progress: Callable[[int], None]
) -> MixtureRun:
    """Live one life after the other, and meanwhile train uninterrupted on the first mixture.

    Args:
        lives: to be lived.
        directory: for logs and checkpoints.
        data: the texts, as the training script expects them.
        on_progress: receives the number of steps that all runs have done together.

    Raises:
        DemoError: a rank failed, hung, or ended before it could be killed.
    """
    with ExitStack() as stack:
        world = _world("uninterrupted", lives[0], directory / "alone", "", data)
        alone = stack.enter_context(world)
        lived: list[Lived] = []
        home = directory / "lives"
        for number, life in enumerate(lives, start=1):
            before = sum(each.kept for each in lived)
            with _world(f"run {number}", life, home, f"run-{number}", data) as world:
                while world.is_running():
                    done = world.steps_done()
                    if life.kill_after is not None and _is_moment(before + done, life.kill_after):
                        world.kill()
                    alone.is_running()
                    on_progress(alone.steps_done() + before + done)
                    time.sleep(_SECONDS_BETWEEN_LOOKS)
            steps = world.steps()
            if life.kill_after is None:
                kept = len(steps)
            elif world.was_killed:
                kept = trained_steps(home / CHECKPOINT) - before
            else:
                raise DemoError(f"run {number} ended before it could be killed")
            said = home / f"run-{number}" / "rank-0.said.json"
            lines = json.loads(said.read_text()) if said.exists() else []
            lived.append(Lived(life, steps, kept, tuple(lines)))
        while alone.is_running():
            on_progress(alone.steps_done() + sum(each.kept for each in lived))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return MixtureRun(tuple(lived), tuple(step for (step,) in alone.steps()))


def _world(name: str, life: Life, home: Path, logs: str, data: Path) -> World:
    folder = home / logs
    folder.mkdir(parents=True)

    def command(rank: int, log: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "dataporter.tools.demo.mixture_training", str(home)),
            *(f"--data={data}", f"--log={log}", f"--weights={json.dumps(life.weights)}"),
            *(f"--rank={rank}", f"--world-size={life.ranks}", f"--steps={STEPS}"),
        ]

    return World(name, life.ranks, folder, command)


def _is_moment(done: int, wanted: int) -> bool:
    """Whether a kill now would be late enough, and well between two checkpoints."""
    return done >= wanted and 3 <= done % CHECKPOINT_EVERY <= 6


@dataclass(frozen=True, slots=True)
class Source:
    """What the training has had of a source.

    Attributes:
        name: of the source.
        before, after: number of its samples before the mixture changed, and after.
        passes: over it.
        in_order: number of its samples that were the next ones of its order.
    """

    name: str
    before: int
    after: int
    passes: float
    in_order: int


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of an audit.

    Attributes:
        sources: each source that had a weight.
        losses: steps on the first mixture, also those that a kill has undone: how many have the
            samples, bytes and loss of the uninterrupted run, and how many there are.
        change: number of steps before the mixture changed.
        faults: everything that is wrong.
    """

    sources: tuple[Source, ...]
    losses: tuple[int, int]
    change: int
    faults: tuple[str, ...]


def prove(run: MixtureRun, texts: Mapping[str, NDArray[np.uint8]]) -> Proof:
    """Audit the samples and the losses of a run."""
    faults: list[str] = []
    first = run.lives[0].life.weights
    change = sum(lived.kept for lived in run.lives if lived.life.weights == first)
    same = compared = begin = 0
    for lived in run.lives:
        if lived.life.weights == first:
            for found, undisturbed in zip(lived.steps, run.alone[begin:]):
                compared += 1
                same += found == (undisturbed,)
        begin += lived.kept
    if same != compared:
        faults.append(f"{compared - same} steps on the first mixture are not as without a kill")
    kept = run.kept
    if [step[0].step for step in kept] != list(range(STEPS)):
        faults.append("the steps are not those of one epoch")
    sources, begins = [], [0, *accumulate(map(len, texts.values()))]
    for (name, rows), offset in zip(texts.items(), begins):
        parts = [
            sorted(
                sample
                for rank in step
                for sample in rank.samples
                if offset <= sample < offset + len(rows)
            )
            for step in kept
        ]
        expected = own_order(texts, name, sum(map(len, parts)))
        in_order = taken = 0
        for part in parts:
            following = expected[taken : taken + len(part)]
            taken += len(part)
            in_order += len(part) if part == sorted(following) else 0
        if in_order != taken:
            faults.append(f"{name}: {taken - in_order} of {taken} samples are not the next ones")
        before = sum(map(len, parts[:change]))
        sources.append(Source(name, before, taken - before, taken / len(rows), in_order))
    return Proof(tuple(sources), (same, compared), change, tuple(faults))


def own_order(texts: Mapping[str, Any], name: str, count: int) -> list[int]:
    """The first samples of a source's own order, as a mixture of it alone delivers them."""
    if not count:
        return []
    loader = loader_of(texts, {name: 1}, count, batch_size=count)
    offset = dict(zip(texts, accumulate(map(len, texts.values()), initial=0)))[name]
    return [offset + index for _, index in loader.samples_at(0, 0)]
