"""Workers' batches: equal to the inline engine's, whatever they hold and whoever keeps them."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from subjects import Indices, digest
from torch.utils.data import default_collate
from worker_processes import Filled, inline, workers_of

from dataporter import ResumableDataLoader
from dataporter.engines import channel, crew, spinning, worker

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


# ---- lifetimes


def test_batches_that_the_loop_holds_are_never_overwritten() -> None:
    loader = ResumableDataLoader(Filled(), 4, shuffle=True, seed=1, num_workers=2)
    expected = inline(loader)
    assert [digest(batch) for batch in list(loader)] == expected


def test_batches_that_another_thread_holds_are_never_overwritten() -> None:
    loader = ResumableDataLoader(Filled(), 2, shuffle=True, seed=1, num_workers=2)
    expected, found = inline(loader), {}
    held: dict[int, Any] = {}

    def look_later(step: int) -> None:
        time.sleep(random.random() / 20)
        found[step] = digest(held.pop(step))

    threads = []
    for step, batch in enumerate(loader):
        held[step] = batch
        threads.append(threading.Thread(target=look_later, args=(step,)))
        threads[-1].start()
    del batch
    for thread in threads:
        thread.join()
    assert [found[step] for step in range(len(expected))] == expected


def test_writing_to_a_batch_damages_nothing_else() -> None:
    loader = ResumableDataLoader(Filled(), 2, shuffle=True, seed=1, num_workers=2)
    expected, found, kept = inline(loader), [], []
    for batch in loader:
        found.append(digest(batch))
        batch["x"].fill_(-1.0)
        kept.append(batch["x"][0])
    assert found == expected
    assert all(bool((row == -1.0).all()) for row in kept)


def test_a_collate_function_may_keep_what_it_made() -> None:
    kept: list[Any] = []

    def collate(samples: list[Any]) -> Any:
        batch = default_collate(samples)
        kept.append(batch["x"])
        return {"now": batch["x"], "first": kept[0]}

    loader = ResumableDataLoader(Filled(), 2, seed=1, num_workers=1, collate_fn=collate)
    for step, batch in enumerate(loader):
        assert batch["now"][0, 0, 0] == 2 * step
        assert bool((batch["first"][0] == 0).all())


def test_hoarding_takes_no_descriptors() -> None:
    loader = ResumableDataLoader(Filled(400), 2, num_workers=2)
    before = psutil.Process().num_fds()
    iterator = iter(loader)
    hoard = [next(iterator) for _ in range(200)]
    assert psutil.Process().num_fds() - before < 40
    assert [int(batch["n"][0, 0]) for batch in hoard] == list(range(0, 400, 2))


def test_a_batch_outlives_its_workers_and_its_loader() -> None:
    batch = next(iter(ResumableDataLoader(Filled(), 4, num_workers=2)))
    gc.collect()
    assert batch["x"][:, 0, 0].tolist() == [0, 1, 2, 3]


def test_batches_grow_and_shrink() -> None:
    def collate(samples: list[int]) -> torch.Tensor:
        return torch.full((samples[0] * 997 % 5000 + 1,), float(samples[0]))

    loader = ResumableDataLoader(Indices(80), 1, num_workers=2, collate_fn=collate)
    for index, batch in enumerate(loader):
        assert batch.shape == (index * 997 % 5000 + 1,)
        assert bool((batch == index).all())


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_their_loader_and_need_no_garbage_collector(persistent: bool) -> None:
    before = workers_of()
    gc.disable()
    try:
        loader = ResumableDataLoader(
            Filled(), 4, shuffle=True, num_workers=2, persistent_workers=persistent
        )
        batch = next(iter(loader))
        started = workers_of() - before
        assert len(started) == (2 if persistent else 0)
        del loader
        assert psutil.wait_procs(started, timeout=5)[1] == []
        del batch
    finally:
        gc.enable()


def test_too_many_open_files_are_an_error_that_says_so_and_leaves_nothing_behind() -> None:
    resource = pytest.importorskip("resource")
    batches = iter(ResumableDataLoader(Filled(400), 2, num_workers=1))
    held, spare = [next(batches)], []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = psutil.Process().num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        with pytest.raises(OSError, match=r"memory for its batches.*ulimit -n"):
            held.extend(batches)
    finally:
        for descriptor in spare:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    held.clear()
    del batches
    assert psutil.Process().num_fds() < before


# ---- what a batch may hold


class Odd:
    """Indices, for batches of which little or nothing can lie in a slot."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return index


