"""Workers: batches equal to the inline engine's, whatever the loop holds and whoever is killed."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from subjects import Augmented, Indices, digest, ids, outcome_in_a_fork
from torch.utils.data import default_collate, get_worker_info

from dataporter import ResumableDataLoader, WorkerDiedError, WorkerTimeoutError
from dataporter.engines import channel, crew, spinning, worker


class Filled:
    """Large enough to see a slot written over: 16 kB of its own index."""

    def __init__(self, length: int = 60) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((64, 64), float(index)), "n": np.full(8, index), "s": str(index)}


def inline(loader: ResumableDataLoader[Any]) -> list[str]:
    """The digests of the next epoch, read without workers."""
    arguments = {"shuffle": True, "seed": loader.seed, "strategy": loader.strategy}
    reference = ResumableDataLoader(
        loader.dataset, loader.batch_size, collate_fn=loader.collate_fn, **arguments
    )
    reference.seek(epoch=loader.epoch)
    return [digest(batch) for batch in reference]


def workers_of(process: psutil.Process | None = None) -> set[psutil.Process]:
    return set((process or psutil.Process()).children())


def shared_memory() -> set[str]:
    """Without the semaphores, which the engine has none of, and which other tests have just now."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    processes, memory = workers_of(), shared_memory()
    yield
    gc.collect()
    _, alive = psutil.wait_procs(workers_of() - processes, timeout=5)
    assert alive == []
    # Tests of torch's own workers run at the same time, whose files come and go.
    left, until = shared_memory() - memory, time.monotonic() + 5
    while left and time.monotonic() < until:
        time.sleep(0.05)
        left &= shared_memory()
    assert left == set()


# ---- lifetimes


def test_batches_that_are_held_are_never_written_over() -> None:
    loader = ResumableDataLoader(Filled(), 4, shuffle=True, seed=1, num_workers=2)
    expected = inline(loader)
    assert [digest(batch) for batch in list(loader)] == expected


def test_batches_held_by_another_thread_are_never_written_over() -> None:
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


def test_a_training_with_too_many_files_open_is_told_so_and_nothing_is_left() -> None:
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


# ---- what can be carried


class Odd:
    """Nothing that lies in a slot, or only a part of it."""

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


def test_what_cannot_lie_in_a_slot_arrives_all_the_same() -> None:
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


def test_a_batch_that_cannot_be_pickled_is_an_error_of_its_own() -> None:
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

    # What another library has there (tqdm a lock) was there before.
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
    """/dev/shm mounted as small as Docker has it, seen by this one process family alone."""
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
    """What is used on systems that were not at hand, as far as Linux can run it."""
    if system == "macOS":
        monkeypatch.delattr(os, "memfd_create")
    else:
        for module in (channel, worker):
            monkeypatch.setattr(module, "CAN_SEND_MEMORY", False)
        monkeypatch.setattr(channel, "_DO_NOT_WAIT", None)
        monkeypatch.setattr(spinning, "_CAN_YIELD", False)
    loader = ResumableDataLoader(Filled(), 4, shuffle=True, seed=1, num_workers=2)
    expected = inline(loader)
    assert [digest(batch) for batch in list(loader)] == expected


# ---- what is made of a whole batch


PICKED = torch.arange(4096 * 128, dtype=torch.float32).reshape(4096, 128)


class Picked:
    """Read by the batch, 256 kB and more of it, in the ways that end in plain tensors."""

    def __init__(self, way: str) -> None:
        self.way = way

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> Any:
        return PICKED[index]

    def __getitems__(self, indices: list[int]) -> Any:
        return {
            "rows": lambda: PICKED[indices],
            "negative": lambda: PICKED[torch.tensor(indices) - 4096],
            "resized": lambda: torch.empty(len(indices), 64).resize_(len(indices), 128).zero_(),
            "intermediate": lambda: PICKED[torch.tensor(indices)].double() * 2,
            "zeros": lambda: torch.zeros(len(indices), 128).add_(torch.tensor(indices)[:, None]),
        }[self.way]()


def as_it_is(batch: Any) -> Any:
    return batch


def stack_by_hand(samples: list[Any]) -> Any:
    return torch.stack(samples), torch.cat(samples)


