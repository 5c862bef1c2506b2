"""Ranks that train under a PreemptionGuard, and log what each of them saw.

    torchrun ... preempted_ranks.py DIRECTORY WORKERS SCENARIO...

Each scenario is a new training run, for which every rank appends one line to its log.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from dataporter import PreemptionGuard, ResumableDataLoader, save_atomically

LENGTH, BATCH_SIZE, SEED = 2000, 2, 7


def training(
    directory: Path,
    scenario: str,
    workers: int,
    guard: PreemptionGuard,
    before_step: Callable[[int], None],
) -> dict[str, Any]:
    """Train until the guard says to stop."""
    loader: ResumableDataLoader[Any] = ResumableDataLoader(
        range(LENGTH),
        BATCH_SIZE,
        shuffle=True,
        strategy="distributed",
        seed=SEED,
        num_workers=workers,
        worker_restarts=0,
    )
    samples: list[int] = []
    stopped = False
    handlers = [signal.getsignal(number) for number in guard.signals]
    with guard:
        for batch in loader:
            before_step(loader.step)
            samples += batch.tolist()
            if guard.should_stop():
                stopped = True
                # Further signals and calls, which the other ranks do not take part in.
                os.kill(os.getpid(), signal.SIGTERM)
                if dist.get_rank() == 0:
                    assert guard.should_stop()
                    save_atomically(loader.state_dict(), directory / f"{scenario}.pt")
                break
    return {
        "scenario": scenario,
        "steps": loader.step,
        "stopped": stopped,
        "samples": samples,
        "received": guard.received and guard.received.name,
        "restored": handlers == [signal.getsignal(number) for number in guard.signals],
    }


def main() -> None:
    directory, workers = Path(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    def signals(*sent: tuple[int, int, int]) -> Callable[[int], None]:
        """Signals (rank, step, number) that ranks send themselves."""

        def before_step(step: int) -> None:
            for receiver, at_step, number in sent:
                if (receiver, at_step) == (rank, step):
                    os.kill(os.getpid(), number)

        return before_step

    def from_outside(step: int) -> None:
        if step == 3:
            (directory / f"rank-{rank}.pid").write_text(str(os.getpid()))
        time.sleep(0.02)

    for scenario in sys.argv[3:]:
        guard, before_step = PreemptionGuard(), from_outside
        if scenario == "every-5":
            guard = PreemptionGuard(every=5)
            before_step = signals((1, 6, signal.SIGUSR1), (3, 8, signal.SIGTERM))
        if scenario == "usr1":
            before_step = signals((2, 4, signal.SIGUSR1))
        if scenario == "mesh":
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
            guard = PreemptionGuard(process_group=mesh["shard"])
            before_step = signals((3, 9, signal.SIGUSR1))
        if scenario == "others":
            guard = PreemptionGuard(signals=[signal.SIGUSR2])
            before_step = signals((0, 5, signal.SIGUSR2))
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        record = training(directory, scenario, workers, guard, before_step)
        with (directory / f"rank-{rank}.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
