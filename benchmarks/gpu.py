"""With a GPU: do batches reach it as fast as a bare copy does, and does the training wait for them?

One run takes at most 8 minutes and writes `benchmarks/gpu.md`. It needs torch with CUDA,
DataPorter's dependencies, and for the tests pytest, pytest-timeout, hypothesis and psutil; no other
loader. Without a GPU it rehearses: every part runs on torch's `meta` device, and no figure is
shown.

The exit status is 0 if all tests passed and all goals were reached, 1 if not, 3 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader

from benchmarks.rounds import Rounds, play
from benchmarks.tables import Goal, Table, markdown, show
from dataporter import DevicePrefetcher, create_resumable_dataloader

RESULTS = Path(__file__).parent / "gpu.md"
NO_GPU = 3
LIMIT = 8 * 60.0  # s
TESTS = ("tests/loader/test_device.py", "tests/loader/test_copies.py")
LONGEST_TESTS = 150.0  # s

OURS = "DataPorter, DevicePrefetcher"
TORCH = "torch, pin_memory=True and non_blocking"
LOADER = "DataPorter, batches left in memory"
BARE = "bare pinned copy"
RESIDENT = "a batch that is on the device"
GOAL = 0.9
STEP = 0.01  # s, of the training


@dataclass(frozen=True, slots=True)
class Size:
    """A batch of ``rows`` rows of ``width`` float32."""

    name: str
    rows: int
    width: int

    @property
    def bytes(self) -> int:
        return self.rows * self.width * 4


SIZES = (
    Size("64 KB", 256, 64),
    Size("4 MB", 256, 4096),
    Size("37 MB, 64 images of 3 x 224 x 224", 64, 3 * 224 * 224),
)


class Rows:
    """Rows that are read a batch at a time and need no collation."""

    def __init__(self, size: Size) -> None:
        self.values = torch.rand(4 * size.rows, size.width)

    def __len__(self) -> int:
        return 4_000_000

    def __getitems__(self, indices: Sequence[int]) -> torch.Tensor:
        return self.values[torch.as_tensor(indices) % len(self.values)]


def unchanged(batch: Any) -> Any:
    return batch


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and for how long.

    Attributes:
        device: where the batches go.
        workers: of each loader.
        rounds: of each comparison.
        seconds: of each contestant in a round.
        until: when the last round may begin, by ``time.monotonic``.
    """

    device: torch.device
    workers: int
    rounds: int
    seconds: float
    until: float

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def play(self, contestants: dict[str, Callable[[], float]]) -> Rounds:
        """At least one round, and as many more as the plan has time for."""
        figures: dict[str, list[float]] = {name: [] for name in contestants}
        for turn in range(self.rounds):
            if turn and time.monotonic() > self.until:
                break
            for name, found in play(contestants, 1).figures.items():
                figures[name] += found
        return Rounds(figures)


# ---- host to device


def rates(plan: Plan, size: Size) -> Rounds:
    """Bytes per second to the device, or out of the loader."""
    dataset = Rows(size)
    return plan.play(
        {
            BARE: partial(_bare_rate, plan, size),
            LOADER: partial(_rate, plan, size, partial(_ours, plan, dataset, size)),
            OURS: partial(
                _rate,
                plan,
                size,
                lambda: DevicePrefetcher(_ours(plan, dataset, size), plan.device),
            ),
            TORCH: partial(_rate, plan, size, partial(_torchs, plan, dataset, size)),
        }
    )


def _ours(plan: Plan, dataset: Rows, size: Size) -> Any:
    return create_resumable_dataloader(
        dataset,
        batch_size=size.rows,
        shuffle=True,
        num_workers=plan.workers,
        collate_fn=unchanged,
    )


def _torchs(plan: Plan, dataset: Rows, size: Size) -> Iterator[torch.Tensor]:
    loader: Iterable[torch.Tensor] = DataLoader(
        dataset,  # type: ignore[arg-type]  # a dataset by its methods
        batch_size=size.rows,
        shuffle=True,
        num_workers=plan.workers,
        collate_fn=unchanged,
        pin_memory=plan.on_gpu,
    )
    return (batch.to(plan.device, non_blocking=True) for batch in loader)


def _rate(plan: Plan, size: Size, build: Callable[[], Iterable[torch.Tensor]]) -> float:
    batches = iter(build())
    # Enough for every slot to be made, and locked where it is.
    for _ in islice(batches, 4 * plan.workers + 4):
        pass
    plan.synchronize()
    count, begin = 0, time.perf_counter()
    for _ in batches:
        count += 1
        if time.perf_counter() - begin > plan.seconds:
            break
    plan.synchronize()
    return count * size.bytes / (time.perf_counter() - begin)


def _bare_rate(plan: Plan, size: Size) -> float:
    source = torch.rand(size.rows, size.width, pin_memory=plan.on_gpu)
    target = torch.empty_like(source, device=plan.device)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < plan.seconds:
        for _ in range(50):
            target.copy_(source, non_blocking=True)
        # The processor is ahead of the copies; unbounded, it would only fill their queue.
        plan.synchronize()
        count += 50
    return count * size.bytes / (time.perf_counter() - begin)


# ---- training steps


def steps(plan: Plan, size: Size) -> Rounds:
    """Seconds of a training step, by where its batch comes from."""
    dataset = Rows(size)
    work = _work(plan)
    resident = torch.rand(size.rows, size.width, device=plan.device)
    return plan.play(
        {
            RESIDENT: partial(_step, plan, work, lambda: repeat(resident)),
            OURS: partial(
                _step,
                plan,
                work,
                lambda: DevicePrefetcher(_ours(plan, dataset, size), plan.device),
            ),
            TORCH: partial(_step, plan, work, partial(_torchs, plan, dataset, size)),
        }
    )