@pytest.mark.parametrize("way", ["rows", "negative", "resized", "intermediate", "zeros", "stack"])
def test_a_batch_that_is_made_in_its_slot_is_the_inline_engine_s(way: str) -> None:
    dataset, collate = (PICKED, stack_by_hand) if way == "stack" else (Picked(way), as_it_is)
    arguments = {"shuffle": True, "seed": 3, "collate_fn": collate}
    expected = [digest(batch) for batch in ResumableDataLoader(dataset, 600, **arguments)]
    loader = ResumableDataLoader(
        dataset, 600, num_workers=2, prefetch_factor=1, persistent_workers=True, **arguments
    )
    assert [digest(batch) for batch in loader] == expected
    loader.set_epoch(0)
    assert [digest(batch) for batch in loader] == expected


def collate_views(samples: list[torch.Tensor]) -> Any:
    rows = torch.stack(samples)
    return rows[:, :-1], rows[:, 1:], rows[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_views_of_one_tensor_are_views_of_one_in_every_batch_wherever_it_was_made(
    workers: int,
) -> None:
    loader = ResumableDataLoader(PICKED, 600, num_workers=workers, collate_fn=collate_views)
    for inputs, targets, first in loader:
        assert inputs.stride() == targets.stride() == (128, 1)
        targets.fill_(-1.0)
        assert bool((inputs[:, 1:] == -1.0).all())
        assert bool((first[1:] == -1.0).all())


class Keeping:
    """Remembers what it has read, and gives it out again."""

    def __init__(self) -> None:
        self.kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> Any:
        first = indices[0] % 6
        if first not in self.kept:
            self.kept[first] = torch.full((300, 300), float(first))
        return self.kept[first].clone() if indices[0] < 12 else self.kept[first]


def test_what_a_dataset_keeps_is_not_written_over() -> None:
    loader = ResumableDataLoader(Keeping(), 1, num_workers=1, collate_fn=as_it_is)
    assert [int(batch[-1, -1]) for batch in loader] == [index % 6 for index in range(24)]


class Refilling:
    """Fills one buffer again for each batch, and makes a new one where the length is another."""

    def __init__(self) -> None:
        self.buffer: torch.Tensor | None = None

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> Any:
        if self.buffer is None or len(self.buffer) != len(indices):
            self.buffer = torch.empty(len(indices), 1 << 15)
        return self.buffer.copy_(torch.tensor(indices)[:, None])


def test_a_buffer_that_a_dataset_fills_again_does_not_change_what_was_delivered() -> None:
    """It comes to lie in a slot when placing is on, and is written to as long as that is read."""
    loader = ResumableDataLoader(
        Refilling(), 12, num_workers=1, collate_fn=as_it_is, persistent_workers=True
    )
    for _ in range(3):
        found = []
        for batch in loader:
            time.sleep(0.003)  # the worker reads on meanwhile
            found += batch.min(dim=1).values.tolist()
            assert torch.equal(batch.min(dim=1).values, batch.max(dim=1).values)
        assert found == list(range(200))


class Remembering:
    """Keeps a little of what it makes along with each batch."""

    def __init__(self) -> None:
        self.recent: list[torch.Tensor] = []

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read by the batch")

    def __getitems__(self, indices: list[int]) -> Any:
        batch = torch.full((1 << 19,), float(indices[0]))
        self.recent.append(torch.zeros(1 << 15))
        return batch


class KeepingResized(Remembering):
    """Keeps what it made before it came to what only torch's own memory can do."""

    def __getitems__(self, indices: list[int]) -> Any:
        kept = torch.full((1 << 17,), float(indices[0]))
        batch = torch.empty(1 << 17) if indices[0] < 6 else torch.empty(1 << 16)
        if indices[0] >= 6:
            batch.resize_(1 << 17)
        self.recent.append(kept)
        return batch.fill_(float(indices[0])), float(self.recent[0].sum())


def test_what_a_dataset_keeps_costs_a_few_slots_and_no_more() -> None:
    loader = ResumableDataLoader(
        Remembering(), 1, num_workers=1, collate_fn=as_it_is, persistent_workers=True
    )
    assert [int(batch[-1]) for batch in loader] == list(range(40))
    (member,) = loader._serving._engine._pass._crew._members  # type: ignore[union-attr]
    assert member.slots._slots
    assert max(member.slots._slots) < 12, "the number of slots that were made"


def test_what_is_made_a_second_time_does_not_overwrite_what_was_kept() -> None:
    expected = list(ResumableDataLoader(KeepingResized(), 1, collate_fn=as_it_is))
    loader = ResumableDataLoader(KeepingResized(), 1, num_workers=1, collate_fn=as_it_is)
    for (batch, kept), (inline_batch, inline_kept) in zip(loader, expected):
        assert kept == inline_kept
        assert batch[0] == batch[-1] == inline_batch[0]


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not a word")


class Failing(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise Wordless
        return index


def test_an_exception_that_fails_to_say_what_it_is_is_raised_and_kills_no_worker() -> None:
    batches = iter(ResumableDataLoader(Failing(6), 1, num_workers=1))
    assert [next(batches).item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Wordless):
        next(batches)
    assert [batch.item() for batch in batches] == [4, 5]


class Unwilling:
    """A batch of somebody's own that can be sent, and not be received once."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["index"] == 2:
            raise ValueError("not here")
        self.__dict__.update(state)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_batch_that_cannot_be_received_can_be_passed_over(persistent: bool) -> None:
    loader = ResumableDataLoader(
        Indices(5),
        1,
        num_workers=2,
        persistent_workers=persistent,
        collate_fn=lambda samples: (Unwilling(samples[0]), torch.zeros(1000)),
    )
    batches = iter(loader)
    assert [next(batches)[0].index for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="not here"):
        next(batches)
    assert loader.step == 2
    assert [batch[0].index for batch in batches] == [3, 4]


def test_workers_end_at_once_although_those_of_a_later_loader_were_forked_with_their_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (iter(ResumableDataLoader(Indices(99), 1, num_workers=1)) for _ in "ab")
    before = workers_of()
    next(first)
    (worker,) = workers_of() - before
    next(second)
    # Whoever does not hear that its channel has ended is waited for so long, and told by SIGTERM.
    monkeypatch.setattr(crew, "_GRACE", 20.0)
    began = time.monotonic()
    del first
    assert not worker.is_running()
    assert time.monotonic() - began < 10


# ---- workers that die


class Deadly(Augmented):
    """Kills its worker at some indices, as often as there are files to say so."""

    def __init__(self, length: int, lives: Path, how: str = "kill") -> None:
        super().__init__(length)
        self.lives = lives
        self.how = how

    def __getitem__(self, index: int) -> Any:
        life = self.lives / str(index)
        if get_worker_info() is not None and life.exists():
            life.unlink()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.how == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            else:
                os._exit(3)
        return super().__getitem__(index)


@pytest.mark.parametrize("how", ["kill", "segfault", "exit"])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_dead_worker_is_replaced_and_the_stream_is_the_same(
    tmp_path: Path, how: str, persistent: bool
) -> None:
    loader = ResumableDataLoader(
        Deadly(40, tmp_path, how),
        3,
        shuffle=True,
        seed=3,
        num_workers=2,
        persistent_workers=persistent,
    )
    # Persistent workers have read a part of the second epoch by the end of the first.
    for _ in range(1 if persistent else 2):
        expected = inline(loader)
        for index in (7, 20, 33):
            (tmp_path / str(index)).touch()
        with pytest.warns(RuntimeWarning, match=r"worker \d .* nothing is lost"):
            assert [digest(batch) for batch in loader] == expected
        assert list(tmp_path.iterdir()) == []


def test_more_deaths_than_allowed_are_an_error_that_says_what_was_in_flight(
    tmp_path: Path,
) -> None:
    loader = ResumableDataLoader(
        Deadly(40, tmp_path), 2, num_workers=2, worker_restarts=1, prefetch_factor=1
    )
    for index in (10, 20):
        (tmp_path / str(index)).touch()
    found: list[int] = []
    with (
        pytest.warns(RuntimeWarning, match="nothing is lost"),
        pytest.raises(
            WorkerDiedError, match=r"SIGKILL.*\[20, 21\].*epoch 0, step 10.*worker_restarts"
        ),
    ):
        found.extend(index for batch in loader for index in ids(batch))
    assert found == list(range(20))
    assert loader.step == 10
    loader.load_state_dict(loader.state_dict())
    assert [index for batch in loader for index in ids(batch)] == list(range(20, 40))


class Fatal(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 3 and get_worker_info() is not None:
            os._exit(1)
        return index


def test_a_batch_that_kills_two_workers_is_not_tried_a_third_time() -> None:
    loader = ResumableDataLoader(Fatal(8), 2, num_workers=2, worker_restarts=100)
    with (
        pytest.warns(RuntimeWarning, match="nothing is lost"),
        pytest.raises(WorkerDiedError, match=r"code 1 .*\[2, 3\].*step 1.*second"),
    ):
        list(loader)
    loader.num_workers = 0
    loader.set_epoch(5)
    assert len(list(loader)) == 4


class Hanging(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 5:
            time.sleep(60)
        return index


def test_a_worker_that_hangs_is_told_with_what_it_had() -> None:
    loader = ResumableDataLoader(Hanging(8), 2, num_workers=2, timeout=1)
    found: list[int] = []
    began = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match=r"1 seconds.*worker 0.*\[4, 5\].*step 2"):
        found.extend(index for batch in loader for index in ids(batch))
    assert found == [0, 1, 2, 3]
    assert time.monotonic() - began < 30


class Growing(Indices):
    """Each needs a slot of its own, whose descriptor comes before its message."""

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.1)
        return torch.full((1000 * 2**index,), index)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
def test_a_training_that_was_stopped_does_not_take_that_for_a_worker_s_time() -> None:
    batches = iter(ResumableDataLoader(Growing(10), 1, num_workers=1, timeout=0.5))
    found = [int(next(batches)[0, -1])]
    stopped = f"sleep 0.25; kill -STOP {os.getpid()}; sleep 1.5; kill -CONT {os.getpid()}"
    with subprocess.Popen(["sh", "-c", stopped]):
        found += [int(batch[0, -1]) for batch in batches]
    assert found == list(range(10))


def test_a_training_s_own_handler_of_sigterm_is_not_run_in_its_workers() -> None:
    def handler(*_: object) -> None:
        raise RuntimeError("save what there is")

    def read(loader: ResumableDataLoader[Any], others: set[psutil.Process]) -> Iterator[str]:
        for step, batch in enumerate(loader):
            yield digest(batch)
            if step == 2:
                for worker in workers_of() - others:
                    worker.terminate()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        loader = ResumableDataLoader(Filled(), 4, shuffle=True, seed=1, num_workers=2)
        expected, others = inline(loader), workers_of()
        with pytest.warns(RuntimeWarning, match=r"SIGTERM.*nothing is lost"):
            found = list(read(loader, others))
        assert found == expected
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["SIGUSR1", "SIGHUP", "SIGALRM"])
def test_a_training_s_own_handler_of_another_signal_does_nothing_in_its_workers(name: str) -> None:
    """SLURM tells all processes of a job; the training saves, and the workers read on."""

    def handler(*_: object) -> None:
        raise RuntimeError("save what there is")

    number = getattr(signal, name)
    before = signal.signal(number, handler)
    try:
        loader = ResumableDataLoader(
            Filled(), 4, shuffle=True, seed=1, num_workers=2, worker_restarts=0
        )
        expected, others = inline(loader), workers_of()
        batches = iter(loader)
        found = [digest(next(batches))]
        for worker in workers_of() - others:
            worker.send_signal(number)
        found += [digest(batch) for batch in batches]
    finally:
        signal.signal(number, before)
    assert found == expected


def test_a_signal_that_comes_while_a_worker_starts_is_not_the_training_s_there() -> None:
    """Sent at once, again and again: between the fork and the worker's own handlers as well."""

    def handler(*_: object) -> None:
        raise RuntimeError("save what there is")

    def loader() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(
            Filled(), 4, shuffle=True, seed=1, num_workers=2, worker_restarts=0
        )

    expected, others, over = inline(loader()), workers_of(), threading.Event()

    def tell() -> None:
        while not over.is_set():
            for process in workers_of() - others:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGUSR1)

    telling = threading.Thread(target=tell, daemon=True)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        telling.start()
        for _ in range(5):
            assert [digest(batch) for batch in loader()] == expected
    finally:
        over.set()
        telling.join(10)
        signal.signal(signal.SIGUSR1, before)


class Blocked(Indices):
    """Which signals are blocked where it is read."""

    def __getitem__(self, index: int) -> list[int]:
        return sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))


