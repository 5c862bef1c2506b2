"""What cannot be sent to spawned workers: the error names it, with the way to it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from subjects import Indices, ids
from torch.utils.data import Sampler

from dataporter import ConfigurationError, ResumableDataLoader, ShuffledOrder
from dataporter.loader.pickled import refuse_unpicklable

FAILED = ValueError("the start has failed")
ENDING = ", or use multiprocessing_context='fork', or num_workers=0"


class Holding(Indices):
    """A dataset that holds something."""

    def __init__(self, held: Any) -> None:
        super().__init__(8)
        self.held = held


class LeavesOut(Holding):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "held": None}


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held


def add(first: Any, second: Any) -> Any:
    return first


def local_function() -> Callable[..., Any]:
    def inner(*_: Any) -> Any:
        return None

    return inner


def local_class() -> type:
    class Local(Indices):
        pass

    return Local


def refused(**arguments: Any) -> str | None:
    try:
        refuse_unpicklable("spawn", arguments, FAILED)
    except ConfigurationError as error:
        cause, message = error.__cause__, str(error)
    else:
        return None
    assert cause is FAILED
    return message.replace(__file__, "FILE")


BEGINNING = (
    "workers that are started by 'spawn' receive the loader's arguments by pickle, and {} cannot "
    "be pickled: it is "
)
LINE = local_function().__code__.co_firstlineno
A_LAMBDA = lambda batch: batch  # noqa: E731
LAMBDA = (
    f"a lambda (FILE:{A_LAMBDA.__code__.co_firstlineno}); write it as a function (def) at the top "
    "of a module" + ENDING
)
LOCK = threading.Lock()
NO_LOCK = (
    "a _thread.lock (cannot pickle '_thread.lock' object); create it in the worker, at its first "
    "use, and leave it out in __getstate__" + ENDING
)


@pytest.mark.parametrize(
    ("arguments", "path", "what"),
    [
        ({"dataset": Indices(3), "collate_fn": A_LAMBDA}, "collate_fn", LAMBDA),
        ({"worker_init_fn": A_LAMBDA}, "worker_init_fn", LAMBDA),
        ({"dataset": Holding(A_LAMBDA)}, "dataset.held", LAMBDA),
        ({"dataset": Holding({"a": [1, A_LAMBDA]})}, "dataset.held['a'][1]", LAMBDA),
        ({"dataset": Holding(Holding(A_LAMBDA))}, "dataset.held.held", LAMBDA),
        (
            {"dataset": torch.utils.data.Subset(Holding(A_LAMBDA), [0])},
            "dataset.dataset.held",
            LAMBDA,
        ),
        ({"dataset": Holding(Slotted(A_LAMBDA))}, "dataset.held.held", LAMBDA),
        ({"collate_fn": partial(add, second=A_LAMBDA)}, "collate_fn.keywords['second']", LAMBDA),
        ({"collate_fn": partial(add, A_LAMBDA)}, "collate_fn.args[0]", LAMBDA),
        ({"collate_fn": Holding(A_LAMBDA).__len__}, "collate_fn.__self__.held", LAMBDA),
        (
            {"on_error": local_function()},
            "on_error",
            f"the function local_function.<locals>.inner (FILE:{LINE}), which is not found under "
            "this name; define it at the top of a module" + ENDING,
        ),
        (
            {"dataset": local_class()(3)},
            "dataset",
            "an object of the class local_class.<locals>.Local, which is defined in a function; "
            "define it at the top of a module" + ENDING,
        ),
        (
            {"dataset": Holding(local_class())},
            "dataset.held",
            "the class local_class.<locals>.Local, which is defined in a function; define it at "
            "the top of a module" + ENDING,
        ),
        ({"dataset": Holding(LOCK)}, "dataset.held", NO_LOCK),
    ],
)
def test_the_object_is_named(arguments: dict[str, Any], path: str, what: str) -> None:
    assert refused(**arguments) == BEGINNING.format(path) + what


def test_what_can_be_sent_is_not_blamed() -> None:
    """Locks and values of multiprocessing are pickled only while a process starts."""
    spawn = multiprocessing.get_context("spawn")
    held = [
        spawn.Lock(),
        spawn.Value("i", 3),
        spawn.Event(),
        torch.zeros(3),
        local_class,
        add,
        LeavesOut(LOCK),
        {"a": (1, 2)},
    ]
    assert refused(dataset=Holding(held), collate_fn=add) is None


def test_an_open_file_is_named_by_its_type() -> None:
    with tempfile.TemporaryFile() as file:
        message = refused(dataset=Holding(file))
    assert message is not None
    assert "dataset.held" in message
    assert "_io.BufferedRandom" in message


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_loader_says_so_and_reads_on_once_it_is_mended(method: str) -> None:
    loader = ResumableDataLoader(
        Indices(6), 2, num_workers=1, collate_fn=lambda batch: batch, multiprocessing_context=method
    )
    state = loader.state_dict()
    with pytest.raises(
        ConfigurationError, match=f"{method}.*collate_fn cannot be pickled: it is a"
    ):
        next(iter(loader))
    assert loader.state_dict() == state
    loader.collate_fn = torch.utils.data.default_collate
    loader.num_workers = 0
    assert list(map(ids, loader)) == [[0, 1], [2, 3], [4, 5]]


class Own(Sampler[Any]):
    def __init__(self, indices: list[Any]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_an_index_that_cannot_be_sent_is_named(method: str) -> None:
    class Name(str):
        """Local, so that it cannot be pickled."""

    names = [Name("a"), Name("b")]
    loader = ResumableDataLoader(
        {"a": 1, "b": 2},
        1,
        sampler=Own(names),  # type: ignore[arg-type]
        num_workers=1,
        multiprocessing_context=method,
    )
    with pytest.raises(ConfigurationError, match=r"\['a'\].*an index cannot be pickled.*Name"):
        next(iter(loader))


def test_an_order_that_chooses_replacements_is_named() -> None:
    class Local(ShuffledOrder):
        pass

    loader = ResumableDataLoader(
        Indices(6),
        2,
        order=Local(),
        on_error="replace",
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    with pytest.raises(ConfigurationError, match="order cannot be pickled: it is an object of"):
        next(iter(loader))


def test_forked_workers_need_no_pickle() -> None:
    loader = ResumableDataLoader(
        Holding(lambda: 1), 4, num_workers=1, multiprocessing_context="fork", collate_fn=lambda b: b
    )
    assert len(list(loader)) == 2


PROGRAM = """
import sys
from dataporter import ResumableDataLoader
loader = ResumableDataLoader(range(4), 2, num_workers=1, multiprocessing_context="spawn")
list(loader)
"""


@pytest.mark.slow
def test_a_program_that_spawned_workers_would_run_again_is_told_so(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ran = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last == (
        "dataporter.errors.WorkerDiedError: worker 0 exited with code 1 while it was starting: it "
        "could not import the program, which workers that are started by 'spawn' do first; its "
        "traceback is above. Begin the program under if __name__ == '__main__':, so that importing "
        "it only defines things"
    )
    assert "is replaced" not in ran.stderr, "another would fail as well"
