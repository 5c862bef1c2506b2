"""Killed ranks: nothing outlives them, and fewer ranks resume from the checkpoint."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import rank_process
import torch
from budgets import slow
from subjects import Augmented, digest, ids
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from worlds import ranks_of

from dataporter import ResumableDataLoader

LENGTH = rank_process.LENGTH
# Seconds until workers notice that their parent is gone, with room to spare.
WORKERS_LEAVE_IN = 10


def rank_body(directory: Path, kill_rank: int | None) -> None:
    rank_process.train(directory, kill_rank=kill_rank)


def saved_state(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "checkpoint.pt", weights_only=True)["loader"]


def seen(directory: Path, world_size: int, before_step: int = LENGTH) -> list[tuple[int, str]]:
    """The samples that the ranks of a world have logged, up to a step."""
    return [
        (index, text)
        for log in directory.glob(f"{world_size}-*.jsonl")
        for line in log.read_text().splitlines()
        if line.endswith("]]")  # a kill may truncate the last one
        for step, *samples in [json.loads(line)]
        if step < before_step
        for index, text in samples
    ]


def noted_workers(directory: Path) -> list[int]:
    return [pid for file in directory.glob("*.workers") for pid in json.loads(file.read_text())]


def assert_nothing_is_left(directory: Path) -> None:
    noted = noted_workers(directory)
    assert noted
    workers = [psutil.Process(pid) for pid in noted if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(workers, timeout=WORKERS_LEAVE_IN)
    for process in alive:
        process.kill()
    assert alive == [], "workers outlive their rank"


def assert_the_rest_appears_once(directory: Path, world_size: int, others: int) -> None:
    """``world_size`` ranks were killed; ``others`` resume and finish the epoch."""
    state = saved_state(directory)
    assert (state["epoch"], state["world_size"]) == (0, world_size)
    done = seen(directory, world_size, state["step"])
    assert len(done) == state["position"]
    ranks_of(others, rank_body, directory, None)
    samples = done + seen(directory, others)
    assert sorted(index for index, _ in samples) == list(range(LENGTH))
    alone = ResumableDataLoader(
        Augmented(LENGTH), LENGTH, shuffle=True, seed=state["seed"], rank=0, world_size=1
    )
    (batch,) = alone
    assert dict(samples) == {
        index: digest({name: values[offset] for name, values in batch.items()})
        for offset, index in enumerate(ids(batch))
    }, "each with the augmentation it would have had"


@pytest.mark.parametrize("kill_rank", [*slow(0), 2])
def test_when_one_rank_is_killed_the_others_end_and_fewer_resume(
    kill_rank: int, tmp_path: Path
) -> None:
    # From the killed rank, or from one whose collective failed, whichever is noticed first.
    with pytest.raises(ChildFailedError, match=r"SIGKILL|Signal 9|Connection closed|reset by peer"):
        ranks_of(3, rank_body, tmp_path, kill_rank)
    assert_nothing_is_left(tmp_path)
    assert_the_rest_appears_once(tmp_path, 3, 2)


@pytest.mark.slow
def test_when_all_ranks_and_their_launcher_are_killed_fewer_resume(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    logs = f"--log-dir={tmp_path / 'logs'}"
    launcher = psutil.Popen([*torchrun, logs, rank_process.__file__, str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoint.pt").exists() or saved_state(tmp_path)["step"] < 3:
            assert launcher.poll() is None
            assert time.monotonic() < deadline, "the training run never reaches its third step"
            time.sleep(0.02)
    finally:
        workers = [
            pid for file in tmp_path.glob("*.workers") for pid in json.loads(file.read_text())
        ]
        ranks = [
            process for process in launcher.children(recursive=True) if process.pid not in workers
        ]
        for process in (launcher, *ranks):
            process.kill()
        launcher.wait(10)
    assert len(ranks) >= 3
    psutil.wait_procs(ranks, timeout=10)
    assert_nothing_is_left(tmp_path)
    assert_the_rest_appears_once(tmp_path, 3, 2)
