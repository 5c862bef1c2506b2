"""Settings and fixtures of all tests."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import HealthCheck, settings

from dataporter.tools.verification import session
from dataporter.tools.verification.imports import Imports
from dataporter.tools.verification.processes import Processes

torch.set_num_threads(1)

# Ranks and workers that a fork server starts find imported here what takes seconds to import.
multiprocessing.set_forkserver_preload(
    [
        "torch.distributed.launcher.api",
        "torch.distributed.checkpoint",
        "dataporter",
        "hypothesis",
        "pytest",
    ]
)

# No deadlines: on a shared machine the time of a case says nothing.
FULL = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
# The test modules are imported later, and scale their own budgets to this: see budgets.py.
settings.register_profile("quick", FULL, max_examples=20)
settings.register_profile("full", FULL)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def hosts() -> Iterator[Processes]:
    """Interpreters for all verifications of a test session."""
    with Processes(forked=False) as processes:
        yield processes


@pytest.fixture
def shared_hosts(hosts: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let verifications use these hosts: each would take seconds to start three others."""

    @contextmanager
    def processes(*, forked: bool, seed: int) -> Iterator[Processes]:
        if forked:
            with Processes(forked=True, seed=seed) as own:
                yield own
            return
        hosts.home = Path(mkdtemp(dir=tmp_path))
        hosts.imports = Imports()
        yield hosts

    monkeypatch.setattr(session, "Processes", processes)
