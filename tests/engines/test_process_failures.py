"""Workers that fail, die or hang: the stream is the same, or an error says what was read."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import Augmented, Indices, digest, ids
from torch.utils.data import get_worker_info
from worker_processes import inline, workers_of

from dataporter import ResumableDataLoader, WorkerDiedError, WorkerTimeoutError
from dataporter.engines import crew

pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")


class Wordless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not a word")


class Failing(Indices):
    def __getitem__(self, index: int) -> int:
        if index == 3:
            raise Wordless
        return index


def test_an_exception_whose_str_raises_is_raised_itself_and_kills_no_worker() -> None:
    batches = iter(ResumableDataLoader(Failing(6), 1, num_workers=1))
    assert [next(batches).item() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Wordless):
        next(batches)
    assert [batch.item() for batch in batches] == [4, 5]


class Unwilling:
    """A custom batch that can be pickled; unpickling one of them fails."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __setstate__(self, state: dict[str, int]) -> None:
        if state["index"] == 2:
            raise ValueError("not here")
        self.__dict__.update(state)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_batch_that_cannot_be_received_can_be_skipped(persistent: bool) -> None:
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


def test_workers_end_at_once_although_later_workers_have_inherited_their_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (iter(ResumableDataLoader(Indices(99), 1, num_workers=1)) for _ in "ab")
    before = workers_of()
    next(first)
    (worker,) = workers_of() - before
    next(second)
    # A worker that does not notice the end of its channel would receive SIGTERM after this time.
    monkeypatch.setattr(crew, "_GRACE", 100.0)
    began = time.monotonic()
    del first
    assert not worker.is_running()
    assert time.monotonic() - began < 60


# ---- workers that die


class Deadly(Augmented):
    """Kills its worker at each index for which there is a file, and removes the file."""

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


def test_more_deaths_than_allowed_are_an_error_that_names_the_samples_in_flight(
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
            time.sleep(600)
        return index


def keep_turns(worker: int) -> None:
    """With a ``worker_init_fn``, the workers take torch's turns."""


def test_a_worker_that_hangs_is_an_error_that_names_its_samples() -> None:
    loader = ResumableDataLoader(Hanging(8), 2, num_workers=2, timeout=1, worker_init_fn=keep_turns)
    found: list[int] = []
    began = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match=r"1 seconds.*worker 0.*\[4, 5\].*step 2"):
        found.extend(index for batch in loader for index in ids(batch))
    assert found == [0, 1, 2, 3]
    assert time.monotonic() - began < 100
