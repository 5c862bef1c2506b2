"""Diagnosis: each planted fault is found and called by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from faulty import FAULTS

from dataporter import verify


@pytest.mark.parametrize("make_loader", FAULTS, ids=lambda fault: fault.__name__)
def test_each_fault_has_its_diagnosis(make_loader: Callable[[], Any]) -> None:
    cause, named = FAULTS[make_loader]
    report = verify(make_loader, workers=[0, 2], measure=False, seed=1)
    assert not report.exact
    assert [diagnosis.cause for diagnosis in report.diagnoses] == [cause], str(report)
    (diagnosis,) = report.diagnoses
    assert named in diagnosis.because
    assert diagnosis.remedy
