"""Nothing is left behind by workers, however the training ends."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
from budgets import slow
from subjects import Indices, digest
from worker_processes import Filled, workers_of

from dataporter import ResumableDataLoader
from dataporter.engines import crew

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


@pytest.mark.slow
def test_descriptors_do_not_grow_over_hundreds_of_iterators() -> None:
    loader = ResumableDataLoader(Indices(4), 2, num_workers=1)
    next(iter(loader))
    gc.collect()
    before = psutil.Process().num_fds()
    for _ in range(300):
        next(iter(loader))
    gc.collect()
    assert psutil.Process().num_fds() <= before


SCRIPT = """
import os, sys, time
import torch
from dataporter import ResumableDataLoader

class Data:
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        if "busy" in sys.argv and index > 40:
            time.sleep(60)
        return torch.full((1000,), float(index))

if __name__ == "__main__":
    loader = ResumableDataLoader(
        Data(), 4, num_workers=2, multiprocessing_context=sys.argv[1], prefetch_factor=8,
        persistent_workers="persistent" in sys.argv,
    )
    batches = iter(loader)
    held = next(batches)
    print("started", flush=True)
    if "exit" in sys.argv:
        sys.exit(0)
    if "raise" in sys.argv:
        raise ZeroDivisionError
    time.sleep(60)
"""


@pytest.mark.parametrize("context", ["fork", *slow("spawn", "forkserver")])
@pytest.mark.parametrize(
    "end",
    [*slow("exit"), "exit persistent", *slow("raise", "interrupt", "kill"), "kill busy"],
)
def test_no_worker_outlives_the_training(tmp_path: Path, context: str, end: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), context, *end.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        children = psutil.Process(process.pid).children(recursive=True) if "exit" not in end else []
        if "kill" in end:
            time.sleep(0.5)
            process.kill()
        elif end == "interrupt":
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=100)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
        if "kill" not in end:
            expected = {"raise": "ZeroDivisionError", "interrupt": "KeyboardInterrupt"}.get(end)
            lines = errors.strip().splitlines()
            assert (lines[-1] if lines else None) == expected, errors
            assert errors.count("Traceback") == (expected is not None), errors
    finally:
        process.kill()
        process.communicate()


# ---- all of it at once


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("seed", [0, 1])
def test_kills_delays_and_breaks_at_random_change_no_byte(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches equal the inline engine's, also those that the loop holds for long."""
    # By chance, two workers are soon killed at the same batch.
    monkeypatch.setattr(crew, "_MOST_DEATHS", 1000)
    mischief = random.Random(seed)
    processes, descriptors = workers_of(), psutil.Process().num_fds()
    until = time.monotonic() + 15
    loader = ResumableDataLoader(
        Filled(48),
        3,
        shuffle=True,
        seed=seed,
        num_workers=2,
        persistent_workers=bool(seed),
        worker_restarts=1000,
    )
    epochs = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        while time.monotonic() < until:
            reference = ResumableDataLoader(Filled(48), 3, shuffle=True, seed=seed)
            reference.seek(epoch=epochs)
            expected = [digest(batch) for batch in reference]
            loader.seek(epoch=epochs)
            hoard: list[tuple[int, Any]] = []
            stop = mischief.choice([None, None, mischief.randrange(16)])
            for step, batch in enumerate(loader):
                hoard.append((step, batch))
                if mischief.random() < 0.15 and (alive := list(workers_of() - processes)):
                    mischief.choice(alive).kill()
                if mischief.random() < 0.2:
                    time.sleep(mischief.random() / 50)
                while hoard and mischief.random() < 0.7:
                    held, content = hoard.pop(mischief.randrange(len(hoard)))
                    assert digest(content) == expected[held]
                    del content
                if step == stop:
                    break
            for held, content in hoard:
                assert digest(content) == expected[held]
            assert stop is not None or loader.step == 0
            epochs += 1
    assert epochs > 10
    content = None
    del loader, batch, hoard
    gc.collect()
    assert psutil.Process().num_fds() <= descriptors + 2
