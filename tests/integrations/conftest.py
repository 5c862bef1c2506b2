"""Fixtures of the frameworks' tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for trainings that cases share, over all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    shared = base / "homes"
    shared.mkdir(exist_ok=True)
    return shared


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests more time: they start a framework several times, on a busy machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
