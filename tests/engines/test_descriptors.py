"""Open files: their number depends on the workers, and not on how far these read ahead."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import psutil
import pytest
from subjects import Indices
from worker_processes import Filled

from dataporter import DataPorterError, ResumableDataLoader, TooManyOpenFilesError
from dataporter.engines import channel

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.usefixtures("nothing_is_left_behind")

FAR_AHEAD = """
import os, resource, sys, time
import torch
from dataporter import ResumableDataLoader

class Rows:
    def __len__(self):
        return 1500
    def __getitem__(self, index):
        return torch.full((64,), float(index))

list(ResumableDataLoader(Rows(), 500, num_workers=1))  # imports what it needs
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
if os.getuid() == 0:
    os.setuid(65534)  # the system lets root send more descriptors than the limit says
loader = ResumableDataLoader(Rows(), 1, num_workers=4, prefetch_factor=256)
batches = iter(loader)
held = [next(batches), next(batches)]
time.sleep(0.3)  # the workers fill what they may send
most = len(os.listdir("/proc/self/fd"))
found = [int(batch[0, -1]) for batch in held]
for batch in batches:
    most = max(most, len(os.listdir("/proc/self/fd")))
    found.append(int(batch[0, -1]))
assert found == list(range(1500)), found
print(most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_reading_far_ahead_takes_no_more_open_files() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning", "-c", FAR_AHEAD],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert int(ran.stdout) < 60


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_batch_in_use_takes_no_open_file_in_any_process() -> None:
    batches = iter(ResumableDataLoader(Filled(60), 1, num_workers=1, prefetch_factor=20))
    held = [next(batches)]
    (process,) = psutil.Process().children()[-1:]
    before = psutil.Process().num_fds(), process.num_fds()
    held += [next(batches) for _ in range(30)]
    after = psutil.Process().num_fds(), process.num_fds()
    # One may be on its way.
    assert max(now - then for now, then in zip(after, before)) <= 1


def test_more_workers_than_the_limit_allows_are_an_error_that_says_what_to_do() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = psutil.Process().num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 9, limits[1]))
    try:
        with pytest.raises(TooManyOpenFilesError, match=r"ulimit -n.*fewer workers") as found:
            next(iter(ResumableDataLoader(Indices(40), 1, num_workers=16)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(found.value, DataPorterError)
    assert found.value.errno == errno.EMFILE
    # multiprocessing opens two pipes, and forgets the first where the second cannot be opened.
    assert psutil.Process().num_fds() <= open_now + 2


def test_memory_that_cannot_be_sent_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where nobody receives what other loaders' workers have sent."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    monkeypatch.setattr(channel, "_WAITS_FOR_RECEIVERS", 0.1)
    monkeypatch.setattr(channel.socket, "send_fds", refuse)
    loader = ResumableDataLoader(Filled(4), 1, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(TooManyOpenFilesError, match=r"sending memory.*ulimit -n"):
        next(iter(loader))
