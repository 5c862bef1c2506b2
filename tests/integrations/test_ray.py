"""Ray Train with our loader: killed workers, restarts by Ray and by hand, another world."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray.train
import ray.train.torch
import torch
from benchmarks.frameworks.cases import RAY, verdict
from benchmarks.frameworks.journal import read_journals
from benchmarks.frameworks.subject import LENGTH, Digits
from benchmarks.frameworks.trial import attempt, difference, samples_of_epochs, uninterrupted

from dataporter import ConfigurationError, ResumableDataLoader

pytestmark = pytest.mark.timeout(900)
SECONDS = RAY[0].seconds


def test_a_restarted_run_resumes_exactly(homes: Path) -> None:
    assert verdict(RAY[0], "dataporter", homes) is None


def test_ray_replaces_a_killed_worker_which_resumes_exactly(homes: Path, tmp_path: Path) -> None:
    """The checkpoint is of an epoch's last step."""
    options = (*RAY[0].options, "--loader", "dataporter")
    alone = uninterrupted("ray_train", homes, *options, seconds=SECONDS)
    killed = attempt(
        *("ray_train", tmp_path, 0, *options, "--restarted-by-ray", "--kill-at", "7"),
        seconds=SECONDS,
    )
    assert killed[-1].step == 7
    resumed = read_journals(tmp_path, 1)
    assert resumed[0].step == 6
    assert difference(alone, resumed) is None
    # Neither Ray's processes nor their files outlive the training.
    log = (tmp_path / "attempt-0.log").read_text()
    (folder,) = re.findall(r"^Ray's files: (\S+)$", log, re.MULTILINE)
    assert not Path(folder).exists()
    assert not [one.pid for one in psutil.process_iter() if folder in command_of(one)]


def command_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_another_number_of_workers_reads_the_rest_once(tmp_path: Path) -> None:
    options = ("--every", "3")
    killed = attempt("ray_train", tmp_path, 0, *options, kill_at=10, seconds=SECONDS)
    done = samples_of_epochs(entry for entry in killed if entry.step < 9)[1]
    assert done.total() == 48
    resumed = attempt("ray_train", tmp_path, 1, *options, "--ranks", "1", seconds=SECONDS)
    counted = samples_of_epochs(resumed)
    assert counted.keys() == {1, 2}
    for whole in (done + counted[1], counted[2]):
        assert set(whole) == set(range(LENGTH))
        assert whole.total() == LENGTH


def in_a_world_of(workers: int, monkeypatch: pytest.MonkeyPatch) -> ResumableDataLoader[object]:
    """A loader as a worker's loop builds it, without the workers."""
    context = SimpleNamespace(get_world_size=lambda: workers, get_world_rank=lambda: 0)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    return ResumableDataLoader(Digits(), 8, seed=1, rank=0, world_size=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_that_ray_has_wrapped_is_refused(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's wrapper reads a batch ahead, which a resume would lose."""
    prepared = ray.train.torch.prepare_data_loader(in_a_world_of(workers, monkeypatch))
    with pytest.raises(ConfigurationError, match="without prepare_data_loader"):
        next(iter(prepared))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_that_ray_leaves_as_it_is_works(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = in_a_world_of(workers, monkeypatch)
    prepared = ray.train.torch.prepare_data_loader(loader, move_to_device=False)
    assert prepared is loader
    assert len(list(prepared)) == len(loader)
