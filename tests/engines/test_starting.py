"""A worker that fails at its start says so itself; a fork server imports what workers need."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from budgets import slow
from subjects import Indices, ids

from dataporter import ResumableDataLoader, WorkerDiedError
from dataporter.engines.messages import WorkerTraceback


class Unloadable(Indices):
    """Can be pickled, and not unpickled."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise ModuleNotFoundError("No module named 'decoder'", name="decoder")


@pytest.mark.parametrize("method", ["forkserver", *slow("spawn")])
def test_what_unpickling_raises_in_the_worker_is_raised_here(method: str) -> None:
    loader = ResumableDataLoader(Unloadable(8), 2, num_workers=2, multiprocessing_context=method)
    with pytest.raises(ModuleNotFoundError, match="decoder") as found:
        next(iter(loader))
    assert found.value.name == "decoder"
    assert found.value.__notes__ == ["dataporter: while worker 0 was starting"]
    assert type(found.value.__cause__) is WorkerTraceback
    assert "__setstate__" in str(found.value.__cause__)


def fail(worker: int) -> None:
    raise LookupError(f"no device for worker {worker}")


def test_what_worker_init_fn_raises_is_raised_here_each_time_with_one_traceback() -> None:
    batches = iter(ResumableDataLoader(Indices(8), 2, num_workers=1, worker_init_fn=fail))
    for _ in range(3):
        with pytest.raises(LookupError, match="no device for worker 0") as found:
            next(batches)
        assert str(found.value.__cause__).count("in fail") == 1


def die(lives: Path, worker: int) -> None:
    """Die as often as there are files, and remove one."""
    if worker == 0 and (left := list(lives.iterdir())):
        left[0].unlink()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("nothing_is_left_behind")
def test_a_worker_that_is_killed_at_its_start_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "once").touch()
    loader = ResumableDataLoader(
        Indices(8), 2, num_workers=2, worker_init_fn=partial(die, tmp_path)
    )
    with pytest.warns(RuntimeWarning, match="SIGKILL while it was starting; it is replaced"):
        assert list(map(ids, loader)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.usefixtures("nothing_is_left_behind")
def test_two_that_are_killed_at_their_start_are_an_error_that_blames_no_batch(
    tmp_path: Path,
) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    loader = ResumableDataLoader(
        Indices(8), 2, num_workers=1, worker_init_fn=partial(die, tmp_path), worker_restarts=100
    )
    with (
        pytest.warns(RuntimeWarning, match="it is replaced"),
        pytest.raises(WorkerDiedError, match=r"was starting, like the one.*worker_init_fn"),
    ):
        next(iter(loader))


PROGRAM = """
import multiprocessing, sys
IMPORTED = "torch" in sys.modules  # before a worker receives its arguments

class Data:
    def __len__(self):
        return 2
    def __getitem__(self, index):
        return IMPORTED

if __name__ == "__main__":
    from dataporter import ResumableDataLoader
    if len(sys.argv) > 1:
        multiprocessing.set_forkserver_preload(sys.argv[1:])
    context = {"multiprocessing_context": "forkserver"}
    print(list(ResumableDataLoader(Data(), None, num_workers=1, **context)))
"""


@pytest.mark.parametrize(
    ("chosen", "expected"), [((), "[True, True]"), *slow((("json",), "[False, False]"))]
)
def test_a_fork_server_imports_torch_for_all_workers_unless_the_user_has_chosen_imports(
    chosen: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(program), *chosen], capture_output=True, text=True, timeout=110
    )
    assert ran.stdout.strip() == expected, ran.stderr