def test_a_worker_blocks_the_signals_that_the_training_does() -> None:
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        loader = ResumableDataLoader(
            Blocked(4), None, num_workers=2, multiprocessing_context="fork", collate_fn=list
        )
        assert list(loader) == [[signal.SIGUSR2]] * 4
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR2}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
        signal.signal(signal.SIGUSR1, before)


# ---- a training that forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("persistent", [False, True])
def test_a_fork_of_the_training_has_workers_of_its_own_and_leaves_those_of_the_training_alone(
    persistent: bool,
) -> None:
    loader = ResumableDataLoader(
        Filled(40), 2, shuffle=True, seed=1, num_workers=2, persistent_workers=persistent
    )
    expected = inline(loader)
    batches = iter(loader)
    found = [digest(next(batches)) for _ in range(3)]

    def look() -> list[str]:
        loader.seek(epoch=0)
        return [digest(batch) for batch in loader]

    assert outcome_in_a_fork(look) == expected
    assert "begin another" in outcome_in_a_fork(lambda: digest(next(batches)))
    assert found + [digest(batch) for batch in batches] == expected


# ---- over the end of an epoch


class Slow(Indices):
    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


def asked_of(loader: Any) -> list[tuple[int, int]]:
    """(epoch, step) of what the persistent workers have been asked ahead."""
    return [
        (t.request.epoch, t.request.step)
        for t in loader._serving._engine._pass._ahead.following.tickets
    ]