def _work(plan: Plan) -> Callable[[], None]:
    """Matrix products that keep the device busy for a step, and the processor for less."""
    matrix = torch.rand(4096, 4096, device=plan.device)

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    multiply(3)
    plan.synchronize()
    begin = time.perf_counter()
    multiply(10)
    plan.synchronize()
    once = (time.perf_counter() - begin) / 10
    return partial(multiply, max(1, round(STEP / once)) if plan.on_gpu else 1)


def _step(
    plan: Plan, work: Callable[[], None], build: Callable[[], Iterable[torch.Tensor]]
) -> float:
    batches = iter(build())
    total = torch.zeros((), device=plan.device)
    for batch in islice(batches, 4 * plan.workers + 4):
        total += batch.sum()
    plan.synchronize()
    count, begin = 0, time.perf_counter()
    for batch in batches:
        total += batch.sum()
        work()
        count += 1
        if count % 20 == 0:
            # As a training loop that reads its loss now and then.
            plan.synchronize()
            if time.perf_counter() - begin > plan.seconds:
                break
    plan.synchronize()
    return (time.perf_counter() - begin) / count


# ---- tests


def tests(plan: Plan) -> Goal:
    """The tests of copies, which include those that need a GPU where there is one."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    named = ["-k", "cuda"] if not plan.on_gpu else []
    try:
        done = subprocess.run(
            [*command, *named, *TESTS],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=LONGEST_TESTS,
        )
    except subprocess.TimeoutExpired:
        return Goal("the tests of copies pass", f"no end within {LONGEST_TESTS:.0f} s", False)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    # 5: none of the tests that were named can run here.
    return Goal("the tests of copies pass", lines[-1], done.returncode in (0, 5))


# ---- the whole


def measure(plan: Plan) -> Table:
    passed = tests(plan)
    rows: list[tuple[str, ...]] = []
    goals = [passed]
    for size in SIZES:
        found = rates(plan, size)
        for name in found.figures:
            low, high = found.range(name)
            rows.append(
                (
                    f"{size.name}: {name}",
                    f"{found.median(name) / 1e9:.2f} GB/s",
                    f"{low / 1e9:.2f} to {high / 1e9:.2f}",
                    f"{found.ratio(name, BARE):.2f}",
                    f"{found.ratio(name, TORCH):.2f}",
                )
            )
        share = found.ratio(OURS, BARE)
        goals.append(
            Goal(f"{size.name}: at least {GOAL} of a bare copy", f"{share:.2f}", share >= GOAL)
        )
    for size in SIZES:
        found = steps(plan, size)
        for name in found.figures:
            low, high = found.range(name)
            waits = found.paired(lambda mine, bare: mine - bare, name, RESIDENT)
            rows.append(
                (
                    f"a step with {size.name}: {name}",
                    f"{found.median(name) * 1e3:.3f} ms, {waits * 1e6:+.0f} µs",
                    f"{low * 1e3:.3f} to {high * 1e3:.3f}",
                    "",
                    f"{found.ratio(TORCH, name):.2f}",
                )
            )
    return Table(
        "GPU: from the loader to the device",
        ("", "measured", "range", "of a bare copy", "times torch"),
        tuple(rows),
        tuple(goals),
        (
            f"{plan.workers} workers, up to {plan.rounds} rounds of {plan.seconds:g} s for each "
            "contestant; medians, and medians of the ratios within a round. The workers gather the "
            "rows of each batch, and nothing else: where they deliver less than a bare copy "
            f"({LOADER!r}), that is the limit.",
            f"A step is {STEP * 1e3:.0f} ms of matrix products; what it takes more than with "
            f"{RESIDENT} is the wait for data. Every 20 steps the loop waits for the device.",
        ),
    )


def rehearse() -> None:
    """Run every part once on the ``meta`` device; figures of it would mean nothing."""
    plan = Plan(torch.device("meta"), workers=1, rounds=1, seconds=0.05, until=0.0)
    measure(plan)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="the file to write")
    output: Path = parser.parse_args(arguments).output
    console = Console()
    if not torch.cuda.is_available():
        rehearse()
        console.print(
            "No CUDA device is available. Every part ran on the meta device; no figure exists, "
            "and nothing was written."
        )
        return NO_GPU
    begin = time.monotonic()
    workers = max(2, min(8, (os.cpu_count() or 2) - 2))
    plan = Plan(
        torch.device("cuda", torch.cuda.current_device()),
        workers=workers,
        rounds=5,
        seconds=1.5,
        # The rest: rounds under way, and the first round of what comes after.
        until=begin + LIMIT / 2,
    )
    table = measure(plan)
    show(table, console)
    facts = "".join(f"- {name}: {fact}\n" for name, fact in _facts(plan).items())
    output.write_text(f"# On a GPU\n\nWritten by `python -m benchmarks.gpu`.\n\n{facts}\n"
                      f"{markdown(table)}")  # fmt: skip
    console.print(f"Written: {output}, after {time.monotonic() - begin:.0f} s")
    return 0 if all(goal.reached for goal in table.goals) else 1


def _facts(plan: Plan) -> dict[str, str]:
    return {
        "date": date.today().isoformat(),
        "GPU": torch.cuda.get_device_name(plan.device),
        "processor": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
    }


if __name__ == "__main__":
    sys.exit(main())
