"""The pytest plugin: a fixture that is there wherever DataPorter is installed.

A module of its own, beside the package: pytest imports it at each start, and the package imports
torch, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dataporter import VerifyReport

__all__ = ["assert_exact_resume"]


@pytest.fixture(scope="session")
def assert_exact_resume() -> Callable[..., VerifyReport]:
    """``assert_exact_resume(make_loader, ...)``: fails with the report unless it is exact.

    It takes what :func:`dataporter.verify` takes, and returns its report. By default it measures no
    throughput and goes through no workers and 2 of them.
    """

    def check(make_loader: Callable[..., Any] | str, **options: Any) -> VerifyReport:
        from dataporter import verify

        report = verify(make_loader, **{"workers": (0, 2), "measure": False, **options})
        if not report.exact:
            pytest.fail(str(report), pytrace=False)
        return report

    return check
