"""What this checkout costs beside another one: `python -m benchmarks.versions OTHER`.

OTHER is the folder of another checkout of DataPorter, such as a git worktree of an earlier commit.
The two take turns, a process each, and share the dependencies of this environment. Writes
`benchmarks/versions.md`, unless with `--quick`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from benchmarks.command import parser_of
from benchmarks.machine import describe
from benchmarks.tables import Goal, Table, markdown, show

HERE = Path(__file__).resolve().parents[1]
RESULTS = HERE / "benchmarks" / "versions.md"
ALLOWED = 1.05
BATCHES = 400
ROUNDS, QUICK_ROUNDS = 7, 2


class Rows(Dataset[Any]):
    """Samples that cost little to read."""

    def __init__(self, count: int) -> None:
        self.values = torch.rand(count, 64)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"values": self.values[index], "label": index}


class Ready(Dataset[Any]):
    """Batches that are there already, so that only handing them over takes time."""

    def __init__(self, floats: int) -> None:
        self.batch = torch.rand(floats)

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        return self.batch


class Stream(IterableDataset[Any]):
    """Samples of a stream that cost next to nothing."""

    def __iter__(self) -> Iterator[Any]:
        values = torch.rand(64)
        return ((values, number) for number in range(BATCHES * 64))


def seconds_of_passes(loader: Any, repeats: int) -> float:
    """The fastest of several passes, after one that starts the workers."""
    found = []
    for _ in range(repeats + 1):
        begin = perf_counter()
        for _ in loader:
            pass
        found.append(perf_counter() - begin)
    return min(found[1:])


def seconds_of_calls(call: Callable[[], object], count: int, repeats: int) -> float:
    """Per call, in the fastest of several runs."""
    found = []
    for _ in range(repeats):
        begin = perf_counter()
        for _ in range(count):
            call()
        found.append((perf_counter() - begin) / count)
    return min(found)


def measure_this(repeats: int) -> dict[str, float]:
    """Seconds by question, of the DataPorter that this process imports."""
    from dataporter import ResumableDataLoader

    torch.set_num_threads(1)
    columns = TensorDataset(torch.rand(BATCHES * 256, 64), torch.zeros(BATCHES * 256))
    rows = Rows(BATCHES * 64)
    shuffled: dict[str, Any] = {"shuffle": True, "seed": 1}
    two: dict[str, Any] = {"num_workers": 2, "persistent_workers": True}

    def passes(dataset: Any, batch_size: int | None, **arguments: Any) -> float:
        return seconds_of_passes(ResumableDataLoader(dataset, batch_size, **arguments), repeats)

    found = {
        "throughput: columns, no workers": passes(columns, 256, **shuffled),
        "throughput: columns, 2 workers": passes(columns, 256, **shuffled, **two),
        "throughput: batches of 4, no workers": passes(
            TensorDataset(torch.rand(BATCHES * 40, 1)), 4, **shuffled
        ),
        "throughput: rows, simple, no workers": passes(rows, 64, strategy="simple", **shuffled),
        "throughput: rows, advanced, no workers": passes(rows, 64, **shuffled),
        "throughput: rows, advanced, 2 workers": passes(rows, 64, **shuffled, **two),
        "throughput: stream, simple, no workers": passes(Stream(), 64, strategy="simple"),
        "handover: 66 kB, 2 workers": passes(Ready(16_500), None, **two),
        "handover: 4 MB, 2 workers": passes(Ready(1_000_000), None, **two),
    }
    loader = ResumableDataLoader(range(10**9), 256, **shuffled)
    loader.seek(step=10**6)
    state = loader.state_dict()
    found["state: state_dict()"] = seconds_of_calls(loader.state_dict, 5000, repeats)

    def resumed() -> None:
        fresh = ResumableDataLoader(range(10**9), 256, **shuffled)
        fresh.load_state_dict(state)
        next(iter(fresh))

    found["resume: new loader, state, first batch"] = seconds_of_calls(resumed, 20, repeats)
    return found


def measured_by(checkout: Path, repeats: int) -> dict[str, float]:
    """What a process that imports the DataPorter of a checkout has measured."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([f"{checkout}/src", str(HERE)])}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.versions", "--this", str(repeats)],
        env=environment,
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(f"{checkout}: {ran.stderr[-2000:]}")
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def commit_of(checkout: Path) -> str:
    shown = ["git", "-C", str(checkout), "log", "-1", "--format=%h (%s)"]
    return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()


def measure(other: Path, quick: bool) -> Table:
    runs: dict[Path, list[dict[str, float]]] = {other: [], HERE: []}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for checkout, found in runs.items():
            found.append(measured_by(checkout, 1 if quick else 3))
    rows, slower = [], []
    for question in runs[HERE][0]:
        before, now = (median(run[question] for run in runs[one]) for one in (other, HERE))
        # Each pair of runs lay side by side in time, so this is least moved by a changing load.
        ratio = median(b[question] / a[question] for a, b in zip(runs[other], runs[HERE]))
        rows.append((question, _time(before), _time(now), f"{ratio:.3f}"))
        if ratio > ALLOWED:
            slower.append(f"{question} {ratio:.3f}")
    goal = Goal(
        f"at most {ALLOWED} times as long as before",
        "; ".join(slower) or "nothing takes longer than that",
        not slower,
    )
    note = (
        f"Before: {commit_of(other)}. Now: {commit_of(HERE)}. Medians of {len(runs[HERE])} runs of "
        "each checkout, which took turns; the ratio is the median of those of neighbouring runs."
    )
    return Table(
        "What does this version cost beside an earlier one?",
        ("", "before", "now", "now / before"),
        tuple(rows),
        (goal,),
        (note,),
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("other", nargs="?", type=Path, help="folder of another checkout")
    parser.add_argument("--this", type=int, help="measure the imported version, print JSON")
    arguments = parser.parse_args()
    if arguments.this:
        print(json.dumps(measure_this(arguments.this)))
        return
    if arguments.other is None:
        parser.error("name the folder of another checkout")
    facts = "".join(f"- {name}: {fact}\n" for name, fact in describe(("torch", "numpy")).items())
    table = measure(arguments.other.resolve(), arguments.quick)
    show(table, Console())
    if not arguments.quick:
        head = "# Versions\n\nWritten by `python -m benchmarks.versions`.\n\n"
        RESULTS.write_text(f"{head}{facts}\n{markdown(table)}")


if __name__ == "__main__":
    main()
