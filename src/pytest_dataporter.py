"""The pytest plugin: a fixture that pytest finds wherever DataPorter is installed.

This module is outside the package, since pytest imports it at each start, and importing the package
imports torch, which takes seconds.
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
    """``assert_exact_resume(make_loader, ...)`` fails with the report unless the loader is exact.

    It takes the arguments of :func:`dataporter.verify` and returns its report. By default it tries
    0 and 2 workers, and measures no throughput.
    """

    def check(make_loader: Callable[..., Any] | str, **options: Any) -> VerifyReport:
        from dataporter import verify

        report = verify(make_loader, **{"workers": (0, 2), "measure": False, **options})
        if not report.exact:
            pytest.fail(str(report), pytrace=False)
        return report

    return check