def test_persistent_workers_fetch_the_next_epoch_while_the_last_batches_are_trained_on() -> None:
    loader = ResumableDataLoader(
        Slow(8), 1, shuffle=True, seed=1, num_workers=2, persistent_workers=True
    )
    first = [batch.item() for batch in loader]
    assert asked_of(loader) == [(1, 0), (1, 1), (1, 2), (1, 3)]
    expected = [batch.item() for batch in replay(loader)]
    assert [batch.item() for batch in loader] == expected != first


def replay(loader: Any) -> ResumableDataLoader[Any]:
    twin = ResumableDataLoader(Slow(8), 1, shuffle=True, seed=1)
    twin.load_state_dict(loader.state_dict())
    return twin


@pytest.mark.parametrize("course", ["set_epoch", "seek", "load_state_dict", "dropped"])
def test_what_was_prefetched_is_dropped_when_the_course_changes(course: str) -> None:
    loader = ResumableDataLoader(
        Slow(8), 1, shuffle=True, seed=1, num_workers=2, persistent_workers=True
    )
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    if course != "dropped":
        list(batches)
    if course == "set_epoch":
        loader.set_epoch(7)
    elif course == "seek":
        loader.seek(epoch=3, step=5)
    elif course == "load_state_dict":
        loader.load_state_dict(state)
    else:
        del batches
    expected = [batch.item() for batch in replay(loader)]
    if course == "dropped":
        expected = [batch.item() for batch in skipped_to_next(loader)]
    assert [batch.item() for batch in loader] == expected
    assert [batch.item() for batch in replay_next(loader)] == [batch.item() for batch in loader]


