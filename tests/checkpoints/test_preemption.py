"""PreemptionGuard: a signal to any rank becomes the same last step on all, without a trace."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import preempted_ranks
import psutil
import pytest
import torch
from subjects import ids
from torch.utils.data import DataLoader
from torchrun import finished, torchrun

from dataporter import ConfigurationError, PreemptionGuard, ResumableDataLoader, load_latest

RANKS = Path(preempted_ranks.__file__)
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _handlers_are_unchanged() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)
    assert after == before


# ---- one process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_at_the_next_call_and_is_named(number: signal.Signals) -> None:
    with PreemptionGuard(every=7) as guard:
        assert not guard.should_stop()
        assert guard.received is None
        signal.raise_signal(number)
        assert guard.received is number
        assert guard.should_stop()
        for another in (signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(another)
        assert guard.should_stop()
    assert guard.received is number


def test_a_reused_guard_starts_afresh() -> None:
    guard = PreemptionGuard()
    for _ in range(2):
        with guard:
            assert not guard.should_stop()
            signal.raise_signal(signal.SIGTERM)
            assert guard.should_stop()


def test_a_signal_reaches_every_guard_that_catches_it() -> None:
    with PreemptionGuard() as outer, PreemptionGuard(signals=[signal.SIGTERM]) as inner:
        signal.raise_signal(signal.SIGUSR1)
        assert outer.should_stop()
        assert not inner.should_stop()
        signal.raise_signal(signal.SIGTERM)
        assert inner.should_stop()
    assert outer.received is signal.SIGUSR1
    with PreemptionGuard() as outer:
        with PreemptionGuard():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert outer.should_stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("ending", [None, RuntimeError])
def test_the_previous_handlers_are_restored_and_were_not_called(
    number: signal.Signals, ending: type[Exception] | None
) -> None:
    called = []
    for handler in (lambda *_: called.append(1), signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(number, handler)
        with pytest.raises(RuntimeError) if ending else PreemptionGuard():
            with PreemptionGuard():
                signal.raise_signal(number)
                if ending:
                    raise ending
        assert signal.getsignal(number) is handler
        assert called == []
        if callable(handler):
            signal.raise_signal(number)
            assert called.pop() == 1


def test_a_handler_set_without_python_is_restored(tmp_path: Path) -> None:
    with (tmp_path / "traceback.txt").open("w+") as file:
        faulthandler.register(signal.SIGUSR1, file)
        try:
            with PreemptionGuard() as guard:
                signal.raise_signal(signal.SIGUSR1)
                assert guard.should_stop()
            assert file.read() == ""
            signal.raise_signal(signal.SIGUSR1)
            file.seek(0)
            assert "test_a_handler_set_without_python_is_restored" in file.read()
        finally:
            faulthandler.unregister(signal.SIGUSR1)


def test_a_handler_set_before_python_started_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``signal.signal`` returns None for it, and would not accept it."""
    called = []
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(called.append)
    plain = signal.signal
    monkeypatch.setattr(signal, "signal", lambda *given: plain(*given) and None)
    action = ctypes.create_string_buffer(512)
    libc = ctypes.CDLL(None)
    libc.sigaction(signal.SIGUSR1, None, action)
    try:
        libc.signal(signal.SIGUSR1, handler)
        with PreemptionGuard(signals=[signal.SIGUSR1]) as guard:
            signal.raise_signal(signal.SIGUSR1)
            assert guard.should_stop()
        assert called == []
        signal.raise_signal(signal.SIGUSR1)
        assert called == [signal.SIGUSR1]
    finally:
        libc.sigaction(signal.SIGUSR1, action, None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"every": 0}, "every=0: expected a whole number of 1"),
        ({"every": True}, "every=True"),
        ({"signals": []}, "expected at least one signal"),
        ({"signals": ["SIGTERM"]}, "expected signals"),
        ({"signals": [12345]}, "expected signals"),
        ({"signals": [signal.SIGKILL, signal.SIGTERM]}, "SIGKILL cannot be caught"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        PreemptionGuard(**arguments)


def test_wrong_uses_are_named() -> None:
    guard = PreemptionGuard()
    with pytest.raises(ConfigurationError, match="with block"):
        guard.should_stop()
    with guard, pytest.raises(ConfigurationError, match="already in use"):
        guard.__enter__()
    with pytest.raises(ConfigurationError, match=r"expected a torch\.distributed ProcessGroup"):
        PreemptionGuard(process_group="dp").__enter__()


def test_entering_in_a_thread_is_an_error_that_names_the_main_thread() -> None:
    messages: list[str] = []

    def enter() -> None:
        try:
            PreemptionGuard().__enter__()
        except ConfigurationError as error:
            messages.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert "only the main thread" in messages[0]


# ---- processes forked inside the block


def asleep(awake: Any) -> None:
    awake.set()
    time.sleep(60)


@contextmanager
def child_asleep(*, awake: bool) -> Iterator[Any]:
    """A forked process, as soon as it has started, or once its own code runs."""
    event = FORK.Event()
    child = FORK.Process(target=asleep, args=(event,), daemon=True)
    child.start()
    try:
        assert not awake or event.wait(20)
        yield child
    finally:
        child.kill()
        child.join(10)


@pytest.mark.parametrize("awake", [True, False])
def test_a_child_can_be_terminated_at_any_moment(awake: bool) -> None:
    with PreemptionGuard(), PreemptionGuard():
        for _ in range(5):
            with child_asleep(awake=awake) as child:
                child.terminate()
                child.join(10)
                assert child.exitcode == -signal.SIGTERM


def test_a_child_survives_the_signals_that_a_cluster_sends_to_all() -> None:
    with PreemptionGuard() as guard, child_asleep(awake=True) as child:
        os.kill(child.pid, signal.SIGUSR1)
        child.join(0.2)
        assert child.exitcode is None
        assert not guard.should_stop()


def test_a_fork_keeps_the_blocked_signals_of_parent_and_child() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with PreemptionGuard() as guard:
            ours, theirs = FORK.Pipe(duplex=False)
            child = FORK.Process(target=send_mask, args=(theirs,))
            child.start()
            assert ours.poll(20)
            expected = {*before, signal.SIGHUP}
            assert ours.recv() == signal.pthread_sigmask(signal.SIG_BLOCK, ()) == expected
            child.join(10)
            signal.raise_signal(signal.SIGTERM)
            assert guard.should_stop()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def send_mask(connection: Any) -> None:
    connection.send(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


class Slow(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> int:
        time.sleep(0.02)
        return index


@pytest.mark.parametrize("build", [DataLoader, ResumableDataLoader])
def test_workers_can_be_terminated(build: Callable[..., Any]) -> None:
    with PreemptionGuard():
        before = set(psutil.Process().children())
        batches = iter(build(Slow(), batch_size=2, num_workers=1, multiprocessing_context="fork"))
        next(batches)
        (worker,) = set(psutil.Process().children()) - before
        worker.terminate()
        deadline = time.monotonic() + 10
        while worker.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_signal_to_all_workers_costs_no_sample_and_no_restart(
    start: str, number: signal.Signals
) -> None:
    """Launchers signal whole sessions, but the training loop must still reach its last step."""
    loader: ResumableDataLoader[Any] = ResumableDataLoader(
        Slow(), 2, num_workers=3, worker_restarts=0, multiprocessing_context=start
    )
    before = set(psutil.Process().children())
    with PreemptionGuard() as guard, pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *_, **__: None)
        seen = []
        for batch in loader:
            seen += ids(batch)
            if loader.step == 3:
                for worker in set(psutil.Process().children()) - before:
                    worker.send_signal(number)
            assert not guard.should_stop()
    assert seen == list(range(30))


# ---- real ranks


def records(directory: Path, ranks: int) -> dict[str, list[dict[str, Any]]]:
    """Scenario → the record of each rank."""
    found: dict[str, list[dict[str, Any]]] = {}
    for rank in range(ranks):
        for line in (directory / f"rank-{rank}.jsonl").read_text().splitlines():
            record = json.loads(line)
            found.setdefault(record["scenario"], []).append(record)
    return found


def pid_of(directory: Path, rank: int, started: Any) -> int:
    """The process of a training rank."""
    file = directory / f"rank-{rank}.pid"
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text()):
        assert started.poll() is None, started.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(file.read_text())


def left_over(directory: Path, scenario: str, world_size: int) -> list[int]:
    """The samples that a world of a different size receives from the saved state."""
    seen: list[int] = []
    for rank in range(world_size):
        loader: ResumableDataLoader[Any] = ResumableDataLoader(
            range(preempted_ranks.LENGTH),
            3,
            shuffle=True,
            strategy="distributed",
            rank=rank,
            world_size=world_size,
            seed=preempted_ranks.SEED,
        )
        loader.load_state_dict(load_latest(directory / f"{scenario}.pt"))
        seen += [index for batch in loader for index in ids(batch)]
    return seen


def assert_exactly_once(directory: Path, scenario: str, ranks: list[dict[str, Any]]) -> None:
    seen = [index for rank in ranks for index in rank["samples"]]
    rest = left_over(directory, scenario, world_size=1)
    assert sorted(seen + rest) == list(range(preempted_ranks.LENGTH))
    assert sorted(left_over(directory, scenario, world_size=2)) == sorted(rest)


@pytest.mark.slow
def test_ranks_stop_at_the_same_step_whichever_received_the_signal(tmp_path: Path) -> None:
    scenarios = ("outside", "every-5", "usr1", "mesh", "others")
    with torchrun(RANKS, 4, tmp_path, 0, *scenarios, directory=tmp_path) as started:
        os.kill(pid_of(tmp_path, 2, started), signal.SIGTERM)
        finished(started)
    found = records(tmp_path, 4)
    assert list(found) == list(scenarios)
    for scenario, ranks in found.items():
        assert all(rank["restored"] for rank in ranks)
        if scenario != "mesh":
            assert len({rank["steps"] for rank in ranks}) == 1
            assert all(rank["stopped"] for rank in ranks)
            assert_exactly_once(tmp_path, scenario, ranks)

    def seen(scenario: str, field: str) -> list[Any]:
        return [rank[field] for rank in found[scenario]]

    assert 3 <= seen("outside", "steps")[0] < preempted_ranks.LENGTH // 8
    assert seen("outside", "received") == ["SIGTERM"] * 4
    assert seen("every-5", "steps") == [10] * 4
    assert seen("every-5", "received") == ["SIGTERM"] * 4
    assert seen("usr1", "steps") == [4] * 4
    assert seen("usr1", "received") == ["SIGUSR1"] * 4
    assert seen("others", "received") == ["SIGUSR2"] * 4
    # One half of the mesh received the signal, and the other trains to the end.
    assert seen("mesh", "stopped") == [False, False, True, True]
    assert seen("mesh", "steps") == [0, 0, 9, 9]
    assert seen("mesh", "received") == [None, None, "SIGUSR1", "SIGUSR1"]


@pytest.mark.slow
def test_a_launcher_that_receives_a_signal_gives_its_ranks_time_to_save(tmp_path: Path) -> None:
    """torchrun sends SIGTERM to the session of each rank, which includes its workers."""
    with torchrun(RANKS, 2, tmp_path, 4, "outside", directory=tmp_path) as started:
        for rank in (0, 1):
            pid_of(tmp_path, rank, started)
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=40)
    found = records(tmp_path, 2)["outside"]
    assert [rank["stopped"] for rank in found] == [True, True]
    assert found[0]["steps"] == found[1]["steps"] < preempted_ranks.LENGTH // 4
    assert_exactly_once(tmp_path, "outside", found)
