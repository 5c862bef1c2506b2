"""What does a resume cost each of 16,384 ranks, and what do the ranks communicate?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from benchmarks.command import run
from benchmarks.datasets import Indices
from benchmarks.rounds import play
from benchmarks.tables import Goal, Table
from benchmarks.timing import peak_allocated, seconds_once
from dataporter import ResumableDataLoader

LENGTH = 10**10
WORLD_SIZE = 16_384
# The state comes from a different number of ranks with a different batch size.
SAVED_BY, SAVED_BATCH_SIZE = 12_288, 24
BATCH_SIZE = 32
GOAL_SECONDS = 0.010
GOAL_BYTES = 2e6
# As many real ranks as a machine with few cores can run without waiting for a core.
REAL_RANKS = 2


@dataclass(frozen=True, slots=True)
class Resume:
    """One rank of the simulated world, which resumes from a state of another world."""

    state_text: str
    rank: int

    def build(self) -> ResumableDataLoader[Any]:
        return _loader(self.rank, WORLD_SIZE, BATCH_SIZE)

    def first_batch(self, loader: ResumableDataLoader[Any]) -> object:
        """From the state's text to the first batch, which holds only indices."""
        loader.load_state_dict(json.loads(self.state_text))
        return next(iter(loader))

    def seconds(self) -> float:
        loader = self.build()
        return seconds_once(lambda: self.first_batch(loader))

    def whole(self) -> object:
        return self.first_batch(self.build())


def measure(quick: bool) -> Table:
    rows: list[tuple[str, ...]] = []
    times: list[float] = []
    peaks: list[int] = []
    saved = _loader(0, SAVED_BY, SAVED_BATCH_SIZE)
    for where, step in (
        ("start", 0),
        ("half", len(saved) // 2),
        ("last batch but one", len(saved) - 2),
    ):
        saved.seek(step=step)
        text = json.dumps(saved.state_dict())
        ranks = {
            f"rank {rank:,}": Resume(text, rank) for rank in (0, WORLD_SIZE // 2, WORLD_SIZE - 1)
        }
        rounds = play(
            {name: resume.seconds for name, resume in ranks.items()}, rounds=5 if quick else 25
        )
        for name, resume in ranks.items():
            times.append(rounds.median(name))
            peaks.append(peak_allocated(resume.whole))
            rows.append((f"{name}, {where}", _ms(times[-1]), f"{peaks[-1] / 1e6:.3f} MB", ""))
    checked, alone, sent = _load_check(rounds=20 if quick else 200)
    rows.append((f"load_state_dict, {REAL_RANKS} gloo ranks that agree", _ms(checked), "", sent))
    rows.append(("load_state_dict, a rank without a group", _ms(alone), "", "0 B"))
    return Table(
        f"Scale: from a state of {SAVED_BY:,} ranks to the first batch of one of "
        f"{WORLD_SIZE:,} ranks, {LENGTH:,} samples",
        ("", "time", "Python and NumPy peak", "passed to collectives per rank"),
        tuple(rows),
        (
            Goal(
                f"below {_ms(GOAL_SECONDS)} per rank",
                f"at most {_ms(max(times))}",
                max(times) < GOAL_SECONDS,
            ),
            Goal(
                f"below {GOAL_BYTES / 1e6:.0f} MB per rank",
                f"at most {max(peaks) / 1e6:.3f} MB",
                max(peaks) < GOAL_BYTES,
            ),
        ),
        (
            "The dataset holds nothing: each sample is its own index, so this measures little more "
            "than the path to the first request.",
            "Simulated: one process plays one rank after another, with that rank and world size as "
            f"arguments; batch {SAVED_BATCH_SIZE} before and {BATCH_SIZE} after. Medians over "
            "resumes of a new loader (construction is not timed, but its memory counts, by "
            "tracemalloc).",
            "The load check is real: processes on this machine in one gloo group, with the same "
            "state on all. The bytes were counted at torch.distributed.all_reduce and "
            "all_gather_object; they are the same for any number of ranks, as long as the ranks "
            "agree. How long an all-reduce of so few bytes takes on 16,384 ranks depends on their "
            "network and was not measured.",
        ),
    )


def _loader(rank: int, world_size: int, batch_size: int) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(
        Indices(LENGTH), batch_size, shuffle=True, seed=1, rank=rank, world_size=world_size
    )


def _load_check(rounds: int) -> tuple[float, float, str]:
    """Median seconds of a load with and without the check, and the bytes that a rank passed."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (REAL_RANKS, Path(folder), rounds), nprocs=REAL_RANKS, join=True)
        checked, alone, sent = json.loads((Path(folder) / "found.json").read_text())
    return checked, alone, f"{sent} B"


def _rank(rank: int, world_size: int, folder: Path, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world_size)
    arguments: dict[str, Any] = {"batch_size": BATCH_SIZE, "shuffle": True, "seed": 1}
    agreeing = ResumableDataLoader(Indices(LENGTH), **arguments)
    alone = ResumableDataLoader(Indices(LENGTH), **arguments, rank=rank, world_size=world_size)
    state = alone.state_dict()
    sent = _bytes_passed(partial(agreeing.load_state_dict, state))
    times: dict[str, list[float]] = {"agreeing": [], "alone": []}
    for _ in range(rounds):
        dist.barrier()
        times["agreeing"].append(seconds_once(lambda: agreeing.load_state_dict(state)))
        times["alone"].append(seconds_once(lambda: alone.load_state_dict(state)))
    if rank == 0:
        found = [median(times["agreeing"]), median(times["alone"]), sent]
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _bytes_passed(call: Callable[[], object]) -> int:
    """The bytes that a call passes to all-reduces; it must not gather objects."""
    counted: list[int] = []
    reduce, gather = dist.all_reduce, dist.all_gather_object

    def counting(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        counted.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **named)

    def refusing(*_: Any, **__: Any) -> None:
        raise AssertionError("ranks that agree gather nothing")

    dist.all_reduce, dist.all_gather_object = counting, refusing
    try:
        call()
    finally:
        dist.all_reduce, dist.all_gather_object = reduce, gather
    return sum(counted)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


if __name__ == "__main__":
    run(measure, __doc__)