def collate_oddly(samples: list[int]) -> Any:
    value = float(samples[0])
    return {
        "sparse": (torch.eye(2) * value).to_sparse(),
        "parameter": torch.nn.Parameter(torch.full((2,), value)),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(value),
        "object": np.array([{"a": value}, None], dtype=object),
        "transposed": torch.full((2, 3), value).T,
        "set": {1, 2},
    }


def test_values_that_cannot_lie_in_a_slot_arrive_as_well() -> None:
    batches = list(ResumableDataLoader(Odd(), 1, num_workers=2, collate_fn=collate_oddly))
    for index, batch in enumerate(batches):
        assert torch.equal(batch["sparse"].to_dense(), torch.eye(2) * index)
        assert type(batch["parameter"]) is torch.nn.Parameter
        assert batch["parameter"].requires_grad
        assert batch["empty"].shape == (0, 3)
        assert batch["scalar"].item() == index
        assert batch["object"].tolist() == [{"a": float(index)}, None]
        assert batch["transposed"].stride() == (1, 3)
        assert batch["set"] == {1, 2}


def test_a_batch_that_cannot_be_pickled_is_an_error() -> None:
    loader = ResumableDataLoader(
        Indices(4), 2, num_workers=1, collate_fn=lambda samples: lambda: samples
    )
    with pytest.raises(Exception, match="pickle"):
        next(iter(loader))


def test_neither_dev_shm_nor_files_are_used() -> None:
    """So Docker's 64 kB of /dev/shm are enough."""

    def maps(samples: list[int]) -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if "shm" in line]

    def collate(samples: list[int]) -> Any:
        return default_collate([torch.zeros(100_000) for _ in samples]), maps(samples)

    # Other libraries may have a file there (tqdm has a lock).
    before = maps([])
    for _, lines in ResumableDataLoader(Indices(8), 2, num_workers=2, collate_fn=collate):
        assert [line for line in lines if "/dev/shm" in line and line not in before] == []
    assert not torch.zeros(1).is_shared()


IN_DOCKER = """
import os, signal, sys, time
import torch
from dataporter import ResumableDataLoader

class Large:
    def __len__(self):
        return 24
    def __getitem__(self, index):
        return torch.full((200_000,), float(index))

if __name__ == "__main__":
    assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize <= 1 << 16
    for context in ("fork", "spawn"):
        loader = ResumableDataLoader(
            Large(), 2, num_workers=2, multiprocessing_context=context, persistent_workers=True
        )
        for hoard in (list(loader), list(loader)):
            assert [int(batch[0, -1]) for batch in hoard] == list(range(0, 24, 2))
        batches = iter(loader)
        next(batches)
        del batches, loader
    loader = ResumableDataLoader(Large(), 2, num_workers=2)
    batches = iter(loader)
    held = next(batches)
    print("all there", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_docker_s_64_kb_of_dev_shm_are_enough_and_stay_empty(tmp_path: Path) -> None:
    """Only these processes see a /dev/shm as small as Docker's."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(IN_DOCKER))
    mounted = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip("this user may not mount anything")
    found = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            f'{mounted} && "$0" "$1"; ls /dev/shm',
            sys.executable,
            script,
        ],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert found.stdout == "all there\n", found.stderr


@pytest.mark.parametrize("system", ["macOS", "Windows"])
def test_without_memfd_and_without_sending_memory_the_stream_is_the_same(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What macOS and Windows would use, as far as Linux can run it."""
    if system == "macOS":
        monkeypatch.delattr(os, "memfd_create")
    else:
        for module in (channel, crew, worker):
            monkeypatch.setattr(module, "CAN_SEND_MEMORY", False)
        monkeypatch.setattr(channel, "_DO_NOT_WAIT", None)
        monkeypatch.setattr(spinning, "_CAN_YIELD", False)
    loader = ResumableDataLoader(Filled(), 4, shuffle=True, seed=1, num_workers=2)
    expected = inline(loader)
    assert [digest(batch) for batch in list(loader)] == expected