def skipped_to_next(loader: Any) -> ResumableDataLoader[Any]:
    twin = ResumableDataLoader(Slow(8), 1, shuffle=True, seed=1)
    twin.seek(epoch=loader.epoch + 1)
    return twin


def replay_next(loader: Any) -> ResumableDataLoader[Any]:
    return replay(loader)


class Counted(Slow):
    def __init__(self, length: int, read: Path) -> None:
        super().__init__(length)
        self.read = read

    def __getitem__(self, index: int) -> int:
        time.sleep(0.2)
        (self.read / str(index)).touch()
        return index


class Tallied(Indices):
    """A byte in a file for each reading, whoever reads."""

    def __init__(self, length: int, tally: Path) -> None:
        super().__init__(length)
        self.tally = tally

    def __getitem__(self, index: int) -> int:
        with self.tally.open("ab") as file:
            file.write(b".")
        return index


def test_what_was_prefetched_of_the_next_epoch_is_not_read_again(tmp_path: Path) -> None:
    tally = tmp_path / "tally"

    def readings(expected: int) -> int:
        """How many there are, once those ahead have come, and a little later."""
        until = time.monotonic() + 10
        while tally.stat().st_size < expected and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        return tally.stat().st_size

    loader = ResumableDataLoader(
        Tallied(8, tally), 1, shuffle=True, num_workers=2, persistent_workers=True
    )
    for epoch in range(1, 4):
        assert len(list(loader)) == 8
        assert readings(8 * epoch + 4) == 8 * epoch + 4, "an epoch more, and four batches ahead"


def test_what_nobody_waits_for_any_more_is_not_read(tmp_path: Path) -> None:
    loader = ResumableDataLoader(
        Counted(100, tmp_path), 1, num_workers=1, prefetch_factor=8, persistent_workers=True
    )
    next(iter(loader))
    loader.seek(epoch=0, step=50)
    assert next(iter(loader)).item() == 50
    read = {int(file.name) for file in tmp_path.iterdir()}
    assert 50 in read
    assert len(read & set(range(50))) <= 3, "0, and what was being read when the course changed"


# ---- nothing left behind


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


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    "end", ["exit", "exit persistent", "raise", "interrupt", "kill", "kill busy"]
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
        _, errors = process.communicate(timeout=30)
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
def test_half_a_minute_of_mischief_changes_no_byte(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random kills of workers, delays, hoarding and breaks, against the inline engine."""
    # Chance kills two workers at the same batch before long.
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
            place = ResumableDataLoader(Filled(48), 3, shuffle=True, seed=seed)
            place.seek(epoch=epochs)
            expected = [digest(batch) for batch in place]
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
